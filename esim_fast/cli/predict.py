"""``esim-fast predict``: label pairs."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from ..data import BadRow, DataError, Pair
from ..data.reading import Form, bounded_lines, corpus_lines, parse_pairs, shortened
from . import options as common

_CHUNK = 4096  # pairs that are held at a time


def add(commands: Any) -> None:
    command = commands.add_parser("predict", help="label pairs", description=predict.__doc__)
    command.set_defaults(run=predict, parser=command)
    command.add_argument("model", metavar="MODEL_DIR")
    command.add_argument("file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin")
    command.add_argument("--premise", metavar="TEXT")
    command.add_argument("--hypothesis", metavar="TEXT")
    common.add_reading(command)
    common.add_skipping(command)
    common.add_model_use(command)


def predict(options: argparse.Namespace) -> None:
    """Labels and probabilities as JSON lines, for one pair or a file of them, in its order."""
    if (options.premise is None) != (options.hypothesis is None):
        raise common.UsageError("--premise and --hypothesis must be given together")
    if (options.premise is None) == (options.file is None):
        raise common.UsageError("give either a file (- for stdin) or --premise and --hypothesis")
    model = common.load_model(options)
    pairs: Iterator[Pair]
    if options.file is None:
        pairs = iter([Pair(options.premise, options.hypothesis, None, 1)])
    elif options.file == "-":
        if sys.stdin is None:
            raise common.UsageError("stdin is closed")
        pairs = _read("stdin", *_stdin_lines(), model.labels, options)
    else:
        pairs = _read(options.file, *corpus_lines(options.file), model.labels, options)
    while chunk := list(_until_error(islice(pairs, _CHUNK))):
        error = chunk.pop() if isinstance(chunk[-1], DataError) else None
        labels, probabilities = model.predict([pair[:2] for pair in chunk], batch_size=options.batch_size)
        for pair, label, row in zip(chunk, labels, probabilities.tolist(), strict=True):
            line = {
                "premise": pair.premise,
                "hypothesis": pair.hypothesis,
                "label": label,
                "probabilities": {name: round(value, 6) for name, value in zip(model.labels, row, strict=True)},
            }
            print(json.dumps(line, ensure_ascii=False))
        if error is not None:
            raise error


def _read(
    name: str, lines: Iterator[bytes], form: Form, labels: Sequence[str], options: argparse.Namespace
) -> Iterator[Pair]:
    def skip(row: BadRow) -> None:
        common.list_bad_rows(name, [row])

    on_bad_row = skip if options.skip_bad_rows else None
    pairs = parse_pairs(lines, name, common.layout(options), form=form, labelled=False, on_bad_row=on_bad_row)
    first = next(pairs, None)
    if first is None:
        return iter(())
    # Three columns without a header are taken for label, premise, hypothesis: are they?
    if form != "jsonl" and options.columns is None and first.line == 1 and first.label not in (None, *labels):
        raise DataError(
            f"{name}:1: expected a label of the model ({shortened(labels)}), a premise and a hypothesis, "
            f"got {first.label[:40]!r} first; if the columns stand otherwise, name them with --columns"
        )
    return chain([first], pairs)


def _stdin_lines() -> tuple[Iterator[bytes], Form]:
    """Without a name to go by, the first byte tells JSON lines from tab-separated ones."""
    lines = bounded_lines(sys.stdin.buffer)
    first = next(lines, b"")
    form: Form = "jsonl" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else "tsv"
    return chain([first] if first else [], lines), form


def _until_error(pairs: Iterator[Pair]) -> Iterator[Pair | DataError]:
    """Ends with the error of a bad row as a value, so that the rows before it are answered first."""
    try:
        yield from pairs
    except DataError as error:
        yield error

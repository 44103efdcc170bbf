"""``esim-fast predict``: label one pair or millions, in constant memory."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from ..data import UNKNOWN_ID, BadRow, Pair
from ..data.compression import compression_of
from ..errors import DataError
from ..scoring import NOT_FINITE
from ..streaming import Answer, predict_blocks
from ..terminal import is_watched
from . import common
from .options import UsageError, say


def run(options: argparse.Namespace) -> None:
    if (options.premise is None) != (options.hypothesis is None):
        raise UsageError("--premise and --hypothesis must be given together")
    if (options.premise is None) == (options.file is None):
        raise UsageError("give either a file (- for stdin) or --premise and --hypothesis")
    model = common.load_model(options)
    write = _Lines(model.labels)
    if options.file is None:
        answer = model.predict((options.premise, options.hypothesis))
        # A regression model returns a score.
        label, figures = (answer[0], answer[1].tolist()) if isinstance(answer, tuple) else (model.labels[0], [answer])
        if not all(map(math.isfinite, figures)):
            raise FloatingPointError(NOT_FINITE)
        pair = Pair(options.premise, options.hypothesis, None, 0)
        ids = [model.encode(sentence) for sentence in (options.premise, options.hypothesis)]
        unknown = ids[0].count(UNKNOWN_ID), ids[1].count(UNKNOWN_ID)
        print(write.line_of(Answer(pair, label, figures, unknown)), end="")
        _warn_of_unknown_words("the pair", sum(unknown), sum(map(len, ids)))
        return
    name, source = ("stdin", common.lines_of_stdin()) if options.file == "-" else (options.file, options.file)
    answered = left_out = words = unknown_words = 0

    def report(row: BadRow) -> None:
        nonlocal left_out
        left_out += 1
        with tqdm.external_write_mode(sys.stderr):
            common.list_bad_rows(name, [row])

    blocks = predict_blocks(
        model,
        source,
        write.line_of,
        name=name,
        corpus_format=common.corpus_format(options),
        batch_size=options.batch_size,
        on_bad_row=None if options.stop_at_bad_row else report,
        workers=common.workers(options),
    )
    with _progress(options.file) as bar, closing(blocks):
        for block in blocks:
            print("".join(block.answers), end="", flush=True)
            answered += len(block.answers)
            words, unknown_words = words + block.words, unknown_words + block.unknown_words
            bar.set_postfix_str(f"{answered:,} pairs", refresh=False)
            bar.update(block.size)
    if left_out > answered:
        raise DataError(
            f"{name}: {left_out:,} bad rows, and only {answered:,} that can be read (are the columns as expected?)"
        )
    _warn_of_unknown_words(name, unknown_words, words)
    if left_out:
        say(f"{name}: skipped {common.bad_rows(left_out)}")


def _warn_of_unknown_words(name: str, unknown: int, words: int) -> None:
    if unknown > words / 3:
        say(f"{name}: the model does not know {unknown:,} of {words:,} words; do not rely on its answers")


class _Lines:
    """Format the printed lines; json.dumps on the whole answer would take three times as long."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._text = json.JSONEncoder(ensure_ascii=False).encode
        self._gold: Callable[[str], object] = float if len(labels) == 1 else str  # a regression model's gold is a score
        names = {label: self._text(label).replace("%", "%%") for label in labels}
        figures = ", ".join(f"{name}: %.6f" for name in names.values())
        self._figures = {
            label: figures if len(labels) == 1 else f'"label": {name}, "probabilities": {{{figures}}}'
            for label, name in names.items()
        }

    def line_of(self, answer: Answer) -> str:
        (premise, hypothesis, gold, number, name), label, figures, unknown = answer
        where = f'"line": {number}, ' if number else ""  # a pair of the command line has none
        if name is not None:
            where += f'"id": {self._text(name)}, '
        said = "" if gold is None else f'"gold": {self._text(self._gold(gold))}, '
        return (
            f'{{{where}"premise": {self._text(premise)}, "hypothesis": {self._text(hypothesis)}, '
            f"{said}{self._figures[label] % tuple(figures)}, "
            f'"unknown_words": {{"premise": {unknown[0]}, "hypothesis": {unknown[1]}}}}}\n'
        )


def _progress(path: str) -> tqdm:
    """Return a bar that counts bytes read, hidden if the answers themselves scroll by."""
    goes_by = sys.stdout is not None and sys.stdout.isatty()
    # The total is unknown for stdin and compressed files.
    size = os.path.getsize(path) if Path(path).is_file() and not compression_of(path) else None
    return tqdm(
        desc=path, total=size, unit="B", unit_scale=True, delay=1, leave=False, disable=goes_by or not is_watched()
    )

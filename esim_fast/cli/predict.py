"""``esim-fast predict``: label pairs, one or millions of them, in constant memory."""

import argparse
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from tqdm import tqdm

from ..classifier import Classifier
from ..data import BadRow, DataError, EncodedPairs, Pair
from ..data.parallel import can_fork, map_in_processes, processors
from ..data.preparing import ROWS, chunks
from ..data.reading import (
    BadRowError,
    DelimitedRows,
    Record,
    RowParser,
    bounded_lines,
    corpus_form,
    corpus_lines,
    open_corpus,
    parse_record,
    shortened,
)
from . import options as common


def add(commands: Any) -> None:
    command = commands.add_parser("predict", help="label pairs", description=predict.__doc__)
    command.set_defaults(run=predict, parser=command)
    command.add_argument("model", metavar="MODEL_DIR")
    command.add_argument("file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin")
    command.add_argument("--premise", metavar="TEXT")
    command.add_argument("--hypothesis", metavar="TEXT")
    command.add_argument(
        "--stop-at-bad-row", action="store_true", help="end there, instead of reporting the row and going on"
    )
    common.add_reading(command)
    common.add_model_use(command)


def predict(options: argparse.Namespace) -> None:
    """Labels and probabilities as JSON lines, for one pair or a file of them, in its order. A row that cannot be read
    is reported on stderr and left out; each answer says which line it is of."""
    if (options.premise is None) != (options.hypothesis is None):
        raise common.UsageError("--premise and --hypothesis must be given together")
    if (options.premise is None) == (options.file is None):
        raise common.UsageError("give either a file (- for stdin) or --premise and --hypothesis")
    model = common.load_model(options)
    if options.file is None:
        label, probabilities = model.predict((options.premise, options.hypothesis))
        sys.stdout.write(
            _Lines(model.labels).of_pair(options.premise, options.hypothesis, label, probabilities.tolist())
        )
        return
    if options.file == "-":
        name, lines, size = "stdin", _lines_of_stdin(), None
    else:
        name, lines, size = options.file, corpus_lines(options.file)[0], _size(options.file)
    with _progress(name, size) as bar:
        _predict_lines(model, name, lines, options, bar)


def _predict_lines(
    model: Classifier, name: str, lines: Iterator[bytes], options: argparse.Namespace, bar: tqdm
) -> None:
    form = corpus_form(name)
    if name == "stdin":  # without a name to go by, the first byte tells JSON lines from tab-separated ones
        first = next(lines, b"")
        form = "jsonl" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else "tsv"
        lines = chain([first] if first else [], lines)
    records, parse = open_corpus(lines, name, common.layout(options), form=form, labelled=False)
    if options.columns is None and isinstance(parse, DelimitedRows):
        records = _checked(records, parse, name, model.labels)
    write = _Lines(model.labels)
    left_out = 0
    work = partial(_encode, parse=parse, encode=model.encode, name=name)
    arriving = _as_they_come(records) if name == "stdin" else chunks(records)
    with closing(_worked_on(work, arriving, model)) as parts:
        for part in parts:
            bad_rows = part.bad_rows[:1] if options.stop_at_bad_row else part.bad_rows
            pairs = part.before(bad_rows[0].line) if options.stop_at_bad_row and bad_rows else part
            scores = model.logits(EncodedPairs(pairs.premises, pairs.hypotheses, None), batch_size=options.batch_size)
            labels = [model.labels[index] for index in scores.argmax(1)]
            texts = map(write.of_row, pairs.pairs, labels, scores.softmax(1).tolist())
            sys.stdout.write("".join(texts))
            sys.stdout.flush()
            bar.update(part.size if bar.total else len(pairs.pairs))
            if bad_rows and (options.stop_at_bad_row or part.ended_early):
                raise DataError(f"{name}:{bad_rows[-1].line}: {bad_rows[-1].reason}")
            with tqdm.external_write_mode(sys.stderr):
                common.list_bad_rows(name, bad_rows)
            left_out += len(bad_rows)
    if left_out:
        common.say(f"{name}: {left_out:,} bad row{'' if left_out == 1 else 's'} left out")


class _Part(NamedTuple):
    """Some rows of a file, ready for the network."""

    pairs: list[Pair]
    premises: list[list[int]]
    hypotheses: list[list[int]]
    bad_rows: list[BadRow]
    size: int  # bytes
    ended_early: bool  # whether reading failed at the last bad row

    def before(self, line: int) -> "_Part":
        """The pairs that stand before a line."""
        count = sum(pair.line < line for pair in self.pairs)
        return self._replace(
            pairs=self.pairs[:count], premises=self.premises[:count], hypotheses=self.hypotheses[:count]
        )


def _encode(records: list[Record], parse: RowParser, encode: Callable[[str], list[int]], name: str) -> _Part:
    part = _Part([], [], [], [], sum(len(record.content) for record in records), records[-1].is_end)
    for record in records:
        try:
            pair = parse_record(record, parse)
        except BadRowError as error:
            part.bad_rows.append(BadRow(record.line, str(error)))
            continue
        try:
            premise, hypothesis = encode(pair.premise), encode(pair.hypothesis)
        except Exception as error:  # a tokeniser of the user's may raise anything
            raise DataError(f"{name}:{record.line}: tokeniser: {type(error).__name__}: {error}") from error
        part.pairs.append(pair)
        part.premises.append(premise)
        part.hypotheses.append(hypothesis)
    return part


def _worked_on(
    work: Callable[[list[Record]], _Part], parts: Iterator[list[Record]], model: Classifier
) -> Iterator[_Part]:
    """On a GPU, other processes split and look up words meanwhile; a CPU is busy with the network."""
    if model.net.device.type != "cpu" and processors() > 1 and can_fork():
        yield from map_in_processes(work, parts, processors())
    else:
        yield from map(work, parts)


def _as_they_come(records: Iterator[Record]) -> Iterator[list[Record]]:
    """As many records as have arrived, at least one: whoever writes them may wait for their answers."""
    arrived: Queue[Record | BaseException | None] = Queue(2 * ROWS)

    def read() -> None:
        try:
            for record in records:
                arrived.put(record)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    record = arrived.get()
    while isinstance(record, Record):
        part = []
        while isinstance(record, Record):
            part.append(record)
            if len(part) == ROWS or arrived.empty():
                break
            record = arrived.get()
        yield part
        if isinstance(record, Record):
            record = arrived.get()
    if record is not None:
        raise record


def _checked(records: Iterator[Record], parse: DelimitedRows, name: str, labels: Sequence[str]) -> Iterator[Record]:
    """Three columns without a header are taken for label, premise, hypothesis: are they?"""
    first = next(records, None)
    if first is None:
        return iter(())
    if first.line == 1:
        try:
            label = parse_record(first, parse).label
        except BadRowError:
            label = None
        if label is not None and label not in labels:
            raise DataError(
                f"{name}:1: expected a label of the model ({shortened(labels)}), a premise and a hypothesis, "
                f"got {label[:40]!r} first; if the columns stand otherwise, name them with --columns"
            )
    return chain([first], records)


class _Lines:
    """Writes what is printed of a pair: json.dumps of all of it would take three times as long."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._text = json.JSONEncoder(ensure_ascii=False).encode
        self._labels = {label: self._text(label) for label in labels}
        self._probabilities = ", ".join(f"{self._text(label).replace('%', '%%')}: %.6f" for label in labels)

    def of_row(self, pair: Pair, label: str, probabilities: Sequence[float]) -> str:
        return f'{{"line": {pair.line}, {self._answer(pair.premise, pair.hypothesis, label, probabilities)}}}\n'

    def of_pair(self, premise: str, hypothesis: str, label: str, probabilities: Sequence[float]) -> str:
        return f"{{{self._answer(premise, hypothesis, label, probabilities)}}}\n"

    def _answer(self, premise: str, hypothesis: str, label: str, probabilities: Sequence[float]) -> str:
        return (
            f'"premise": {self._text(premise)}, "hypothesis": {self._text(hypothesis)}, '
            f'"label": {self._labels[label]}, "probabilities": {{{self._probabilities % tuple(probabilities)}}}'
        )


def _lines_of_stdin() -> Iterator[bytes]:
    if sys.stdin is None:
        raise common.UsageError("stdin is closed")
    try:  # a reader of its own: at exit, Python waits for nobody who still reads there
        file: Any = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, io.UnsupportedOperation):
        file = sys.stdin.buffer
    return bounded_lines(file)


def _size(path: str) -> int | None:
    """Bytes that there are to read, where that is known: not of a compressed file."""
    return None if path.endswith(".gz") or not Path(path).is_file() else os.path.getsize(path)


def _progress(name: str, size: int | None) -> tqdm:
    """A bar for people who do not see the answers go by: in bytes, if it is known how many there are, or in pairs."""
    is_watched = sys.stderr is not None and sys.stderr.isatty() and not (sys.stdout and sys.stdout.isatty())
    unit = "B" if size else " pairs"
    return tqdm(desc=name, total=size, unit=unit, unit_scale=True, delay=1, leave=False, disable=not is_watched)

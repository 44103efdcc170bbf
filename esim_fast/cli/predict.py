"""``esim-fast predict``: label pairs, one or millions of them, in constant memory."""

import argparse
import io
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..classifier import Classifier
from ..data import BadRow, DataError, EncodedPairs, Pair
from ..data.parallel import processors
from ..data.preparing import ROWS, in_parts
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
from ..files import first_line
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
    job = _Job(model, name, parse, options.batch_size, options.stop_at_bad_row)
    left_out = 0
    with closing(_answers(job, records)) as parts:
        for part in parts:
            sys.stdout.write(part.text)
            sys.stdout.flush()
            bar.update(part.size if bar.total else part.pairs)
            if part.stopped_by is not None:
                raise DataError(f"{name}:{part.stopped_by.line}: {part.stopped_by.reason}")
            with tqdm.external_write_mode(sys.stderr):
                common.list_bad_rows(name, part.bad_rows)
            left_out += len(part.bad_rows)
    if left_out:
        common.say(f"{name}: {left_out:,} bad row{'' if left_out == 1 else 's'} left out")


class _Encoded(NamedTuple):
    """Some rows of a file as the network takes them."""

    pairs: list[Pair]
    premises: list[list[int]]
    hypotheses: list[list[int]]
    bad_rows: list[BadRow]
    stopped_by: BadRow | None  # the row that is the end of all, if there is one
    size: int  # bytes


class _Answers(NamedTuple):
    """What is printed of some rows."""

    text: str
    pairs: int
    bad_rows: list[BadRow]
    stopped_by: BadRow | None
    size: int


@dataclass(frozen=True)
class _Job:
    """What is done with the rows of a file, in this process or in others."""

    model: Classifier
    name: str
    parse: RowParser
    batch_size: int
    stop_at_bad_row: bool

    def encode(self, records: list[Record]) -> _Encoded:
        encoded = _Encoded([], [], [], [], None, sum(len(record.content) for record in records))
        for record in records:
            try:
                pair = parse_record(record, self.parse)
            except BadRowError as error:
                bad_row = BadRow(record.line, str(error))
                if self.stop_at_bad_row or record.is_end:
                    return encoded._replace(stopped_by=bad_row)
                encoded.bad_rows.append(bad_row)
                continue
            try:
                premise, hypothesis = self.model.encode(pair.premise), self.model.encode(pair.hypothesis)
            except Exception as error:  # a tokeniser of the user's may raise anything
                reason = f"tokeniser: {type(error).__name__}: {first_line(error)}"
                return encoded._replace(stopped_by=BadRow(record.line, reason))
            encoded.pairs.append(pair)
            encoded.premises.append(premise)
            encoded.hypotheses.append(hypothesis)
        return encoded

    def answer(self, rows: _Encoded) -> _Answers:
        scores = self.model.logits(EncodedPairs(rows.premises, rows.hypotheses, None), batch_size=self.batch_size)
        labels = (self.model.labels[index] for index in scores.argmax(1))
        text = "".join(map(_Lines(self.model.labels).of_row, rows.pairs, labels, scores.softmax(1).tolist()))
        return _Answers(text, len(rows.pairs), *rows[3:])

    def encode_and_answer(self, records: list[Record]) -> _Answers:
        if multiprocessing.parent_process() is not None:  # one of several, each on its core
            torch.set_num_threads(1)
        return self.answer(self.encode(records))


def _answers(job: _Job, records: Iterator[Record]) -> Generator[_Answers, None, None]:
    """All rows in their order.

    From stdin as they come. From a file in one process for each core, which is faster than all cores at one batch;
    where a GPU has the network, they split sentences and look words up meanwhile.
    """
    job.model.encode("")  # has the tokeniser import what it needs, once for all processes
    if job.name == "stdin":
        yield from map(job.answer, map(job.encode, _as_they_come(records)))
    elif job.model.net.device.type == "cpu":
        yield from in_parts(job.encode_and_answer, records, processors())
    else:
        with closing(in_parts(job.encode, records, processors())) as parts:
            yield from map(job.answer, parts)


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

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
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..classifier import Classifier
from ..data import TOKENIZERS, BadRow, EncodedPairs, Pair
from ..data.parallel import is_wanted, processors
from ..data.preparing import BYTES, ROWS, in_parts
from ..data.reading import (
    DelimitedRows,
    Form,
    Record,
    RowParser,
    bounded_lines,
    corpus_form,
    corpus_lines,
    open_corpus,
    parse_record,
    shortened,
)
from ..errors import BadRowError, DataError
from . import options as common

_NOT_FINITE = "the network gives something else than finite numbers"


def add(commands: Any) -> None:
    command = commands.add_parser("predict", help="label pairs", description=predict.__doc__)
    command.set_defaults(run=predict, parser=command)
    command.add_argument("model", metavar="MODEL_DIR")
    command.add_argument(
        "file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin: tab-separated, or .jsonl"
    )
    command.add_argument("--premise", type=common.text, metavar="TEXT")
    command.add_argument("--hypothesis", type=common.text, metavar="TEXT")
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
        if not probabilities.isfinite().all():
            raise FloatingPointError(_NOT_FINITE)
        write = _Lines(model.labels)
        print(write.of_pair(options.premise, options.hypothesis, label, probabilities.tolist()), end="")
        return
    if options.file == "-":
        name, form, lines = "stdin", *_lines_of_stdin()
    else:
        name, form, lines = options.file, corpus_form(options.file), corpus_lines(options.file)[0]
    records, parse = open_corpus(lines, name, common.corpus_format(options), form=form, labeled=False)
    if options.columns is None and isinstance(parse, DelimitedRows):
        records = _checked(records, parse, name, model.labels)
    job = _Job(model, parse, options.batch_size, options.stop_at_bad_row)
    with _progress(options.file) as bar, closing(_answers(job, records, options.file == "-")) as parts:
        _print_answers(name, parts, bar)


def _print_answers(name: str, parts: Iterator["_Part"], bar: tqdm) -> None:
    answered = left_out = 0
    for part in parts:
        print(part.text, end="", flush=True)
        answered += part.answers
        left_out += len(part.bad_rows)
        bar.set_postfix_str(f"{answered:,} pairs", refresh=False)
        bar.update(part.size)
        if part.bad_rows:
            with tqdm.external_write_mode(sys.stderr):
                common.list_bad_rows(name, part.bad_rows)
        if part.stopped_by is not None:
            raise DataError(f"{name}:{part.stopped_by.line}: {part.stopped_by.reason}")
    if left_out > answered:
        raise DataError(
            f"{name}: {left_out:,} bad rows, and {answered:,} that can be read: are the columns as expected?"
        )
    if left_out:
        common.say(f"{name}: {left_out:,} bad row{'' if left_out == 1 else 's'} left out")


class _Part(NamedTuple):
    """Some rows of a file: first as the network takes them, then with what is printed of them."""

    pairs: list[Pair]
    premises: list[list[int]]
    hypotheses: list[list[int]]
    bad_rows: list[BadRow]
    size: int  # bytes
    stopped_by: BadRow | None = None  # the row that is the end of all, if there is one
    text: str = ""
    answers: int = 0


@dataclass(frozen=True)
class _Job:
    """What is done with the rows of a file, in this process or in others."""

    model: Classifier
    parse: RowParser
    batch_size: int
    stop_at_bad_row: bool

    def encode(self, records: list[Record]) -> _Part:
        part = _Part([], [], [], [], sum(len(record.content) for record in records))
        for record in records:
            if not is_wanted():
                break
            try:
                pair = parse_record(record, self.parse)
                premise, hypothesis = self.model.encode(pair.premise), self.model.encode(pair.hypothesis)
            except BadRowError as error:
                bad_row = BadRow(record.line, str(error))
                if self.stop_at_bad_row or record.is_end:
                    return part._replace(stopped_by=bad_row)
                part.bad_rows.append(bad_row)
                continue
            except DataError as error:  # of a tokenizer of the user's
                return part._replace(stopped_by=BadRow(record.line, str(error)))
            part.pairs.append(pair)
            part.premises.append(premise)
            part.hypotheses.append(hypothesis)
        return part

    def answer(self, part: _Part) -> _Part:
        encoded = EncodedPairs(part.premises, part.hypotheses, None)
        probabilities = self.model.logits(encoded, batch_size=self.batch_size).softmax(1)
        count = len(part.pairs)
        if is_wanted() and not probabilities.isfinite().all():
            count = int(probabilities.isfinite().all(1).logical_not().nonzero()[0])
            part = part._replace(stopped_by=BadRow(part.pairs[count].line, _NOT_FINITE))
        labels = (self.model.labels[index] for index in probabilities[:count].argmax(1))
        rows = map(_Lines(self.model.labels).of_row, part.pairs[:count], labels, probabilities[:count].tolist())
        return part._replace(text="".join(rows), answers=count, pairs=[], premises=[], hypotheses=[])

    def encode_and_answer(self, records: list[Record]) -> _Part:
        if multiprocessing.parent_process() is not None:  # one of several, each on its core
            torch.set_num_threads(1)
        return self.answer(self.encode(records))


def _answers(job: _Job, records: Iterator[Record], as_they_come: bool) -> Generator[_Part, None, None]:
    """All rows in their order.

    From stdin as they come. From a file in one process for each core, which is faster than all cores at one batch;
    where a GPU has the network, they split sentences and look words up meanwhile.
    """
    if job.model.tokenizer in TOKENIZERS:
        job.model.encode("")  # has the tokenizer import what it needs, once for all processes
    if as_they_come:
        yield from map(job.answer, map(job.encode, _as_they_come(records)))
    elif job.model.net.device.type == "cpu":
        yield from in_parts(job.encode_and_answer, records, processors())
    else:
        with closing(in_parts(job.encode, records, processors())) as parts:
            yield from map(job.answer, parts)


def _as_they_come(records: Iterator[Record]) -> Iterator[list[Record]]:
    """As many records as have arrived, at least one: whoever writes them may wait for their answers."""
    changed = threading.Condition()
    arrived: list[Record] = []
    size = 0  # bytes
    is_over, problem = False, None

    def has_room() -> bool:
        return len(arrived) < ROWS and size < BYTES

    def has_news() -> bool:
        return bool(arrived) or is_over

    def read() -> None:
        nonlocal size, is_over, problem
        try:
            for record in records:
                with changed:
                    changed.wait_for(has_room)
                    arrived.append(record)
                    size += len(record.content)
                    changed.notify()
        except BaseException as error:  # it is for the other thread to raise
            problem = error
        with changed:
            is_over = True
            changed.notify()

    threading.Thread(target=read, daemon=True).start()
    while True:
        with changed:
            changed.wait_for(has_news)
            part, arrived, size = arrived, [], 0
            changed.notify()
        if not part:
            break
        yield part
    if problem is not None:
        raise problem


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


def _lines_of_stdin() -> tuple[Form, Iterator[bytes]]:
    """Without a name to go by, the first byte tells JSON lines from tab-separated ones."""
    if sys.stdin is None:
        raise common.UsageError("stdin is closed")
    try:  # a reader of its own: at exit, Python waits for nobody who still reads there
        file: Any = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, io.UnsupportedOperation):
        file = sys.stdin.buffer
    lines = bounded_lines(file)
    first = next(lines, b"")
    form: Form = "jsonl" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else "tsv"
    return form, chain([first] if first else [], lines)


def _progress(path: str) -> tqdm:
    """A bar for people who do not see the answers go by, in bytes that were read."""
    is_watched = sys.stderr is not None and sys.stderr.isatty() and not (sys.stdout and sys.stdout.isatty())
    # How many bytes there are to read is not known of stdin or a compressed file.
    size = os.path.getsize(path) if Path(path).is_file() and not path.endswith(".gz") else None
    return tqdm(desc=path, total=size, unit="B", unit_scale=True, delay=1, leave=False, disable=not is_watched)

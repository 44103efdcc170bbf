"""Run a model over files of sentence pairs of any size, in constant memory.

From a script, with an ``esim_fast.Classifier``:

    for answer in predict_file(model, "pairs.tsv"):
        print(answer.pair.line, answer.label, answer.probabilities)
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar, cast

from .classifier import Classifier
from .data import UNKNOWN_ID, BadRow, CorpusFormat, EncodedPairs, Pair
from .data.parallel import ShouldStop, never, processors
from .data.parsing import DelimitedRows, label_name
from .data.preparing import BYTES, ROWS, in_parts
from .data.reading import KNOWN_NAMES, Form, RowParser, corpus_lines, open_corpus, parse_record
from .data.records import Record
from .errors import BadRowError, DataError, listed
from .scoring import NOT_FINITE
from .tokenizing import NOT_PLAIN, TOKENIZERS

Written = TypeVar("Written")


class Answer(NamedTuple):
    """The prediction for a row.

    Attributes:
        pair: as in the file, with its line number.
        label: the predicted label; for a regression model, the score's name.
        probabilities: in the order of ``Classifier.labels``; for a regression model, only the score.
        unknown_words: how many words of the premise and of the hypothesis the model does not know.
    """

    pair: Pair
    label: str
    probabilities: list[float]
    unknown_words: tuple[int, int]


@dataclass(frozen=True)
class Block(Generic[Written]):
    """Consecutive rows of a file that were processed together."""

    answers: list[Written]
    bad_rows: list[BadRow]  # skipped rows
    size: int  # bytes of all these rows
    stopped_by: BadRow | None  # the row at which reading stopped, if any
    words: int = 0  # in the answered rows
    unknown_words: int = 0


def predict_file(
    model: Classifier,
    source: str | os.PathLike[str] | Iterable[bytes],
    *,
    corpus_format: CorpusFormat = KNOWN_NAMES,
    batch_size: int = 256,
    on_bad_row: Callable[[BadRow], object] | None = None,
) -> Generator[Answer, None, None]:
    """Yield a model's prediction for each pair of a file, in order, with a few thousand rows in memory at a time.

    If the network is on a CPU, one process per core handles a share of the rows. If it is on a GPU, those processes
    tokenize sentences and look up words. They end with the iterator.

    Args:
        model: the model.
        source: a file as for ``esim_fast.data.read_pairs``, with or without labels. Or an iterable of lines, such as a
            pipe, of tab-separated columns or JSON; these are answered as they arrive, in this process.
        corpus_format: as for ``esim_fast.data.read_pairs``.
        batch_size: pairs per forward pass; pairs of similar length are batched together.
        on_bad_row: called, some answers later, for each row that cannot be read; the row is skipped. None makes such a
            row an error.

    Yields:
        The prediction for each row, an ``Answer``.

    Raises:
        TypeError: ``source`` is neither a path nor lines of bytes.
        DataError: the file cannot be read any further, a row is malformed, the tokenizer fails, or the network returns
            NaN or infinity. Rows before that are answered first.
    """
    how: dict[str, Any] = {"corpus_format": corpus_format, "batch_size": batch_size, "on_bad_row": on_bad_row}
    with closing(predict_blocks(model, source, lambda answer: answer, **how)) as blocks:
        for block in blocks:
            yield from block.answers


def predict_blocks(
    model: Classifier,
    source: str | os.PathLike[str] | Iterable[bytes],
    write: Callable[[Answer], Written],
    *,
    name: str = "lines",
    corpus_format: CorpusFormat = KNOWN_NAMES,
    batch_size: int = 256,
    on_bad_row: Callable[[BadRow], object] | None = None,
    workers: int | None = None,
) -> Generator[Block[Written], None, None]:
    """Yield blocks of rows instead of single answers, and report their bad rows after each block.

    Args:
        model: as for ``predict_file``.
        source: a file or lines.
        write: turns each ``Answer`` into an element of the block; may run in a worker process.
        name: name of ``source`` in messages if it is not a path.
        corpus_format: columns and labels.
        batch_size: pairs per forward pass.
        on_bad_row: called for each row that is skipped.
        workers: number of processes; by default one for each processor that this process may use.

    Raises:
        DataError: as in ``predict_file``.
    """
    form: Form
    if is_file := isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        lines, form = corpus_lines(name)
    else:  # without a file name, the first byte tells JSON lines from tab-separated ones
        lines = iter(source)
        first = next(lines, b"")
        if not isinstance(first, bytes):
            raise TypeError(f"source must be a path or lines of bytes, got {type(first).__name__} as the first line")
        form = "json" if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") else "tsv"
        lines = chain([first] if first else [], lines)
    corpus_format = replace(corpus_format, scores=model.task == "regression")
    records, parse = open_corpus(lines, name, corpus_format, form=form, labeled=False, look_ahead=is_file)
    if corpus_format.columns is None and isinstance(parse, DelimitedRows) and not parse.scores:
        records = _checked(records, parse, name, model.labels)
    job = _Job(model, parse, write, batch_size, stop_at_bad_row=on_bad_row is None)
    with closing(_answered(job, records, not is_file, workers or processors())) as blocks:
        for block in blocks:
            yield block
            if on_bad_row is not None:
                for row in block.bad_rows:
                    on_bad_row(row)
            if block.stopped_by is not None:
                raise DataError(f"{name}:{block.stopped_by.line}: {block.stopped_by.reason}")


class _Encoded(NamedTuple):
    """A row as the network takes it."""

    pair: Pair
    premise: list[int]
    hypothesis: list[int]


@dataclass(frozen=True)
class _Job(Generic[Written]):
    """What to do with the rows of a file, in this process or in workers."""

    model: Classifier
    parse: RowParser
    write: Callable[[Answer], Written]
    batch_size: int
    stop_at_bad_row: bool

    def encode(self, records: list[Record], should_stop: ShouldStop = never) -> Block[_Encoded]:
        """Parse and encode rows; the returned block holds encoded rows instead of answers."""
        block: Block[_Encoded] = Block([], [], sum(len(record.content) for record in records), None)
        for record in records:
            if should_stop():
                raise KeyboardInterrupt
            try:
                pair = parse_record(record, self.parse)
                premise, hypothesis = self.model.encode(pair.premise), self.model.encode(pair.hypothesis)
            except (BadRowError, DataError) as error:
                bad_row = BadRow(record.line, str(error))
                # A DataError comes from a custom tokenizer, so it would recur in every row.
                if self.stop_at_bad_row or record.is_end or isinstance(error, DataError):
                    return replace(block, stopped_by=bad_row)
                block.bad_rows.append(bad_row)
            else:
                block.answers.append(_Encoded(pair, premise, hypothesis))
        return block

    def answer(self, block: Block[_Encoded], should_stop: ShouldStop = never) -> Block[Written]:
        rows, stopped_by = block.answers, block.stopped_by
        encoded = EncodedPairs([row.premise for row in rows], [row.hypothesis for row in rows], None)
        logits = self.model.logits(encoded, batch_size=self.batch_size, should_stop=should_stop)
        probabilities = logits if self.model.task == "regression" else self.model.probabilities(logits)
        count = int(probabilities.isfinite().all(1).cumprod(0).sum())  # rows before the first that is not finite
        if count < len(rows):
            stopped_by = BadRow(rows[count].pair.line, NOT_FINITE)
        labels = (self.model.labels[index] for index in self.model.decide(probabilities[:count]))
        unknown = [(row.premise.count(UNKNOWN_ID), row.hypothesis.count(UNKNOWN_ID)) for row in rows[:count]]
        answers = map(Answer, (row.pair for row in rows), labels, probabilities[:count].tolist(), unknown)
        words = sum(len(row.premise) + len(row.hypothesis) for row in rows[:count])
        written = list(map(self.write, answers))
        return Block(written, block.bad_rows, block.size, stopped_by, words, sum(map(sum, unknown)))

    def encode_and_answer(self, records: list[Record], should_stop: ShouldStop) -> Block[Written]:
        return self.answer(self.encode(records, should_stop), should_stop)


def _answered(
    job: _Job[Written], records: Iterator[Record], as_they_come: bool, workers: int
) -> Generator[Block[Written], None, None]:
    """Yield all rows in order."""
    if as_they_come:
        yield from map(job.answer, map(job.encode, _as_they_come(records)))
        return
    if job.model.tokenizer in TOKENIZERS:
        job.model.encode(NOT_PLAIN)  # make the tokenizer import everything before processes are forked
    if job.model.net.device.type == "cpu":  # one process per core is faster than all cores on one batch
        yield from in_parts(job.encode_and_answer, records, workers)
    else:
        with closing(in_parts(job.encode, records, workers)) as parts:
            yield from map(job.answer, parts)


def _as_they_come(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Yield the records that have arrived, at least one at a time: the writer may be waiting for their answers."""
    changed = threading.Condition()
    arrived: list[Record] = []
    size = 0  # bytes
    end: BaseException | None = None  # why reading ended: StopIteration or an error
    is_wanted = True

    def has_room() -> bool:
        return not is_wanted or (len(arrived) < ROWS and size < BYTES)

    def has_news() -> bool:
        return bool(arrived) or end is not None

    def read() -> None:
        nonlocal size, end
        reason: BaseException = StopIteration()
        try:
            for record in records:
                with changed:
                    changed.wait_for(has_room)
                    if not is_wanted:
                        return
                    arrived.append(record)
                    size += len(record.content)
                    changed.notify()
        except BaseException as error:  # raised in the other thread
            reason = error
        with changed:
            end = reason
            changed.notify()

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(has_news)
                part, arrived, size = arrived, [], 0
                changed.notify()
            if part:
                yield part
            elif isinstance(end, StopIteration):
                return
            else:
                raise cast(BaseException, end)
    finally:
        with changed:
            is_wanted = False
            changed.notify()


def _checked(records: Iterator[Record], parse: DelimitedRows, name: str, labels: Sequence[str]) -> Iterator[Record]:
    """Check that the label column of a headerless file, which was guessed, holds one of the model's labels."""
    first = next(records, None)
    if first is None:
        return iter(())
    if first.line == 1:
        try:
            label = parse_record(first, parse).label
        except BadRowError:
            label = None
        if label is not None and label not in {label_name(name, {}) for name in labels}:
            raise DataError(
                f"{name}:1: column {parse.columns.places['label'] + 1} was taken for the label: expected one of the "
                f"model's ({listed(labels)}), got {label[:40]!r}; if it is another column, name them with --columns"
            )
    return chain([first], records)

"""Read corpora of sentence pairs; errors name the file and the line.

Files have one of four forms. All but Parquet may be compressed (``.gz``, ``.bz2``, ``.xz``, or ``.zip`` of one file):

* ``.jsonl`` and ``.json``: one object per line, or a single array of objects.
* ``.csv``: comma-separated columns; fields may be in double quotes.
* ``.parquet``: needs the extra ``esim_fast[hub]``.
* Anything else: tab-separated columns, without quoting unless ``CorpusFormat.quoted`` is set.

If the first lines all have another delimiter, that one is used. Columns and keys are recognized by the names that known
corpora use (see ``columns.py``), in any order and among any others. Without a header, the columns are label, premise,
hypothesis or premise, hypothesis, label, whichever the first rows look like.

Rows are numbered by line. Those of an array or a Parquet file are numbered one by one.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, TypeAlias

from ..delimiters import is_delimiter
from ..errors import BadRowError, DataError
from .columns import NAMES, PARTS, detected_delimiter, find_columns, split_row
from .compression import BYTE_ORDER_MARK, UNREADABLE, unpacked_name, what_it_is
from .hub import dataset_lines, parquet_lines
from .parsing import DelimitedRows, JsonRows, Pair, decode, id_key, parse_object, parse_sentence, part_of
from .records import Record, numbered, read_json, read_raw_lines

Form: TypeAlias = Literal["tsv", "csv", "json"]

_SAMPLE_ROWS, _SAMPLE_BYTES = 200, 2**22  # to look at before deciding on columns
_SAMPLE_LINES = 20  # to detect the delimiter
_ALL_BAD_FROM = 10  # bad rows, if they are nearly all rows: then the whole file is wrong
_FORMS: dict[str, Form] = {"csv": "csv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "json"}


class BadRow(NamedTuple):
    """A row that cannot be read, and why.

    Attributes:
        line: the row's line in the file, counted from 1.
        reason: what is wrong with it.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class CorpusFormat:
    """How the rows of a corpus are written, if its name and header do not say it.

    Attributes:
        columns: the columns of premise, hypothesis and, if there is one, label: names in the header, keys of an object,
            or numbers counted from 1. None: find them by the known names.
        quoted: whether fields of a tab-separated file may be in double quotes, as in Quora's release of QQP.
        text: whether the file is plain text with one sentence per line, of which only the words are used.
        delimiter: one ASCII character that separates columns. None: a tab, or a comma in ``.csv``, unless the first
            lines suggest another.
        label_map: new names for labels, by their names in the file; "-" stands for no gold label.
        scores: whether labels are scores, as in STS-B. They must be numbers, and their columns have other known names.

    Raises:
        TypeError: ``columns`` is a string.
        ValueError: ``delimiter`` is not an ASCII character that can separate columns.
    """

    columns: tuple[str, ...] | None = None
    quoted: bool = False
    text: bool = False
    delimiter: str | None = None
    label_map: Mapping[str, str] = field(default_factory=dict, hash=False)
    scores: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise TypeError(f"columns must be a sequence of names or numbers, got {self.columns!r}")
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(map(str, self.columns)))
        object.__setattr__(self, "label_map", dict(self.label_map))
        if self.delimiter is not None and (not isinstance(self.delimiter, str) or not is_delimiter(self.delimiter)):
            got = f"got {self.delimiter!r}"
            raise ValueError(f"delimiter must be one ASCII character other than a quote, letter or digit, {got}")


KNOWN_NAMES = CorpusFormat()


RowParser: TypeAlias = Callable[[bytes, int], Pair]  # called with a row's bytes and line; raises BadRowError


def read_pairs(
    path: str | os.PathLike[str],
    corpus_format: CorpusFormat = KNOWN_NAMES,
    *,
    labeled: bool = True,
    on_bad_row: Callable[[BadRow], object] | None = None,
) -> Iterator[Pair]:
    """Yield the sentence pairs of a file.

    Args:
        path: the file, or ``hub:NAME#SPLIT``.
        corpus_format: how the rows are written.
        labeled: whether every row needs a label; a gold label of "-" or -1 is read as None. If false, labels and their
            column may be missing.
        on_bad_row: called for each malformed row, which is then skipped. If None, such a row raises ``DataError``.

    Yields:
        The pairs, in the file's order.

    Raises:
        DataError: the file cannot be read, a row is malformed, or the header lacks a column.
    """
    name = os.fspath(path)
    lines, form = corpus_lines(name)
    return parse_pairs(lines, name, corpus_format, form=form, labeled=labeled, on_bad_row=on_bad_row, look_ahead=True)


def parse_pairs(
    lines: Iterable[bytes],
    name: str,
    corpus_format: CorpusFormat,
    *,
    form: Form,
    labeled: bool,
    on_bad_row: Callable[[BadRow], object] | None = None,
    look_ahead: bool = False,
) -> Iterator[Pair]:
    """Yield the pairs of any source of lines, which messages call ``name``.

    Each pair is yielded as soon as its line arrives, unless ``look_ahead`` is set (see ``open_corpus``).
    """
    records, parse = open_corpus(lines, name, corpus_format, form=form, labeled=labeled, look_ahead=look_ahead)
    for record in records:
        try:
            yield parse_record(record, parse)
        except BadRowError as error:
            if on_bad_row is None:
                raise DataError(f"{name}:{record.line}: {error}") from error
            on_bad_row(BadRow(record.line, str(error)))


def parse_record(record: Record, parse: RowParser) -> Pair:
    """Parse a record into a pair; raise BadRowError if that fails."""
    if record.problem is not None:
        raise BadRowError(record.problem)
    pair = parse(record.content, record.line)
    if "\0" in pair.premise or "\0" in pair.hypothesis or (pair.label and "\0" in pair.label):
        raise BadRowError("NUL character")
    return pair


def open_corpus(
    lines: Iterable[bytes], name: str, corpus_format: CorpusFormat, *, form: Form, labeled: bool, look_ahead: bool
) -> tuple[Iterator[Record], RowParser]:
    """Return the unparsed rows of a corpus, and a function that parses them in any process.

    Args:
        lines: lines as bytes, for example ``sys.stdin.buffer``; text streams split at more than line feeds.
        name: what messages call the source.
        corpus_format: how the rows are written.
        form: the form of the lines.
        labeled: whether every row needs a label.
        look_ahead: whether to wait for up to 200 rows before yielding the first one. They settle the
            delimiter, the columns if there is no header, and whether the file is of another kind altogether.

    Raises:
        DataError: the first rows are malformed or do not settle the columns.
    """
    wanted = corpus_format.columns
    if labeled and wanted is not None and len(wanted) < len(NAMES):
        raise DataError(f"{name}: expected columns of premise, hypothesis and label, got {', '.join(wanted)}")
    begun, lines = _begin(lines, _SAMPLE_LINES if look_ahead else 1)
    if begun and (what := _no_text(begun[0])) is not None:
        raise DataError(f"{name}: expected text in UTF-8, got {what}")
    if corpus_format.text:
        return numbered(lines, None, text=True), parse_sentence
    if form == "json" or (begun and is_object(begun[0])):  # SciTail has JSON in files named .txt
        sample, records = _sample(numbered(lines, None), look_ahead)
        parse: RowParser = _json_rows(sample, corpus_format, labeled)
    else:
        try:
            delimiter = _delimiter(begun, corpus_format, form)
        except BadRowError as error:
            raise DataError(f"{name}: {error}") from error
        sample, records = _sample(numbered(lines, delimiter), look_ahead)
        if not sample:
            return records, parse_sentence
        rows = _delimited_rows(sample, corpus_format, delimiter, labeled, name)
        parse = rows
        if rows.columns.header is not None:
            next(records)
            sample = sample[1:]
    if look_ahead:
        _refuse_other_kinds(sample, parse, name)
    return records, parse


def _begin(lines: Iterable[bytes], count: int) -> tuple[list[bytes], Iterator[bytes]]:
    """Return the first lines, and an iterator over all lines."""
    begun: list[bytes] = []
    lines = iter(lines)
    try:
        begun.extend(islice(lines, count))
    except UNREADABLE as error:
        return begun, chain(begun, _raising(error))
    return begun, chain(begun, lines)


def _raising(error: BaseException) -> Iterator[bytes]:
    raise error
    yield


def _no_text(line: bytes) -> str | None:
    """Return what kind of file this is, with the remedy, if its first line shows that it is not UTF-8 text."""
    what = what_it_is(line)
    if what is None and line.count(b"\0") > len(line) / 3:
        return "NUL characters (UTF-16 without a byte order mark? Convert it with iconv -f UTF-16LE -t UTF-8 OLD > NEW)"
    return what


def is_object(line: bytes) -> bool:
    """Return whether a line is a JSON object."""
    if not line.removeprefix(BYTE_ORDER_MARK).startswith(b"{"):
        return False
    try:
        parse_object(line.removeprefix(BYTE_ORDER_MARK))
    except BadRowError:
        return False
    return True


def _sample(records: Iterator[Record], look_ahead: bool) -> tuple[list[Record], Iterator[Record]]:
    """Return the first rows, and an iterator over all rows."""
    sample: list[Record] = []
    size = 0
    for record in islice(records, _SAMPLE_ROWS if look_ahead else 1):
        sample.append(record)
        size += len(record.content)
        if size > _SAMPLE_BYTES:
            break
    return sample, chain(sample, records)


def _delimiter(lines: Sequence[bytes], corpus_format: CorpusFormat, form: Form) -> str | None:
    """Return the delimiter, or None for tabs in a file without quoting."""
    usual = "," if form == "csv" else "\t"
    delimiter = corpus_format.delimiter
    if delimiter is None:
        delimiter = detected_delimiter([line.decode(errors="replace").rstrip("\r\n") for line in lines], usual)
    return None if delimiter == "\t" and form == "tsv" and not corpus_format.quoted else delimiter


def _json_rows(sample: Sequence[Record], corpus_format: CorpusFormat, labeled: bool) -> JsonRows:
    first: dict[str, Any] = {}
    if sample:
        with contextlib.suppress(BadRowError):
            first = parse_object(sample[0].content)
    part = _known_part(part_of(first)) if labeled else None
    ids = id_key(first, corpus_format.columns or ())
    return JsonRows(corpus_format.columns, labeled, corpus_format.label_map, part, corpus_format.scores, ids)


def _known_part(part: str | None) -> str | None:
    return part if part is not None and part.strip().lower() in PARTS else None


def _delimited_rows(
    sample: Sequence[Record], corpus_format: CorpusFormat, delimiter: str | None, labeled: bool, name: str
) -> DelimitedRows:
    first, *others = sample
    try:
        if first.problem is not None:
            raise BadRowError(first.problem)
        rows = [split_row(decode(first.content), delimiter)]
        for record in others:
            with contextlib.suppress(BadRowError):
                rows.append(split_row(decode(record.content), delimiter))
        is_quoted = all(re.fullmatch('".*"', value, re.DOTALL) for value in chain(*rows))
        if delimiter is None and len(rows) > 1 and is_quoted:
            raise BadRowError("all fields are in double quotes; use --quoted")
        columns = find_columns(rows, corpus_format.columns, labeled, corpus_format.scores)
    except BadRowError as error:
        raise DataError(f"{name}:{first.line}: {error}") from error
    part = None
    if columns.split is not None:
        part = _known_part(next((row[columns.split] for row in rows[1:] if len(row) in columns.widths), None))
    return DelimitedRows(columns, delimiter, labeled, corpus_format.label_map, part, corpus_format.scores)


def _refuse_other_kinds(sample: Sequence[Record], parse: RowParser, name: str) -> None:
    """Raise DataError if nearly no row can be read, instead of reporting each with the same reason."""
    bad: list[BadRow] = []
    for record in sample:
        try:
            parse_record(record, parse)
        except BadRowError as error:
            bad.append(BadRow(record.line, str(error)))
    if len(bad) >= max(_ALL_BAD_FROM, 0.9 * len(sample)):
        others = f"{len(bad)} of the first {len(sample)} rows cannot be read"
        raise DataError(f"{name}:{bad[0].line}: {bad[0].reason} ({others})")


def corpus_lines(name: str) -> tuple[Iterator[bytes], Form]:
    """Return the lines of a corpus and their form."""
    form = corpus_form(name)
    if name.startswith("hub:"):
        return dataset_lines(name), form
    if name.lower().endswith(".parquet"):
        return parquet_lines(name), form
    return (read_json if form == "json" else read_raw_lines)(name), form


def corpus_form(name: str) -> Form:
    """Return the form of a file by its name."""
    return "json" if name.startswith("hub:") else _FORMS.get(unpacked_name(name).rpartition(".")[2], "tsv")

"""Corpora of sentence pairs, read so that every mistake in a file is named by file and line.

Three forms are understood, each also compressed with gzip (a name that ends in ``.gz``):

* ``.jsonl``: an object a line;
* ``.csv``: comma-separated columns, fields in double quotes where need be;
* anything else: tab-separated columns, without quoting unless :attr:`CorpusFormat.quoted` says otherwise.

Columns and keys are recognized by the names that SNLI, MultiNLI, QQP and LCQMC give them, in any order and among any
others. Without a header the columns are label, premise, hypothesis.

Only a line feed (optionally after a carriage return) ends a row: sentences from the web hold U+2028 and its like.
"""

import csv
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import chain
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from ..errors import BadRowError, DataError, listed, naming, reason_of
from .compression import UNREADABLE, open_file, unpacked_name
from .hub import dataset_lines

Form: TypeAlias = Literal["tsv", "csv", "jsonl"]

LONGEST_LINE = 1_000_000  # bytes; whatever is longer is no sentence pair and must not fill the memory
_MOST_LINES = 50  # of a row with line breaks inside quotes: more, and a quote was forgotten
_NAMES = {
    "premise": ("sentence1", "premise", "question1", "text_a"),
    "hypothesis": ("sentence2", "hypothesis", "question2", "text_b"),
    "label": ("gold_label", "label", "is_duplicate"),
}
_LEFT_OUT = ["label2", "label3", "label4", "label5"]  # columns of MultiNLI's header that its training rows lack
_NO_LABEL = "-"  # what SNLI and MultiNLI write where the annotators did not agree
_OTHER_FILES = {b"\x1f\x8b": "a gzip file? Its name should end in .gz", b"\xff\xfe": "UTF-16?", b"\xfe\xff": "UTF-16?"}


class Pair(NamedTuple):
    """Two sentences and how they relate; ``label`` is None where nobody said, ``line`` counts from 1 in its file."""

    premise: str
    hypothesis: str
    label: str | None
    line: int


class BadRow(NamedTuple):
    """A row that could not be read, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class CorpusFormat:
    """How the rows of a corpus are written, where its name and header do not say it.

    Attributes:
        columns: where premise, hypothesis and (if there is one) label stand: names in the header or keys of an object,
            or numbers of columns, counted from 1. None: by the known names.
        quoted: whether the fields of a tab-separated file may be in double quotes, as in Quora's own release of QQP.
        text: whether there are no columns, but a sentence a line, of which only the words are wanted.
    """

    columns: tuple[str, ...] | None = None
    quoted: bool = False
    text: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise TypeError(f"columns must be a sequence of names or numbers, got {self.columns!r}")
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(map(str, self.columns)))


KNOWN_NAMES = CorpusFormat()


class Record(NamedTuple):
    """One row as it stands in the file, or why it cannot be had."""

    line: int
    content: bytes
    problem: str | None = None
    is_end: bool = False  # whether the file could not be read any further


RowParser: TypeAlias = Callable[[bytes, int], Pair]  # of a row's bytes and line; raises BadRowError


def read_pairs(
    path: str | os.PathLike[str],
    corpus_format: CorpusFormat = KNOWN_NAMES,
    *,
    labeled: bool = True,
    on_bad_row: Callable[[BadRow], object] | None = None,
) -> Iterator[Pair]:
    """Yield the pairs of a file, one after the other.

    With ``labeled`` every row needs a label, and the label of rows whose gold label is "-" is None. Without it labels
    may be missing, as may their column.

    Args:
        on_bad_row: called for each row that is not as it should be, which is then left out. With None such a row is an
            error.

    Raises:
        DataError: the file cannot be read, a row is malformed, or the header lacks a column.
    """
    name = os.fspath(path)
    lines, form = corpus_lines(name)
    return parse_pairs(lines, name, corpus_format, form=form, labeled=labeled, on_bad_row=on_bad_row)


def parse_pairs(
    lines: Iterable[bytes],
    name: str,
    corpus_format: CorpusFormat,
    *,
    form: Form,
    labeled: bool,
    on_bad_row: Callable[[BadRow], object] | None = None,
) -> Iterator[Pair]:
    """The same for lines from anywhere, each pair as soon as its line arrives; ``name`` is what messages call them."""
    records, parse = open_corpus(lines, name, corpus_format, form=form, labeled=labeled)
    for record in records:
        try:
            yield parse_record(record, parse)
        except BadRowError as error:
            if on_bad_row is None:
                raise DataError(f"{name}:{record.line}: {error}") from error
            on_bad_row(BadRow(record.line, str(error)))


def parse_record(record: Record, parse: RowParser) -> Pair:
    """The pair of a record; BadRowError if there is none."""
    if record.problem is not None:
        raise BadRowError(record.problem)
    pair = parse(record.content, record.line)
    if "\0" in pair.premise or "\0" in pair.hypothesis or (pair.label and "\0" in pair.label):
        raise BadRowError("NUL character")
    return pair


def open_corpus(
    lines: Iterable[bytes], name: str, corpus_format: CorpusFormat, *, form: Form, labeled: bool
) -> tuple[Iterator[Record], RowParser]:
    """The rows of a corpus, not yet parsed, and what parses them, in whatever process.

    Args:
        lines: undecoded lines, for example ``sys.stdin.buffer``: text streams split at more than line feeds.
        name: what messages call the source.

    Raises:
        DataError: the first row, which settles the columns, is not as it should be.
    """
    wanted = corpus_format.columns
    if labeled and wanted is not None and len(wanted) < len(_NAMES):
        raise DataError(f"{name}: expected columns of premise, hypothesis and label, got {', '.join(wanted)}")
    delimiter = "," if form == "csv" else "\t" if corpus_format.quoted and form == "tsv" else None
    if corpus_format.text:
        return _records(lines, None, text=True), parse_sentence
    records = _records(lines, delimiter)
    if form == "jsonl":
        return records, JsonRows(wanted, labeled)
    first = next(records, None)
    if first is None:
        return records, DelimitedRows({}, (0,), delimiter)
    try:
        if first.problem is not None:
            raise BadRowError(first.problem)
        fields = _split(_decode(first.content), delimiter)
        columns, is_header = _find_columns(fields, wanted, labeled)
    except BadRowError as error:
        raise DataError(f"{name}:{first.line}: {error}") from error
    if not is_header:
        return chain([first], records), DelimitedRows(columns, (len(fields),), delimiter)
    lacking = len(_LEFT_OUT) if fields[-len(_LEFT_OUT) :] == _LEFT_OUT else 0
    return records, DelimitedRows(columns, (len(fields), len(fields) - lacking), delimiter)


def corpus_lines(name: str) -> tuple[Iterator[bytes], Form]:
    """The lines of a corpus, and their form."""
    lines = dataset_lines(name) if name.startswith("hub:") else read_raw_lines(name)
    return lines, corpus_form(name)


def corpus_form(name: str) -> Form:
    """What a file of this name holds."""
    ending = "jsonl" if name.startswith("hub:") else unpacked_name(name).rpartition(".")[2]
    return "csv" if ending == "csv" else "jsonl" if ending == "jsonl" else "tsv"


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield a file's lines as :func:`bounded_lines` does.

    Raises:
        DataError: the file cannot be read, from its beginning or from some line on.
    """
    name, read = os.fspath(path), 0
    try:
        for line in read_raw_lines(name):
            read += 1
            yield line
    except UNREADABLE as error:
        raise DataError(f"{name}:{read + 1}: {reason_of(error)}") from error


def read_raw_lines(name: str) -> Iterator[bytes]:
    """The same, but what goes wrong after the file was opened comes as Python raises it."""
    with naming(name):
        file = open_file(name)
    with file:
        yield from bounded_lines(file)


def bounded_lines(file: IO[bytes] | BufferedIOBase) -> Iterator[bytes]:
    """Yield lines with their line feeds; of one of more than ``LONGEST_LINE`` bytes, that many and one, without."""
    while line := file.readline(LONGEST_LINE + 2):
        if len(line) > LONGEST_LINE + 1 and not line.endswith(b"\n"):
            yield line[: LONGEST_LINE + 1]
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
        else:
            yield line


class _Lines:
    """Lines to take one by one, with a way to put some back."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._returned: deque[bytes] = deque()
        self.problem: str | None = None  # why there are no more, if reading failed

    def take(self) -> bytes | None:
        if self._returned:
            return self._returned.popleft()
        try:
            return next(self._lines, None)
        except UNREADABLE as error:
            self._lines, self.problem = iter(()), reason_of(error)
            return None

    def put_back(self, lines: Sequence[bytes]) -> None:
        self._returned.extendleft(reversed(lines))


def _records(lines: Iterable[bytes], delimiter: str | None, *, text: bool = False) -> Iterator[Record]:
    """Number the rows, and put together those that hold line breaks between quotes.

    Blank lines may only end a file, but in a text they do not matter.
    """
    source = _Lines(lines)
    number = blank = 0  # blank: how many such lines have come one after the other
    while (line := source.take()) is not None:
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        if not line.rstrip(b"\r\n"):
            blank += not text
            continue
        if blank:
            yield Record(number - blank, b"", "blank line" if blank == 1 else f"{blank} blank lines")
            blank = 0
        if len(line) > LONGEST_LINE and len(line.rstrip(b"\r\n")) > LONGEST_LINE:
            yield Record(number, b"", f"expected at most {LONGEST_LINE} bytes in a row, got more")
        elif delimiter is None or b'"' not in line:
            yield Record(number, line)
        else:
            following = _rest_of_row(line, source, delimiter.encode())
            if following is None:
                yield Record(number, b"", "a double quote is not closed, or not followed by the next field")
            else:
                yield Record(number, line + b"".join(following))
                number += len(following)
    if source.problem is not None:
        yield Record(number + 1, b"", source.problem, is_end=True)


def _rest_of_row(line: bytes, source: _Lines, delimiter: bytes) -> list[bytes] | None:
    """The following lines that belong to a row, because it has quotes around line breaks.

    None if its quoting is not valid; then the following lines stay where they are.
    """
    following: list[bytes] = []
    length = len(line)
    is_open = _ends_in_quotes(line, False, delimiter)
    while is_open and len(following) < _MOST_LINES - 1 and length <= LONGEST_LINE:
        more = source.take()
        if more is None:
            break
        following.append(more)
        length += len(more)
        is_open = _ends_in_quotes(more, True, delimiter)
    if is_open is False and length <= LONGEST_LINE + 2:
        return following
    source.put_back(following)
    return None


def _ends_in_quotes(line: bytes, is_open: bool, delimiter: bytes) -> bool | None:
    """Whether a line ends inside quotes, given whether it begins there; None if a quote is where none may be."""
    place, end = 0, len(line.rstrip(b"\r\n"))
    while True:
        if is_open:
            place = line.find(b'"', place) + 1
            if not place:
                return True
            if line.startswith(b'"', place):  # doubled, it stands for itself
                place += 1
            elif place >= end:
                return False
            elif line.startswith(delimiter, place):
                place, is_open = place + 1, False
            else:
                return None
        elif line.startswith(b'"', place):  # only at the beginning of a field is it more than a character
            place, is_open = place + 1, True
        else:
            place = line.find(delimiter, place) + 1
            if not place:
                return False


def _decode(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        hint = next((f" ({what})" for begin, what in _OTHER_FILES.items() if content.startswith(begin)), "")
        raise BadRowError(f"not valid UTF-8 at byte {error.start + 1}{hint}") from error
    return text.removesuffix("\n").removesuffix("\r")


def _split(text: str, delimiter: str | None) -> list[str]:
    """The fields of a row; without a delimiter they are separated by tabs, and quotes are characters like any other."""
    if delimiter is None:
        return text.split("\t")
    if "\0" in text:  # which Python 3.10 cannot split
        raise BadRowError("NUL character")
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadRowError(f"not valid quoting: {error}") from error


def _find_columns(fields: Sequence[str], wanted: Sequence[str] | None, labeled: bool) -> tuple[dict[str, int], bool]:
    """Which column is which, and whether the first row is a header."""
    fields = [field.strip() for field in fields]
    lower = [field.lower() for field in fields]
    named = {role: next((lower.index(name) for name in names if name in lower), None) for role, names in _NAMES.items()}
    known = {role: column for role, column in named.items() if column is not None}
    required = tuple(_NAMES) if labeled else ("premise", "hypothesis")
    if wanted is not None and all(map(str.isdecimal, wanted)):
        columns = {role: int(number) - 1 for role, number in zip(_NAMES, wanted, strict=False)}
        columns = {role: column for role, column in columns.items() if role in required or column < len(fields)}
        most = max(columns.values()) + 1
        if most > len(fields):
            raise BadRowError(f"expected at least {most} columns, got {len(fields)}")
        # A header by the known names is one, even if nobody needs it.
        return columns, len(columns.items() & known.items()) >= 2
    if wanted is not None:
        names = dict(zip(_NAMES, wanted, strict=False))
        for role, name in names.items():
            if name not in fields and role in required:
                raise BadRowError(f"expected a column {name} in the header, got {listed(fields)}")
        return {role: fields.index(name) for role, name in names.items() if name in fields}, True
    if len(known) >= 2:
        for role in required:
            if role not in known:
                raise BadRowError(f"expected a column {_either(_NAMES[role])} in the header, got {listed(fields)}")
        return known, True
    if len(fields) == 3:
        return {"label": 0, "premise": 1, "hypothesis": 2}, False
    if len(fields) == 2 and not labeled:
        return {"premise": 0, "hypothesis": 1}, False
    expected = f"{'3' if labeled else '2 or 3'} columns, a header with known names, or to be told the columns"
    raise BadRowError(f"expected {expected}, got {len(fields)}: {listed(fields)}")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


@dataclass(frozen=True)
class DelimitedRows:
    """Parses the rows of a file of columns, once its first row has settled which is which."""

    columns: dict[str, int]
    widths: tuple[int, ...]  # how many columns a row may have
    delimiter: str | None

    def __call__(self, content: bytes, line: int) -> Pair:
        fields = _split(_decode(content), self.delimiter)
        if len(fields) not in self.widths:
            unquoted = self.delimiter is None and any(field.startswith('"') for field in fields)
            hint = " (are there quoted fields?)" if unquoted else ""
            raise BadRowError(f"expected {self.widths[0]} columns, got {len(fields)}{hint}")
        premise, hypothesis = fields[self.columns["premise"]], fields[self.columns["hypothesis"]]
        label = fields[self.columns["label"]] if "label" in self.columns else None
        return Pair(premise, hypothesis, _checked_label(label), line)


def parse_sentence(content: bytes, line: int) -> Pair:
    """Takes each line for a sentence by itself, a premise without a hypothesis."""
    return Pair(_decode(content), "", None, line)


class JsonRows:
    """Parses the rows of a file that holds a JSON object a line."""

    def __init__(self, columns: Sequence[str] | None, labeled: bool) -> None:
        self.keys = _NAMES if columns is None else {role: (key,) for role, key in zip(_NAMES, columns, strict=False)}
        self.labeled = labeled

    def __call__(self, content: bytes, line: int) -> Pair:
        try:
            record = json.loads(_decode(content))
        except json.JSONDecodeError as error:
            raise BadRowError(f"not valid JSON at character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:  # a number with thousands of digits; nesting as deep
            raise BadRowError(f"not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadRowError("expected a JSON object")
        premise, hypothesis = (self._text(record, role) for role in ("premise", "hypothesis"))
        has_label = self.labeled or any(record.get(key) is not None for key in self.keys.get("label", ()))
        label = self._text(record, "label") if has_label else None
        return Pair(premise, hypothesis, _checked_label(label), line)

    def _text(self, record: dict[str, Any], role: str) -> str:
        key = next((key for key in self.keys[role] if key in record), None)
        if key is None:
            raise BadRowError(f"expected a key {_either(self.keys[role])}, got {listed(list(record)) or 'none'}")
        value = record[key]
        if role == "label" and isinstance(value, int):  # a class by number, or true and false
            return json.dumps(value)
        if not isinstance(value, str):
            raise BadRowError(f"{key}: expected a string, got {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no file of ours could hold
            raise BadRowError(f"{key}: not valid Unicode at character {error.start + 1}") from error
        return value


def _checked_label(label: str | None) -> str | None:
    if label is not None:
        label = label.strip()  # blanks around it would make another label of it, which nobody sees
        if not label:
            raise BadRowError("empty label")
    return None if label == _NO_LABEL else label

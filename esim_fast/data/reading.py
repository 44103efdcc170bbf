"""Corpora of sentence pairs, read so that every mistake in a file is named by file and line.

Two forms are understood, each also compressed with gzip (a name that ends in ``.gz``):

* ``.jsonl``: an object a line, with the keys of SNLI and MultiNLI (gold_label, sentence1, sentence2) or label, premise
  and hypothesis;
* anything else: tab-separated columns without quoting.  A header is recognised by those same names, in any order and
  among any others, as in the official snli_1.0_*.txt; without one the columns are label, premise, hypothesis.

Only a line feed (optionally after a carriage return) ends a row: sentences from the web hold U+2028 and its like.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

_NAMES = {
    "label": ("gold_label", "label"),
    "premise": ("sentence1", "premise"),
    "hypothesis": ("sentence2", "hypothesis"),
}
_NO_LABEL = "-"  # what SNLI and MultiNLI write where the annotators did not agree


class DataError(ValueError):
    """A mistake in a user's file: one line that names the file, the line in it and what was expected."""


class _BadRowError(Exception):
    """What is wrong with one row; whoever knows its file and line makes a DataError of it."""


class Pair(NamedTuple):
    """Two sentences and how they relate; ``label`` is None where nobody said, ``line`` counts from 1 in its file."""

    premise: str
    hypothesis: str
    label: str | None
    line: int


@dataclass(frozen=True)
class Corpus:
    """The pairs of one file; ``dropped`` rows were left out because their gold label is "-"."""

    path: str
    pairs: list[Pair]
    dropped: int


def read_pairs(path: str | os.PathLike[str], *, labelled: bool = True) -> Corpus:
    """Read a corpus.

    With ``labelled`` every row needs a label, and rows labelled "-" are dropped and counted.  Without it labels may be
    missing, as may their column, and every row is kept; "-" becomes None.

    Raises:
        DataError: the file cannot be read, a row is malformed, or no pair is left.
    """
    name = os.fspath(path)
    rows = list(parse_pairs(read_lines(name), name, form=form_of(name), labelled=labelled))
    pairs = [row for row in rows if row.label is not None] if labelled else rows
    dropped = len(rows) - len(pairs)
    if not pairs:
        raise DataError(
            f"{name}: expected sentence pairs, got " + (f"only {dropped} labelled -" if dropped else "none")
        )
    return Corpus(name, pairs, dropped)


def parse_pairs(
    lines: Iterable[bytes],
    name: str,
    *,
    form: Literal["tsv", "jsonl"],
    labelled: bool = True,
) -> Iterator[Pair]:
    """Yield the pair of every row as it arrives, including the rows labelled "-", whose label is None.

    Args:
        lines: undecoded lines, for example ``sys.stdin.buffer``: text streams split at more than line feeds.
        name: what messages call the source.
        labelled: whether a row without a label is an error.

    Raises:
        DataError: a malformed row.
    """
    parse = _TsvRows(labelled) if form == "tsv" else _JsonRows(labelled)
    blank = None  # the first blank line: an error only once something follows it
    for number, line in enumerate(lines, start=1):
        try:
            text = _decode(line, first=number == 1)
            if not text:
                blank = blank or number
                continue
            if blank is not None:
                raise DataError(f"{name}:{blank}: blank line")
            row = parse(text)
        except _BadRowError as error:
            raise DataError(f"{name}:{number}: {error}") from error
        if row is not None:
            yield Pair(**row, line=number)


def form_of(name: str) -> Literal["tsv", "jsonl"]:
    """What a file of this name holds."""
    return "jsonl" if name.removesuffix(".gz").endswith(".jsonl") else "tsv"


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield a file's lines, each with its line feed; raise a DataError naming the file where it cannot be read."""
    try:
        with open_file(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from error


def open_file(path: str | os.PathLike[str], mode: Literal["rb", "wb"]) -> IO[bytes]:
    """Open a file of bytes, through gzip where its name ends in ``.gz``."""
    return gzip.open(path, mode) if os.fspath(path).endswith(".gz") else open(path, mode)  # type: ignore[return-value]


def _decode(line: bytes, *, first: bool) -> str:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise _BadRowError(f"not valid UTF-8 at byte {error.start + 1}") from error
    return text.removesuffix("\n").removesuffix("\r")


class _TsvRows:
    """Parses the rows of one tab-separated file; its first row settles which column is which."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled
        self.columns: dict[str, int] = {}
        self.width = 0

    def __call__(self, text: str) -> dict[str, str | None] | None:
        fields = text.split("\t")
        if not self.columns:
            self.columns, is_header = self._find_columns(fields)
            self.width = len(fields)
            if is_header:
                return None
        # MultiNLI's training rows leave out the last columns that their header names, so those may be missing.
        if not max(self.columns.values()) < len(fields) <= self.width:
            raise _BadRowError(f"expected {self.width} columns, got {len(fields)}")
        row: dict[str, str | None] = {role: fields[column] for role, column in self.columns.items()}
        row["label"] = _checked_label(row.get("label"))
        return row

    def _find_columns(self, fields: list[str]) -> tuple[dict[str, int], bool]:
        found = {}
        for role, names in _NAMES.items():
            present = [name for name in names if name in fields]
            if present:
                found[role] = fields.index(present[0])
        if len(found) >= 2:
            for role in _NAMES if self.labelled else ("premise", "hypothesis"):
                if role not in found:
                    raise _BadRowError(f"expected a column {' or '.join(_NAMES[role])} in the header")
            return found, True
        if len(fields) == 3:
            return {"label": 0, "premise": 1, "hypothesis": 2}, False
        if len(fields) == 2 and not self.labelled:
            return {"premise": 0, "hypothesis": 1}, False
        raise _BadRowError(f"expected {'3' if self.labelled else '2 or 3'} columns, got {len(fields)}")


class _JsonRows:
    """Parses the rows of one file that holds a JSON object a line."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __call__(self, text: str) -> dict[str, str | None]:
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise _BadRowError(f"not valid JSON at character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:  # a number with thousands of digits; nesting as deep
            raise _BadRowError(f"not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise _BadRowError("expected a JSON object")
        return {
            "premise": self._text(record, "premise"),
            "hypothesis": self._text(record, "hypothesis"),
            "label": _checked_label(self._text(record, "label", optional=not self.labelled)),
        }

    @staticmethod
    def _text(record: dict[str, Any], role: str, optional: bool = False) -> str | None:
        names = _NAMES[role]
        key = next((name for name in names if name in record), None)
        if optional and (key is None or record[key] is None):
            return None
        if key is None:
            raise _BadRowError(f"expected a key {' or '.join(names)}")
        value = record[key]
        if not isinstance(value, str):
            raise _BadRowError(f"{key}: expected a string, got {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no file of ours could hold
            raise _BadRowError(f"{key}: not valid Unicode at character {error.start + 1}") from error
        return value


def _checked_label(label: str | None) -> str | None:
    if label == "":
        raise _BadRowError("empty label")
    return None if label == _NO_LABEL else label

"""Split a file's bytes into numbered rows without parsing them.

Only a line feed, optionally after a carriage return, ends a row. Text from the web contains other line separators, such
as U+2028, inside sentences.
"""

import codecs
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedIOBase
from itertools import chain
from typing import IO, NamedTuple

from ..errors import DataError, naming, reason_of
from .compression import BYTE_ORDER_MARK, UNREADABLE, open_file

LONGEST_LINE = 1_000_000  # bytes; a longer line is not a sentence pair and must not fill up memory
_BLOCK = 2**16  # bytes of an array to read at a time
_BLANKS = re.compile(r"[ \t\r\n]*")
_MOST_LINES = 50  # in a row with quoted line breaks; more lines mean an unclosed quote


class Record(NamedTuple):
    """One row of a file as raw bytes, or the reason why it cannot be read."""

    line: int
    content: bytes
    problem: str | None = None
    is_end: bool = False  # whether the rest of the file is unreadable


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield a file's lines as ``bounded_lines`` does.

    Raises:
        DataError: the file, or the rest of it, cannot be read.
    """
    name, read = os.fspath(path), 0
    try:
        for line in read_raw_lines(name):
            read += 1
            yield line
    except UNREADABLE as error:
        raise DataError(f"{name}:{read + 1}: {reason_of(error)}") from error


def read_raw_lines(name: str) -> Iterator[bytes]:
    """Do the same as ``read_lines``, but pass on errors after opening as Python raises them."""
    with naming(name):
        file = open_file(name)
    with file:
        yield from bounded_lines(file)


def bounded_lines(file: IO[bytes] | BufferedIOBase, first: bytes = b"") -> Iterator[bytes]:
    """Yield lines with their line feeds; cut longer ones to ``LONGEST_LINE + 1`` bytes without a line feed.

    Args:
        file: the file to read.
        first: what ``readline(LONGEST_LINE + 2)`` has already returned.
    """
    while line := first or file.readline(LONGEST_LINE + 2):
        first = b""
        if len(line) > LONGEST_LINE + 1 and not line.endswith(b"\n"):
            yield line[: LONGEST_LINE + 1]
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
        else:
            yield line


def read_json(name: str) -> Iterator[bytes]:
    """Yield the rows of a file that holds one JSON object per line, or a single array of objects."""
    with naming(name):
        file = open_file(name)
    with file:
        first = file.readline(LONGEST_LINE + 2)
        if first.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
            yield from _elements(chain([first], iter(lambda: file.read(_BLOCK), b"")))
        else:
            yield from bounded_lines(file, first)


class MalformedFileError(OSError):
    """The rest of a file cannot be split into rows."""


def _elements(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each object of a JSON array as soon as it is complete.

    Raises:
        MalformedFileError: the input is not an array of objects.
    """
    texts = _decoded(blocks)
    text, place, before = "", 0, "["  # before: the token required before the next element
    scan = json.JSONDecoder().raw_decode
    while True:
        place = _BLANKS.match(text, place).end()  # type: ignore[union-attr]
        object_end = None
        if text.startswith("{", place) and not before:
            try:
                _, object_end = scan(text, place)
            except json.JSONDecodeError as error:
                if len(text) - place > LONGEST_LINE:
                    raise MalformedFileError(
                        f"not valid JSON, or an object of more than {LONGEST_LINE} bytes"
                    ) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep nesting
                raise MalformedFileError(f"not valid JSON: {error}") from error
        if object_end is not None:
            yield text[place:object_end].encode(errors="surrogateescape")
            place, before = object_end, ","
        elif before and text.startswith(before, place):
            place, before = place + 1, ""
        elif before != "[" and text.startswith("]", place):
            rest = chain([text[place + 1 :]], texts)
            if any(map(str.strip, rest)):
                raise MalformedFileError("expected the end of the file after the array")
            return
        elif place < len(text) and (before or text[place] != "{"):
            raise MalformedFileError(
                f"expected {repr(before) if before else 'an object'} in the array, got {text[place]!a}"
            )
        else:
            more = next(texts, None)
            if more is None:
                raise MalformedFileError("the file ends inside its array, or the rest is not valid JSON")
            text, place = text[place:] + more, 0


def _decoded(blocks: Iterable[bytes]) -> Iterator[str]:
    # Keep invalid UTF-8, so that the error can name the object that contains it.
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    yield from map(decoder.decode, blocks)
    yield decoder.decode(b"", final=True)


class _Lines:
    """An iterator over lines that can take lines back."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._returned: deque[bytes] = deque()
        self.problem: str | None = None  # the error that ended reading, if any

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


def numbered(lines: Iterable[bytes], delimiter: str | None, *, text: bool = False) -> Iterator[Record]:
    """Number the rows, and join the lines of a row that has line breaks inside quotes.

    Blank lines are allowed only at the end of a file, or anywhere if ``text`` is true.
    """
    source = _Lines(lines)
    number = blank = 0  # blank: consecutive blank lines so far
    while (line := source.take()) is not None:
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            if _is_of_carriage_returns(line):
                yield Record(
                    1, b"", "lines end in carriage returns only; convert with tr '\\r' '\\n' < OLD > NEW", is_end=True
                )
                return
        if not line.rstrip(b"\r\n"):
            blank += not text
            continue
        if blank:
            yield Record(number - blank, b"", "blank line" if blank == 1 else f"{blank} blank lines")
            blank = 0
        if len(line) > LONGEST_LINE and len(line.rstrip(b"\r\n")) > LONGEST_LINE:
            yield Record(number, b"", f"expected at most {LONGEST_LINE} bytes per row, got more")
        elif delimiter is None or b'"' not in line:
            yield Record(number, line)
        else:
            following = _rest_of_row(line, source, delimiter.encode())
            if following is None:
                yield Record(number, b"", "a double quote is not closed, or is not followed by the next field")
            else:
                yield Record(number, line + b"".join(following))
                number += len(following)
    if source.problem is not None:
        yield Record(number + 1, b"", source.problem, is_end=True)


def _is_of_carriage_returns(line: bytes) -> bool:
    """Return whether lines end in CR alone (classic Mac OS), given the first line, which is then the whole file."""
    return b"\n" not in line and b"\r" in line.rstrip(b"\r")


def _rest_of_row(line: bytes, source: _Lines, delimiter: bytes) -> list[bytes] | None:
    """Take the lines that continue a row because it has line breaks inside quotes.

    If the quoting is invalid, return None and put the lines back.
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
    """Return whether a line ends inside quotes, given whether it begins there; None if a quote is misplaced."""
    place, end = 0, len(line.rstrip(b"\r\n"))
    while True:
        if is_open:
            place = line.find(b'"', place) + 1
            if not place:
                return True
            if line.startswith(b'"', place):  # a doubled quote is a literal one
                place += 1
            elif place >= end:
                return False
            elif line.startswith(delimiter, place):
                place, is_open = place + 1, False
            else:
                return None
        elif line.startswith(b'"', place):  # a quote is special only at the beginning of a field
            place, is_open = place + 1, True
        else:
            place = line.find(delimiter, place) + 1
            if not place:
                return False

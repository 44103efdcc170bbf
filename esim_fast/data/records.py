"""From a file's bytes to numbered rows, which are not parsed yet.

Only a line feed (optionally after a carriage return) ends a row: sentences from the web hold U+2028 and its like.
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

LONGEST_LINE = 1_000_000  # bytes; whatever is longer is no sentence pair and must not fill the memory
_BLOCK = 2**16  # bytes of an array that are read at once
_BLANKS = re.compile(r"[ \t\r\n]*")
_MOST_LINES = 50  # of a row with line breaks inside quotes: more, and a quote was forgotten


class Record(NamedTuple):
    """One row as it stands in the file, or why it cannot be had."""

    line: int
    content: bytes
    problem: str | None = None
    is_end: bool = False  # whether the file could not be read any further


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


def bounded_lines(file: IO[bytes] | BufferedIOBase, first: bytes = b"") -> Iterator[bytes]:
    """Yield lines with their line feeds; of one of more than ``LONGEST_LINE`` bytes, that many and one, without.

    ``first`` is what ``readline(LONGEST_LINE + 2)`` has returned already.
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
    """Yield the rows of a file that holds a JSON object a line, or a single array of objects."""
    with naming(name):
        file = open_file(name)
    with file:
        first = file.readline(LONGEST_LINE + 2)
        if first.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
            yield from _elements(chain([first], iter(lambda: file.read(_BLOCK), b"")))
        else:
            yield from bounded_lines(file, first)


class MalformedFileError(OSError):
    """A file in which no further row can be found."""


def _elements(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the objects of a JSON array, each as soon as it is there.

    Raises:
        MalformedFileError: what follows is no such array.
    """
    texts = _decoded(blocks)
    text, place, before = "", 0, "["  # before: what must come before the next element
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
            except (ValueError, RecursionError) as error:  # a number with thousands of digits; nesting as deep
                raise MalformedFileError(f"not valid JSON: {error}") from error
        if object_end is not None:
            yield text[place:object_end].encode(errors="surrogateescape")
            place, before = object_end, ","
        elif before and text.startswith(before, place):
            place, before = place + 1, ""
        elif before != "[" and text.startswith("]", place):
            rest = chain([text[place + 1 :]], texts)
            if any(map(str.strip, rest)):
                raise MalformedFileError("expected the end of the file after its array")
            return
        elif place < len(text) and (before or text[place] != "{"):
            raise MalformedFileError(
                f"expected {repr(before) if before else 'an object'} in the array, got {text[place]!a}"
            )
        else:
            more = next(texts, None)
            if more is None:
                raise MalformedFileError("the file ends within its array, or is no valid JSON from here on")
            text, place = text[place:] + more, 0


def _decoded(blocks: Iterable[bytes]) -> Iterator[str]:
    # Bytes that are no UTF-8 come through, to be reported with the object that they are in.
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    yield from map(decoder.decode, blocks)
    yield decoder.decode(b"", final=True)


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


def numbered(lines: Iterable[bytes], delimiter: str | None, *, text: bool = False) -> Iterator[Record]:
    """Number the rows, and put together those that hold line breaks between quotes.

    Blank lines may only end a file, but in a text they do not matter.
    """
    source = _Lines(lines)
    number = blank = 0  # blank: how many such lines have come one after the other
    while (line := source.take()) is not None:
        number += 1
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            if _is_of_carriage_returns(line):
                yield Record(
                    1, b"", "lines end in carriage returns alone: convert them: tr '\\r' '\\n' < OLD > NEW", is_end=True
                )
                return
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


def _is_of_carriage_returns(line: bytes) -> bool:
    """Whether the lines of a file end in CR alone, as on the classic Mac: then its first line is all of it."""
    return b"\n" not in line and b"\r" in line.rstrip(b"\r")


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

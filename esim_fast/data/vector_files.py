"""Read the vectors of given words from large files.

Files hold millions of words, of which tens of thousands are wanted. They are read in blocks, and only the wanted rows
are parsed, so that memory is bounded by the result. Several processes read large text files in byte ranges.
"""

import io
import math
import os
import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain, takewhile
from typing import NamedTuple, TypeAlias

import numpy as np

from ..errors import BadRowError, DataError, naming, one_line, reason_of
from .compression import BYTE_ORDER_MARK, UNREADABLE, compression_of, open_file, unpacked_name
from .npz_vectors import LONGEST_WORD, WIDEST, OnRead, npz_rows
from .parallel import ShouldStop, can_fork, map_in_processes, processors
from .reading import BadRow
from .vector_kinds import BLANKS, fields_of, is_number, is_row, is_text, other_than_vectors

Row: TypeAlias = tuple[str, np.ndarray] | BadRow  # a word with its vector, or a row that cannot be used

_LONGEST_LINE = 2**20  # bytes
_LONGEST_HEADER = 100  # bytes to quote in a message
_BLOCK = 2**18  # bytes to read at a time, few enough to stay in a CPU's cache
_RANGE = 2**25  # bytes of text for each process; a file of less than two ranges is read by this process
_HEADER = re.compile(rb"(\d{1,18})[ \t](\d{1,18})\s*")  # word2vec's first line: rows, numbers per row


def wanted_rows(
    name: str, wanted: Collection[str], most_bad: int, on_read: OnRead = lambda size: None
) -> Generator[Row, None, None]:
    """Yield the wanted words with their float32 or float16 vectors, and the bad rows, in the file's order.

    Close the generator if you do not exhaust it.

    In text files, rows of other words are checked only for being too short and for NUL bytes. In ``.npz`` and binary
    files, a bad row's ``line`` is the row, counted from 1.

    Args:
        name: the file.
        wanted: the words to look for.
        most_bad: bad rows to tolerate; after more of them, reading may stop early.
        on_read: called now and then with the number of (uncompressed) bytes read since the last call.

    Raises:
        DataError: the file cannot be read, or is not what its name says.
    """
    form = form_of(name)
    if form == "npz":
        return npz_rows(name, wanted, on_read)
    return _binary_rows(name, wanted, on_read) if form == "binary" else _text_rows(name, wanted, most_bad, on_read)


def form_of(name: str) -> str:
    """Return the form of a file with this name: "npz", "binary" or "text"."""
    if name.lower().endswith(".npz"):
        return "npz"
    return "binary" if unpacked_name(name).endswith(".bin") else "text"


class _Layout(NamedTuple):
    """The layout of a text file, which its first two lines determine."""

    rows: int | None  # the number of rows, if the first line is a header
    dimension: int
    separator: bytes  # after the word: a space, or a tab, in which case tabs may separate the numbers too
    begin: int  # the offset of the first row in bytes


class _ScannedLines(NamedTuple):
    """The result of scanning some lines."""

    lines: int  # without trailing blank lines
    blank: int  # trailing blank lines
    words: list[str]
    vectors: np.ndarray  # float32 [words, dimension]
    bad_rows: list[BadRow]  # with lines counted from 1 within these lines
    size: int = 0  # bytes in all these lines
    end: str | None = None  # why the next line cannot be read


def _text_rows(name: str, wanted: Collection[str], most_bad: int, on_read: OnRead) -> Generator[Row, None, None]:
    blocks = _blocks(name)
    first = _first_blocks(blocks, name)
    if not first:
        return
    layout = _layout(b"".join(first), name)
    spellings = {spelling.encode(): spelling for spelling in wanted}
    beginnings = {spelling.partition(layout.separator)[0] for spelling in spellings}
    scan = partial(_scan, wanted=spellings, beginnings=beginnings, layout=layout, most_bad=most_bad)
    workers = _workers(name)
    scanned: Generator[list[_ScannedLines], None, None]
    if workers > 1 and can_fork():
        scanned = map_in_processes(partial(_scan_range, name=name, scan=scan), _ranges(name, layout.begin), workers)
    else:
        scanned = ([lines] for lines in scan(_line_blocks(chain(first, blocks)), skipped=layout.begin))
    number = header = 0 if layout.rows is None else 1  # lines so far
    blank = 0  # blank lines after those, which are valid only at the end of the file
    with closing(scanned):
        for found in chain.from_iterable(scanned):
            on_read(found.size)
            yield from zip(found.words, found.vectors, strict=True)
            if found.lines:
                for line in range(number + 1, number + blank + 1):
                    yield BadRow(line, _too_few(b"", layout))
                number, blank = number + blank, 0
            yield from (BadRow(number + row.line, row.reason) for row in found.bad_rows)
            number, blank = number + found.lines, blank + found.blank
            if found.end is not None:
                raise DataError(f"{name}:{number + blank + 1}: {found.end}")
    count = number - header
    if layout.rows is not None and count != layout.rows:
        yield BadRow(number + 1, f"expected {layout.rows} rows, as line 1 says, but the file ends after {count}")


def _first_blocks(blocks: Iterator[bytes], name: str) -> list[bytes]:
    """Return the beginning of a file, up to its second line unless the lines are too long."""
    found: list[bytes] = []
    lines = size = 0
    try:
        while lines < 2 and size <= _LONGEST_LINE and (block := next(blocks, b"")):
            found.append(block)
            lines, size = lines + block.count(b"\n"), size + len(block)
    except BadRowError as error:
        raise DataError(f"{name}:{lines + 1}: {error}") from error
    return found


def _layout(beginning: bytes, name: str) -> _Layout:
    """Work out a text file's layout from its beginning; raise DataError if it does not hold vectors as text."""
    mark = len(BYTE_ORDER_MARK) if beginning.startswith(BYTE_ORDER_MARK) else 0
    line, line_feed, rest = beginning[mark:].partition(b"\n")
    line_end = mark + len(line + line_feed)
    line = line.rstrip(BLANKS)
    header = _HEADER.fullmatch(line)
    if not header and (what := other_than_vectors(beginning)) and (b"\0" in line or not is_number(fields_of(line)[-1])):
        raise DataError(f"{name}: expected word vectors as text, got {what}")
    if len(line) > _LONGEST_LINE:
        raise DataError(f"{name}:1: {_too_long()}")
    if b"\0" in line:
        raise DataError(f"{name}:1: NUL byte")
    row = rest.partition(b"\n")[0].rstrip(BLANKS) if header else line
    behind_tab = fields_of(row.partition(b"\t")[2])
    has_tabs = all(map(is_number, behind_tab)) and (not header or len(behind_tab) == int(header[2]))
    dimension = int(header[2]) if header else len(behind_tab) if has_tabs else line.count(b" ")
    if dimension < 1:
        raise DataError(f"{name}:1: expected a word and its vector")
    if dimension > WIDEST:
        raise DataError(f"{name}:1: expected at most {WIDEST} numbers in a row, got {dimension}")
    if header and not is_row(row, dimension) and not is_text(rest.partition(b" ")[2][: 4 * dimension]):
        what = "word2vec's binary form; its name should end in .bin"
        raise DataError(f"{name}: expected word vectors as text, got {what}")
    separator = b"\t" if has_tabs else b" "
    return _Layout(int(header[1]) if header else None, dimension, separator, line_end if header else mark)


def _workers(name: str) -> int:
    """Return how many processes should read a text file.

    Compressed files and pipes allow only one reader, and so may whatever is opened as /dev/stdin.
    """
    if compression_of(name) or name.startswith("/dev/") or not os.path.isfile(name):
        return 1
    return min(processors(), os.path.getsize(name) // _RANGE)


def _ranges(name: str, begin: int) -> Iterator[tuple[int, int]]:
    """Cut a file from ``begin`` on into byte ranges that end at line ends."""
    with naming(name), open(name, "rb") as file:
        size = os.path.getsize(name)
        while begin < size:
            file.seek(begin + _RANGE)
            # A line that is too long fails the range in which it begins, so the ranges after it do not matter.
            file.readline(_LONGEST_LINE + 1)
            end = min(file.tell(), size)
            yield begin, end
            begin = end


def _scan_range(
    begin_and_end: tuple[int, int],
    should_stop: ShouldStop,
    *,
    name: str,
    scan: Callable[[Iterable[bytes]], Iterator[_ScannedLines]],
) -> list[_ScannedLines]:
    scanned = scan(_line_blocks(_blocks(name, *begin_and_end)))
    return list(takewhile(lambda lines: not should_stop(), scanned))


def _scan(
    blocks: Iterable[bytes],
    wanted: dict[bytes, str],
    beginnings: set[bytes],
    layout: _Layout,
    most_bad: int,
    skipped: int = 0,
) -> Iterator[_ScannedLines]:
    """Look for the wanted words in blocks of lines, after skipping some bytes.

    Args:
        blocks: blocks of whole lines.
        wanted: the words by their UTF-8 bytes.
        beginnings: the beginnings of the words, up to the first separator.
        layout: the file's layout.
        most_bad: bad rows to tolerate; the scan ends after more of them.
        skipped: bytes to skip at the beginning.
    """
    bad = 0
    try:
        for block in blocks:
            found = _scan_block(block[skipped:], wanted, beginnings, layout)
            yield found
            skipped, bad = 0, bad + len(found.bad_rows)
            if bad > most_bad:
                return
    except BadRowError as error:
        yield _ScannedLines(0, 0, [], np.empty((0, layout.dimension), dtype=np.float32), [], end=str(error))


def _scan_block(block: bytes, wanted: dict[bytes, str], beginnings: set[bytes], layout: _Layout) -> _ScannedLines:
    words, vectors, bad_rows = [], [], []
    _, dimension, separator, _ = layout
    lines, last_line = block, block[block.rfind(b"\n", 0, -1) + 1 :]
    blank = 0
    if not last_line.rstrip(BLANKS):
        lines = block.rstrip(BLANKS)
        blank = block.count(b"\n", len(lines)) - bool(lines)
    # Search many lines at once: calling bytes.count() for each line would take twice as long as all the rest.
    codes, has_nul = np.frombuffer(lines, dtype=np.uint8), b"\0" in lines
    is_separator = codes == ord(" ")
    if separator == b"\t":
        is_separator |= codes == ord("\t")
    number = end = 0
    for line in io.BytesIO(lines):
        number += 1
        begin, end = end, end + len(line)
        line = line.rstrip(BLANKS)
        place = line.find(separator)
        try:
            if has_nul and b"\0" in line:
                raise BadRowError("NUL byte")
            if place < 0 or np.count_nonzero(is_separator[begin + place : begin + len(line)]) < dimension:
                raise BadRowError(_too_few(line, layout))
            if line[:place] not in beginnings:
                continue
            word, fields = _split(line, layout)
            if word in wanted:
                vectors.append(_parse(fields))
                words.append(wanted[word])
        except BadRowError as error:
            bad_rows.append(BadRow(number, str(error)))
    found = np.array(vectors, dtype=np.float32).reshape(len(words), dimension)
    return _ScannedLines(number, blank, words, found, bad_rows, size=len(block))


def _split(line: bytes, layout: _Layout) -> tuple[bytes, list[bytes]]:
    """Split a row into its word and its numbers as spelled."""
    _, dimension, separator, _ = layout
    if separator == b"\t":
        word, _, numbers = line.partition(b"\t")
        fields = fields_of(numbers)
        if len(fields) != dimension:
            raise BadRowError(f"expected {dimension} numbers, got {len(fields)}")
    else:
        # Split from the right, because GloVe 840B has words with spaces, such as ". . .".
        word, *fields = line.rsplit(b" ", dimension)
        if b" " in word and is_number(word.rpartition(b" ")[2]):
            raise BadRowError(f"expected {dimension} numbers, got {line.count(b' ')}")
    return word, fields


def _too_few(line: bytes, layout: _Layout) -> str:
    """Say what is wrong with a row that is too short."""
    if layout.separator == b"\t":
        word, tab, numbers = line.partition(b"\t")
        if word and not tab:
            return "expected a tab after the word, got none"
        fields = fields_of(numbers) if tab else []
    else:
        word, *fields = line.split(b" ")
    hint = " (is the word missing?)" if is_number(word) and len(fields) == layout.dimension - 1 else ""
    return f"expected {layout.dimension} numbers, got {len(fields)}{hint}"


def _too_long() -> BadRowError:
    return BadRowError(f"expected a line break within {_LONGEST_LINE} bytes, got none")


def _parse(fields: list[bytes]) -> np.ndarray:
    """Round numbers to float32; raise BadRowError if one is not finite."""
    try:
        with np.errstate(over="ignore"):
            vector = np.fromiter(map(float, fields), dtype=np.float32, count=len(fields))
        if np.isfinite(vector).all():
            return vector
    except ValueError:
        pass
    field = next(field for field in fields if not is_number(field))
    raise BadRowError(f"expected a finite number, got {field[:40].decode(errors='replace')!r}")


def _line_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file in large blocks; every line ends in a line feed.

    Raises:
        BadRowError: the next line is too long, or cannot be read.
    """
    parts: list[bytes] = []  # the beginning of an incomplete line
    size = 0
    for block in blocks:
        size += len(block)
        end = block.rfind(b"\n") + 1
        if not end and size <= _LONGEST_LINE:
            parts.append(block)
            continue
        lines = b"".join([*parts, memoryview(block)[:end]])  # the only copy
        if size > _LONGEST_LINE and lines.find(b"\n", 0, _LONGEST_LINE + 1) < 0:
            raise _too_long()
        yield lines
        parts, size = [block[end:]], len(block) - end
    if size:
        yield b"".join(parts) + b"\n"


def _blocks(name: str, begin: int = 0, end: float = math.inf) -> Iterator[bytes]:
    """Yield the bytes of a file from ``begin`` to ``end`` in blocks.

    Raises:
        DataError: the file cannot be opened.
        BadRowError: the rest of it cannot be read.
    """
    with naming(name):
        file = open_file(name)
    with file:
        try:
            if begin:
                file.seek(begin)
            # read1 returns what is available, so everything before the cut of a truncated gzip file is read.
            while block := file.read1(int(min(_BLOCK, end - begin))):
                begin += len(block)
                yield block
        except UNREADABLE as error:
            raise BadRowError(reason_of(error)) from error


def _binary_rows(name: str, wanted: Collection[str], on_read: OnRead) -> Generator[Row, None, None]:
    """Do what ``wanted_rows`` says for a file in word2vec's binary form.

    The form is a line "count dimension", then for each row the word, a space, float32 numbers and, from some writers, a
    line feed.
    """
    spellings = {spelling.encode(): spelling for spelling in wanted}
    row = 0  # the last row read, counted from 1
    blocks = _blocks(name)
    following = _located(blocks, lambda: f"{name}: row {row + 1}")
    beginning = b"".join(_first_blocks(blocks, name))
    first_line, line_feed, buffer = beginning.partition(b"\n")
    header = _HEADER.fullmatch(first_line)
    what = None if header else other_than_vectors(beginning)
    if is_row(buffer.partition(b"\n")[0], int(header[2])) if header else is_row(first_line):
        what = "text; its name should end in .txt or .vec"
    if what:
        raise DataError(f"{name}: expected word2vec's binary form, got {what}")
    if not header or not line_feed:
        start = first_line[:_LONGEST_HEADER].decode(errors="replace")
        raise DataError(f"{name}:1: expected the number of rows and of numbers per row, got {start!r}")
    rows, dimension = int(header[1]), int(header[2])
    if not 1 <= dimension <= WIDEST:
        raise DataError(f"{name}:1: expected 1 to {WIDEST} numbers in a row, got {dimension}")
    on_read(len(beginning))
    for block in chain([b""], following):
        on_read(len(block))
        buffer += block
        begin = 0
        while row < rows:
            space = buffer.find(b" ", begin, begin + LONGEST_WORD + 2)
            if space < 0 and len(buffer) - begin > LONGEST_WORD + 1:
                raise DataError(f"{name}: row {row + 1}: expected a word of at most {LONGEST_WORD} bytes")
            end = space + 1 + 4 * dimension
            if space < 0 or end > len(buffer):
                break
            row += 1
            word = buffer[begin:space].removeprefix(b"\n")
            if word in spellings:
                vector = np.frombuffer(buffer, dtype="<f4", count=dimension, offset=space + 1)
                if np.isfinite(vector).all():
                    yield spellings[word], vector
                else:
                    yield BadRow(row, one_line(f"expected finite numbers, got others for {spellings[word]!r}"))
            begin = end
        buffer = buffer[begin:]
        if row == rows and buffer not in (b"", b"\n"):
            raise DataError(f"{name}: expected {rows} rows, as line 1 says, got more")
    if row < rows:
        yield BadRow(row + 1, f"expected {rows} rows, as line 1 says, but the file ends here")


def _located(blocks: Iterable[bytes], where: Callable[[], str]) -> Iterator[bytes]:
    """Yield the same blocks; in an error, prefix the place that ``where()`` returns."""
    try:
        yield from blocks
    except BadRowError as error:
        raise DataError(f"{where()}: {error}") from error

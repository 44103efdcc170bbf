"""Files of word vectors, of which only the rows of some words are wanted.

They hold millions of words, and tens of thousands are wanted: a file is read some bytes at a time and only the rows
asked for are parsed, so memory is bounded by the result. Large files of text are cut into ranges of bytes that several
processes read.
"""

import io
import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, takewhile
from typing import IO, NamedTuple

import numpy as np

from ..errors import BadRowError, DataError, naming, reason_of
from .compression import UNREADABLE, compression_of, open_file, unpacked_name
from .parallel import ShouldStop, can_fork, map_in_processes, processors

_WIDEST = 10_000  # numbers of a vector; whoever says more must not make us take the memory
_LONGEST_WORD = 2_000  # bytes
_LONGEST_LINE = 2**20  # bytes
_LONGEST_HEADER = 100  # bytes
_BLOCK = 2**18  # bytes that are read at once, and stay in a processor's cache
_RANGE = 2**25  # bytes of a text that a process reads; of fewer than two ranges this one does
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEADER = re.compile(rb"(\d{1,18}) (\d{1,18})\s*")  # of word2vec's files: rows, and numbers in each
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# SystemError: of Python, for what numpy takes for a character and is none.
_NO_NPZ = (EOFError, ValueError, RuntimeError, OverflowError, SystemError, zipfile.BadZipFile, zlib.error)


def wanted_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of a file with their float32 or float16 vectors, in the file's order.

    Raises:
        DataError: the file cannot be read or is malformed.
    """
    return _READERS[form_of(name)](name, wanted)


def form_of(name: str) -> str:
    """What a file of this name holds."""
    if name.endswith(".npz"):
        return "npz"
    return "binary" if unpacked_name(name).endswith(".bin") else "text"


class _ScannedLines(NamedTuple):
    """What some lines hold."""

    lines: int
    words: list[str]
    vectors: np.ndarray  # float32 [words, dimension]
    problem: str | None  # what is wrong with the last of the lines


def _text_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of a text file with their vectors."""
    blocks = _line_blocks(_blocks(name))
    try:
        block = next(blocks, None)
    except BadRowError as error:
        raise DataError(f"{name}:1: {error}") from error
    if block is None:
        return
    rows, dimension, begin = _beginning(block, name)
    spellings = {spelling.encode(): spelling for spelling in wanted}
    beginnings = {spelling.partition(b" ")[0] for spelling in spellings}
    scan = partial(_scan, wanted=spellings, beginnings=beginnings, dimension=dimension)
    workers = _workers(name)
    scanned: Generator[list[_ScannedLines], None, None]
    if workers > 1 and can_fork():
        scanned = map_in_processes(partial(_scan_range, name=name, scan=scan), _ranges(name, begin), workers)
    else:
        scanned = ([lines] for lines in scan(chain([block[begin:]], blocks)))
    number = header = 0 if rows is None else 1
    with closing(scanned):
        for found in chain.from_iterable(scanned):
            yield from zip(found.words, found.vectors, strict=True)
            number += found.lines
            if found.problem is not None:
                raise DataError(f"{name}:{number}: {found.problem}")
    if rows is not None and number - header != rows:
        raise DataError(f"{name}: expected {rows} rows, as line 1 says, got {number - header}")


def _beginning(block: bytes, name: str) -> tuple[int | None, int, int]:
    """What the first line of a file of text says: how many rows the file has, None where that line is the first row
    itself, how many numbers each has, and the byte at which the rows begin.
    """
    mark = len(_BYTE_ORDER_MARK) if block.startswith(_BYTE_ORDER_MARK) else 0
    line_end = block.index(b"\n") + 1
    line = block[mark:line_end].rstrip(b" \r\n")
    if b"\0" in line:
        raise DataError(f"{name}:1: NUL byte")
    header = _HEADER.fullmatch(line)
    rows, dimension = map(int, header.groups()) if header else (None, line.count(b" "))
    if dimension < 1:
        raise DataError(f"{name}:1: expected a word and its vector")
    if dimension > _WIDEST:
        raise DataError(f"{name}:1: expected at most {_WIDEST} numbers in a row, got {dimension}")
    return rows, dimension, line_end if header else mark


def _workers(name: str) -> int:
    """How many processes should read a file of text.

    Only one can read a compressed file or a pipe, from the beginning, and on some systems what is opened as /dev/stdin.
    """
    if compression_of(name) or name.startswith("/dev/") or not os.path.isfile(name):
        return 1
    return min(processors(), os.path.getsize(name) // _RANGE)


def _ranges(name: str, begin: int) -> Iterator[tuple[int, int]]:
    """Cut a file into ranges of bytes that end where lines do, from ``begin`` on."""
    with naming(name), open(name, "rb") as file:
        size = os.path.getsize(name)
        while begin < size:
            file.seek(begin + _RANGE)
            # A line that is too long is the problem of the range that it begins in; those behind do not matter.
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
    blocks: Iterable[bytes], wanted: dict[bytes, str], beginnings: set[bytes], dimension: int
) -> Iterator[_ScannedLines]:
    """Look for the wanted words in blocks of lines; ``beginnings`` are theirs, up to the first space."""
    try:
        for block in blocks:
            yield _scan_block(block, wanted, beginnings, dimension)
    except BadRowError as error:
        yield _ScannedLines(1, [], np.empty((0, dimension), dtype=np.float32), str(error))


def _scan_block(block: bytes, wanted: dict[bytes, str], beginnings: set[bytes], dimension: int) -> _ScannedLines:
    """What the lines of a block hold, up to the first that is not as it should be."""
    words, vectors, problem = [], [], None
    # Both are looked for in many lines at once: bytes.count() would take twice as long as all the rest.
    is_space, has_nul = np.frombuffer(block, dtype=np.uint8) == ord(" "), b"\0" in block
    number = end = 0
    try:
        for line in io.BytesIO(block):
            number += 1
            begin, end = end, end + len(line)
            line = line.rstrip(b" \r\n")
            count = np.count_nonzero(is_space[begin : begin + len(line)])
            if has_nul and b"\0" in line:
                raise BadRowError("NUL byte")
            if count < dimension:
                raise BadRowError(f"expected {dimension} numbers, got {count}")
            if line[: line.find(b" ")] not in beginnings:
                continue
            # From the right: GloVe 840B has words with spaces inside, such as ". . .".
            word, *fields = line.rsplit(b" ", dimension)
            if b" " in word and _is_number(word.rpartition(b" ")[2]):
                raise BadRowError(f"expected {dimension} numbers, got {count}")
            if word in wanted:
                vectors.append(_parse(fields))
                words.append(wanted[word])
    except BadRowError as error:
        problem = str(error)
    return _ScannedLines(number, words, np.array(vectors, dtype=np.float32).reshape(len(words), dimension), problem)


def _parse(fields: list[bytes]) -> np.ndarray:
    """Numbers rounded to float32, in which all must be finite."""
    try:
        with np.errstate(over="ignore"):
            vector = np.fromiter(map(float, fields), dtype=np.float32, count=len(fields))
        if np.isfinite(vector).all():
            return vector
    except ValueError:
        pass
    field = next(field for field in fields if not _is_number(field))
    raise BadRowError(f"expected a finite number, got {field[:40].decode(errors='replace')!r}")


def _is_number(field: bytes) -> bool:
    """Whether a field is a number that float32 can hold, so neither NaN nor infinite."""
    try:
        with np.errstate(over="ignore"):
            return math.isfinite(np.float32(float(field)))
    except ValueError:
        return False


def _line_blocks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, many at once, each with a line feed.

    Raises:
        BadRowError: the next line is too long, or cannot be read.
    """
    parts: list[bytes] = []  # that are not yielded yet; put together once, however small a compressed file's are
    size = 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size <= _LONGEST_LINE and b"\n" not in block:
            continue
        block = b"".join(parts)
        if size > _LONGEST_LINE and block.find(b"\n", 0, _LONGEST_LINE + 1) < 0:
            raise BadRowError(f"expected a line break within {_LONGEST_LINE} bytes, got none")
        end = block.rfind(b"\n") + 1
        yield block[:end]
        parts, size = [block[end:]], size - end
    if size:
        yield b"".join(parts) + b"\n"


def _blocks(name: str, begin: int = 0, end: float = math.inf) -> Iterator[bytes]:
    """Yield the bytes of a file from ``begin`` to ``end``, some at once.

    Raises:
        DataError: the file cannot be opened.
        BadRowError: it cannot be read any further.
    """
    with naming(name):
        file = open_file(name)
    with file:
        try:
            if begin:
                file.seek(begin)
            # All that can be had at once: of a gzip file that was cut off, that is everything before the cut.
            while block := file.read1(int(min(_BLOCK, end - begin))):
                begin += len(block)
                yield block
        except UNREADABLE as error:
            raise BadRowError(reason_of(error)) from error


def _binary_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of a file in word2vec's binary form with their vectors.

    It is a line "count dimension", then for each row the word, a space and float32 numbers, and from some writers a
    line feed.
    """
    spellings = {spelling.encode(): spelling for spelling in wanted}
    row = 0  # the last that was read, counted from 1
    blocks = _located(_blocks(name), lambda: f"{name}: row {row + 1}")
    buffer = b""
    while len(buffer) < _LONGEST_HEADER and b"\n" not in buffer and (block := next(blocks, b"")):
        buffer += block
    first_line, line_feed, buffer = buffer.partition(b"\n")
    header = _HEADER.fullmatch(first_line)
    if not line_feed or not header:
        start = first_line[:_LONGEST_HEADER].decode(errors="replace")
        raise DataError(f"{name}:1: expected the number of rows and of numbers in each, got {start!r}")
    rows, dimension = map(int, header.groups())
    if not 1 <= dimension <= _WIDEST:
        raise DataError(f"{name}:1: expected 1 to {_WIDEST} numbers in a row, got {dimension}")
    for block in chain([b""], blocks):
        buffer += block
        begin = 0
        while row < rows:
            space = buffer.find(b" ", begin, begin + _LONGEST_WORD + 2)
            if space < 0 and len(buffer) - begin > _LONGEST_WORD + 1:
                raise DataError(f"{name}: row {row + 1}: expected a word of at most {_LONGEST_WORD} bytes")
            end = space + 1 + 4 * dimension
            if space < 0 or end > len(buffer):
                break
            row += 1
            word = buffer[begin:space].removeprefix(b"\n")
            if word in spellings:
                vector = np.frombuffer(buffer, dtype="<f4", count=dimension, offset=space + 1)
                if not np.isfinite(vector).all():
                    raise DataError(f"{name}: row {row}: expected finite numbers, got others for {spellings[word]!r}")
                yield spellings[word], vector
            begin = end
        buffer = buffer[begin:]
        if row == rows and buffer not in (b"", b"\n"):
            raise DataError(f"{name}: expected {rows} rows, as line 1 says, got more")
    if row < rows:
        raise DataError(f"{name}: row {row + 1}: expected {rows} rows, as line 1 says, but the file ends here")


def _located(blocks: Iterable[bytes], where: Callable[[], str]) -> Iterator[bytes]:
    """Yield the same; ``where()`` says how far they have been understood, for an error."""
    try:
        yield from blocks
    except BadRowError as error:
        raise DataError(f"{where()}: {error}") from error


def _npz_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of an ``.npz`` archive with their vectors."""
    try:
        with naming(name), zipfile.ZipFile(name) as archive:
            files = archive.namelist()
            if files.count("words.npy") != 1 or files.count("vectors.npy") != 1:
                keys = ", ".join(file.removesuffix(".npy") for file in files)
                raise DataError(f"{name}: expected the arrays words and vectors, got {keys or 'none'}")
            # Those that numpy has; others expand without bounds.
            if any(archive.getinfo(file).compress_type not in _COMPRESSIONS for file in ("words.npy", "vectors.npy")):
                raise ValueError("not as numpy compresses")
            with archive.open("words.npy") as words_file, archive.open("vectors.npy") as vectors_file:
                words, vectors = _StoredArray(words_file), _StoredArray(vectors_file)
                _check_npz(words, vectors, name)
                rows: dict[str, int] = {}  # the first of each word
                for row, word in enumerate(chain.from_iterable(block.tolist() for block in words.blocks())):
                    if word in wanted:
                        rows.setdefault(word, row)
                for word, vector in zip(rows, vectors.taken(list(rows.values())), strict=True):
                    with np.errstate(over="ignore"):
                        vector = vector.astype(np.float32)
                    if not np.isfinite(vector).all():
                        raise DataError(f"{name}: expected finite numbers, got others in the vector of {word!r}")
                    yield word, vector
    except DataError:
        raise
    except _NO_NPZ as error:
        raise DataError(f"{name}: expected an .npz archive of plain arrays") from error


class _StoredArray:
    """An array in an archive, of which some rows at a time are read."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read what comes before the numbers, or raise a ValueError."""
        if np.lib.format.read_magic(file) != (1, 0):  # the later ones are for arrays of records
            raise ValueError("not a plain array")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python 2 is no more
                self.shape, is_fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy has a parser for headers, and each of its parts raises something else
            raise ValueError("not a plain array") from error
        if self.dtype.hasobject or not self.dtype.itemsize or min(self.shape, default=-1) < 0:
            raise ValueError("not a plain array")
        self.is_fortran = is_fortran and len(self.shape) > 1
        self._file = file

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows, some at a time, or raise a ValueError where they are not all there, or not all there is."""
        count, *others = self.shape
        yield from self._read(count, *others)
        self._check_end()

    def taken(self, places: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the rows at these places, which rise; raises as :meth:`blocks` does."""
        if not self.is_fortran:
            wanted = set(places)
            yield from (row for place, row in enumerate(chain.from_iterable(self.blocks())) if place in wanted)
            return
        count, width = self.shape
        ordered, rows = np.array(places, dtype=np.int64), np.empty((len(places), width), dtype=self.dtype)
        for column in rows.T:
            begin = 0
            for block in self._read(count):
                here = slice(*np.searchsorted(ordered, (begin, begin + len(block))))
                column[here] = block[ordered[here] - begin]
                begin += len(block)
        self._check_end()
        yield from rows

    def _read(self, count: int, *others: int) -> Iterator[np.ndarray]:
        row_bytes = self.dtype.itemsize * math.prod(others)
        at_once = max(1, _BLOCK // row_bytes)
        for begin in range(0, count, at_once):
            rows = min(at_once, count - begin)
            yield np.frombuffer(self._file.read(rows * row_bytes), dtype=self.dtype).reshape(rows, *others)

    def _check_end(self) -> None:
        if self._file.read(1):
            raise ValueError("more than the array")


def _check_npz(words: _StoredArray, vectors: _StoredArray, name: str) -> None:
    if (
        words.dtype.kind != "U"
        or words.dtype.itemsize > 4 * _LONGEST_WORD
        or vectors.dtype not in (np.float16, np.float32, np.float64)
        or len(vectors.shape) != 2
        or words.shape != vectors.shape[:1]
        or not 1 <= vectors.shape[1] <= _WIDEST
    ):
        raise DataError(
            f"{name}: expected words [n] of text, of at most {_LONGEST_WORD} characters, "
            f"and vectors [n, at most {_WIDEST}] of fp16, fp32 or fp64, "
            f"got words {list(words.shape)} {words.dtype} and vectors {list(vectors.shape)} {vectors.dtype}"
        )


_READERS = {"npz": _npz_rows, "binary": _binary_rows, "text": _text_rows}

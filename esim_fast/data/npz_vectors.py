"""Word vectors in ``.npz`` archives: the arrays ``words`` and ``vectors``, of which a part at a time is read."""

import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from itertools import chain
from typing import IO, TypeAlias

import numpy as np

from ..errors import DataError, naming, one_line
from .compression import ZIP_COMPRESSIONS
from .reading import BadRow

OnRead: TypeAlias = Callable[[int], object]  # gets a number of bytes

WIDEST = 10_000  # numbers of a vector; whoever says more must not make us take the memory
LONGEST_WORD = 2_000  # characters, or bytes
_BLOCK = 2**18  # bytes that are read at once
# SystemError: of Python, for what numpy takes for a character and is none.
_NO_NPZ = (EOFError, ValueError, RuntimeError, OverflowError, SystemError, zipfile.BadZipFile, zlib.error)


def npz_rows(
    name: str, wanted: Collection[str], on_read: OnRead
) -> Generator[tuple[str, np.ndarray] | BadRow, None, None]:
    """Yield the wanted words of an ``.npz`` archive with their vectors, or why a row cannot be used.

    Args:
        on_read: called with how many unpacked bytes were read, some at a time.

    Raises:
        DataError: the file cannot be read or is no such archive.
    """
    try:
        with naming(name), zipfile.ZipFile(name) as archive:
            files = archive.namelist()
            if files.count("words.npy") != 1 or files.count("vectors.npy") != 1:
                keys = ", ".join(file.removesuffix(".npy") for file in files)
                raise DataError(f"{name}: expected the arrays words and vectors, got {keys or 'none'}")
            # Those that numpy has; others expand without bounds.
            if any(
                archive.getinfo(file).compress_type not in ZIP_COMPRESSIONS for file in ("words.npy", "vectors.npy")
            ):
                raise ValueError("not as numpy compresses")
            with archive.open("words.npy") as words_file, archive.open("vectors.npy") as vectors_file:
                words, vectors = _StoredArray(words_file, on_read), _StoredArray(vectors_file, on_read)
                _check_npz(words, vectors, name)
                rows: dict[str, int] = {}  # the first of each word
                for row, word in enumerate(chain.from_iterable(block.tolist() for block in words.blocks())):
                    if word in wanted:
                        rows.setdefault(word, row)
                for (word, row), vector in zip(rows.items(), vectors.taken(list(rows.values())), strict=True):
                    with np.errstate(over="ignore"):
                        vector = vector.astype(np.float32)
                    if np.isfinite(vector).all():
                        yield word, vector
                    else:
                        yield BadRow(row + 1, one_line(f"expected finite numbers, got others for {word!r}"))
    except DataError:
        raise
    except _NO_NPZ as error:
        raise DataError(f"{name}: expected an .npz archive of plain arrays") from error


class _StoredArray:
    """An array in an archive, of which some rows at a time are read."""

    def __init__(self, file: IO[bytes], on_read: OnRead) -> None:
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
        self._file, self._on_read = file, on_read

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
            content = self._file.read(rows * row_bytes)
            self._on_read(len(content))
            yield np.frombuffer(content, dtype=self.dtype).reshape(rows, *others)

    def _check_end(self) -> None:
        if self._file.read(1):
            raise ValueError("more than the array")


def _check_npz(words: _StoredArray, vectors: _StoredArray, name: str) -> None:
    if (
        words.dtype.kind != "U"
        or words.dtype.itemsize > 4 * LONGEST_WORD
        or vectors.dtype not in (np.float16, np.float32, np.float64)
        or len(vectors.shape) != 2
        or words.shape != vectors.shape[:1]
        or not 1 <= vectors.shape[1] <= WIDEST
    ):
        raise DataError(
            f"{name}: expected words [n] of text, of at most {LONGEST_WORD} characters, "
            f"and vectors [n, at most {WIDEST}] of fp16, fp32 or fp64, "
            f"got words {list(words.shape)} {words.dtype} and vectors {list(vectors.shape)} {vectors.dtype}"
        )

"""Read word vectors from ``.npz`` archives with the arrays ``words`` and ``vectors``, a block of rows at a time."""

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

OnRead: TypeAlias = Callable[[int], object]  # called with a number of bytes

WIDEST = 10_000  # numbers in a vector; a header that claims more must not make us allocate that much
LONGEST_WORD = 2_000  # characters, or bytes
_BLOCK = 2**18  # bytes to read at a time
# Python raises SystemError for invalid characters in an array of text.
_NO_NPZ = (EOFError, ValueError, RuntimeError, OverflowError, SystemError, zipfile.BadZipFile, zlib.error)


def npz_rows(
    name: str, wanted: Collection[str], on_read: OnRead
) -> Generator[tuple[str, np.ndarray] | BadRow, None, None]:
    """Yield the wanted words of an ``.npz`` archive with their vectors, and the rows that cannot be used.

    Args:
        name: the archive.
        wanted: the words to look for.
        on_read: called now and then with the number of uncompressed bytes read since the last call.

    Raises:
        DataError: the file cannot be read, or is not such an archive.
    """
    try:
        with naming(name), zipfile.ZipFile(name) as archive:
            files = archive.namelist()
            if files.count("words.npy") != 1 or files.count("vectors.npy") != 1:
                keys = ", ".join(file.removesuffix(".npy") for file in files)
                raise DataError(f"{name}: expected the arrays words and vectors, got {keys or 'none'}")
            # Only numpy's own compressions are allowed, because others may expand without bounds.
            if any(
                archive.getinfo(file).compress_type not in ZIP_COMPRESSIONS for file in ("words.npy", "vectors.npy")
            ):
                raise ValueError("not as numpy compresses")
            with archive.open("words.npy") as words_file, archive.open("vectors.npy") as vectors_file:
                words, vectors = _StoredArray(words_file, on_read), _StoredArray(vectors_file, on_read)
                _check_npz(words, vectors, name)
                rows: dict[str, int] = {}  # the first row of each word
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
    """An array in an archive, read a block of rows at a time."""

    def __init__(self, file: IO[bytes], on_read: OnRead) -> None:
        """Read the header; raise ValueError if it is invalid."""
        if np.lib.format.read_magic(file) != (1, 0):  # later versions are for structured arrays
            raise ValueError("not a plain array")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # reject headers written by Python 2
                self.shape, is_fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy's header parser raises many kinds of exceptions
            raise ValueError("not a plain array") from error
        if self.dtype.hasobject or not self.dtype.itemsize or min(self.shape, default=-1) < 0:
            raise ValueError("not a plain array")
        self.is_fortran = is_fortran and len(self.shape) > 1
        self._file, self._on_read = file, on_read

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows in blocks; raise ValueError if rows are missing or bytes follow them."""
        count, *others = self.shape
        yield from self._read(count, *others)
        self._check_end()

    def taken(self, places: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the rows at ascending places; raise ValueError as ``blocks`` does."""
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

"""Pretrained word vectors, for the words of a vocabulary.

Files hold millions of words and a vocabulary tens of thousands, so a file is streamed and only the rows asked for are
parsed: memory is bounded by the result.
"""

import hashlib
import io
import math
import os
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .cache import Arrays, kept
from .reading import DataError, open_file
from .vocabulary import PADDING_ID, UNKNOWN_ID, Vocabulary

_CASES = {"exact": str, "lower": str.lower, "capitalised": str.capitalize, "upper": str.upper}  # by preference
_WIDEST = 10_000  # numbers of a vector; whoever says more must not make us take the memory
_LONGEST_WORD = 2_000  # bytes
_LONGEST_LINE = 2**20  # bytes
_LONGEST_HEADER = 100  # bytes
_BLOCK = 2**18  # bytes that are read at once, and stay in a processor's cache
_HEADER = re.compile(rb"(\d{1,18}) (\d{1,18})\s*")  # of word2vec's files: rows, and numbers in each
_UNREADABLE = (OSError, EOFError, zlib.error)  # what reading a file raises, through gzip or not
_NO_NPZ = (EOFError, ValueError, RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error)


class PretrainedVectors(NamedTuple):
    """Vectors for the words of a vocabulary."""

    vocabulary: Vocabulary  # the given one, with those of more_words that have a vector behind it
    matrix: Tensor  # float32 [len(vocabulary), dimension]
    found: int  # how many of its words have a vector


def load_vectors(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    more_words: Sequence[str] = (),
    seed: int = 0,
    cache: Path | None = None,
) -> PretrainedVectors:
    """Read the vectors of a vocabulary's words.

    The name of the file says what it holds. Of a word that it holds twice the first vector counts.

    * ``.npz``: the arrays ``words`` [n] and ``vectors`` [n, dimension] (fp16 or fp32);
    * ``.bin`` or ``.bin.gz``: word2vec's binary form;
    * anything else, ``.gz`` too: text as of GloVe, word2vec and fastText, a word and its numbers a line, separated by
      single spaces, with or without a first line "count dimension". Rows that are not needed are checked for being too
      short and for NUL bytes only.

    Where the file lacks a word as it is spelt, its vector is that of the word in lower case, else Capitalised, else in
    UPPER case. Words found in no case, and the unknown word, get normal random values with the mean and standard
    deviation of the found rows, dimension by dimension; the padding row is zero.

    Args:
        more_words: words that join the vocabulary if they have a vector, in this order; what the vocabulary lists or
            could not list is passed over.
        cache: folder that keeps the rows found for the next time; None keeps nothing.

    Raises:
        DataError: the file is malformed or has none of the words.
    """
    name = os.fspath(path)
    asked = vocabulary.extended(more_words)
    options = {
        "result": "vectors 1",
        "form": _form_of(name),
        "cases": ", ".join(_CASES),
        "words": hashlib.sha256("\n".join(asked.words).encode()).hexdigest(),
    }
    arrays = kept(cache, name, options, lambda: _read_rows(name, asked))
    stays = arrays["found"].clone()
    stays[: len(vocabulary)] = True
    matrix, found = arrays["rows"][stays], arrays["found"][stays]
    _fill(matrix, found, seed)
    return PretrainedVectors(vocabulary.extended(compress(asked.words, stays)), matrix, int(found.sum()))


def _fill(matrix: Tensor, found: Tensor, seed: int) -> None:
    """Give the rows that were not ``found`` values that resemble those of the others."""
    known = matrix[found].numpy()
    # A single vector says nothing of how a dimension varies: then its numbers are taken together.
    axis = 0 if len(known) > 1 else None
    mean, deviation = (
        torch.as_tensor(moment(known, axis=axis, dtype=np.float64)).float() for moment in (np.mean, np.std)
    )
    noise = torch.randn(int((~found).sum()), matrix.size(1), generator=torch.Generator().manual_seed(seed))
    matrix[~found] = mean + deviation * noise
    matrix[PADDING_ID] = 0


def _read_rows(name: str, vocabulary: Vocabulary) -> Arrays:
    """The ``rows`` of a vocabulary's words, float32 [words, dimension], zero where they were not ``found``, bool
    [words].
    """
    wanted = _spellings(vocabulary)
    preference = np.full(len(vocabulary), len(_CASES))  # of the spelling found so far
    table = None
    for spelling, vector in _READERS[_form_of(name)](name, wanted):
        if table is None:
            table = np.zeros((len(vocabulary), len(vector)), dtype=np.float32)
        for row, rank in wanted[spelling]:
            if rank < preference[row]:
                preference[row] = rank
                table[row] = vector
    if table is None:
        raise DataError(f"{name}: expected vectors of the vocabulary's words, got none of {len(vocabulary) - 2}")
    return {"rows": torch.from_numpy(table), "found": torch.from_numpy(preference < len(_CASES))}


def _spellings(vocabulary: Vocabulary) -> dict[str, list[tuple[int, int]]]:
    """For every spelling to look for: the rows that it can fill, each with its rank among the cases."""
    wanted = defaultdict(list)
    for row, word in enumerate(vocabulary.words):
        if row not in (UNKNOWN_ID, PADDING_ID):
            for rank, spelling in enumerate(dict.fromkeys(case(word) for case in _CASES.values())):
                wanted[spelling].append((row, rank))
    return dict(wanted)


def _form_of(name: str) -> str:
    """What a file of this name holds."""
    if name.endswith(".npz"):
        return "npz"
    return "binary" if name.removesuffix(".gz").endswith(".bin") else "text"


def _text_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of a text file with their float32 vectors."""
    spellings = {spelling.encode(): spelling for spelling in wanted}
    beginnings = {spelling.partition(b" ")[0] for spelling in spellings}
    number = dimension = 0
    rows = None
    blocks = _line_blocks(name, lambda: f"{name}:{number + 1}")
    for block in blocks:
        if number == 0:
            block = block.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        # Both are looked for in many lines at once: bytes.count() would take twice as long as all the rest.
        is_space, has_nul = np.frombuffer(block, dtype=np.uint8) == ord(" "), b"\0" in block
        end = 0
        for line in io.BytesIO(block):
            number += 1
            begin, end = end, end + len(line)
            line = line.rstrip(b" \r\n")
            count = np.count_nonzero(is_space[begin : begin + len(line)])
            if has_nul and b"\0" in line:
                raise DataError(f"{name}:{number}: NUL byte")
            if number == 1:
                rows, dimension = _first_line(line, count, name)
                if rows is not None:
                    continue
            if count < dimension:
                raise DataError(f"{name}:{number}: expected {dimension} numbers, got {count}")
            if line[: line.find(b" ")] not in beginnings:
                continue
            # From the right: GloVe 840B has words with spaces inside, such as ". . .".
            word, *fields = line.rsplit(b" ", dimension)
            if b" " in word and _is_number(word.rpartition(b" ")[2]):
                raise DataError(f"{name}:{number}: expected {dimension} numbers, got {count}")
            if word in spellings:
                yield spellings[word], _parse(fields, f"{name}:{number}")
    if rows is not None and number - 1 != rows:
        raise DataError(f"{name}: expected {rows} rows, as line 1 says, got {number - 1}")


def _first_line(line: bytes, count: int, name: str) -> tuple[int | None, int]:
    """How many rows a file of text has, None where it is the first row itself, and how many numbers in each."""
    header = _HEADER.fullmatch(line)
    rows, dimension = map(int, header.groups()) if header else (None, count)
    if dimension < 1:
        raise DataError(f"{name}:1: expected a word and its vector")
    if dimension > _WIDEST:
        raise DataError(f"{name}:1: expected at most {_WIDEST} numbers in a row, got {dimension}")
    return rows, dimension


def _parse(fields: list[bytes], where: str) -> np.ndarray:
    """Numbers rounded to float32, in which all must be finite."""
    try:
        with np.errstate(over="ignore"):
            vector = np.fromiter(map(float, fields), dtype=np.float32, count=len(fields))
        if np.isfinite(vector).all():
            return vector
    except ValueError:
        pass
    field = next(field for field in fields if not _is_number(field))
    raise DataError(f"{where}: expected a finite number, got {field[:40].decode(errors='replace')!r}")


def _is_number(field: bytes) -> bool:
    """Whether a field is a number that float32 can hold, so neither NaN nor infinite."""
    try:
        with np.errstate(over="ignore"):
            return math.isfinite(np.float32(float(field)))
    except ValueError:
        return False


def _line_blocks(name: str, where: Callable[[], str]) -> Iterator[bytes]:
    """Yield a file's lines, many at once, each with a line feed; ``where`` as for :func:`_blocks`."""
    rest = b""
    for block in _blocks(name, where):
        block = rest + block
        end = block.rfind(b"\n") + 1
        if end:
            yield block[:end]
        rest = block[end:]
        if len(rest) > _LONGEST_LINE:
            raise DataError(f"{where()}: expected a line break within {_LONGEST_LINE} bytes, got none")
    if rest:
        yield rest + b"\n"


def _blocks(name: str, where: Callable[[], str]) -> Iterator[bytes]:
    """Yield the bytes of a file, some at once; ``where()`` says how far they have been understood, for an error."""
    try:
        file = open_file(name, "rb")
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    with file:
        try:
            # All that can be had at once: of a gzip file that was cut off, that is everything before the cut.
            while block := file.read1(_BLOCK):
                yield block
        except _UNREADABLE as error:
            raise DataError(f"{where()}: {getattr(error, 'strerror', None) or error}") from error


def _binary_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of a file in word2vec's binary form with their vectors.

    It is a line "count dimension", then for each row the word, a space and float32 numbers, and from some writers a
    line feed.
    """
    spellings = {spelling.encode(): spelling for spelling in wanted}
    row = 0  # the last that was read, counted from 1
    blocks = _blocks(name, lambda: f"{name}: row {row + 1}")
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


def _npz_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of an ``.npz`` archive with their vectors."""
    try:
        with zipfile.ZipFile(name) as archive:
            files = archive.namelist()
            if not {"words.npy", "vectors.npy"} <= set(files):
                keys = ", ".join(file.removesuffix(".npy") for file in files)
                raise DataError(f"{name}: expected the arrays words and vectors, got {keys or 'none'}")
            with archive.open("words.npy") as words_file, archive.open("vectors.npy") as vectors_file:
                words, vectors = _StoredArray(words_file), _StoredArray(vectors_file)
                _check_npz(words, vectors, name)
                every_word = chain.from_iterable(block.tolist() for block in words.blocks())
                spellings = {row: word for row, word in enumerate(every_word) if word in wanted}
                for row, vector in enumerate(chain.from_iterable(vectors.blocks())):
                    if row in spellings:
                        word = spellings[row]
                        if not np.isfinite(vector).all():
                            raise DataError(f"{name}: expected finite numbers, got others in the vector of {word!r}")
                        yield word, vector
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    except _NO_NPZ as error:
        raise DataError(f"{name}: expected an .npz archive of plain arrays") from error


class _StoredArray:
    """An array in an archive, of which some rows at a time are read."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read what comes before the numbers, or raise a ValueError."""
        if np.lib.format.read_magic(file) != (1, 0):  # the later ones are for arrays of records
            raise ValueError("not a plain array")
        self.shape, self.is_fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
        if self.dtype.hasobject:
            raise ValueError("not a plain array")
        self._file = file

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows, some at a time, or raise a ValueError where they are not all there, or not all there is."""
        count, *others = self.shape
        row_bytes = self.dtype.itemsize * math.prod(others)
        at_once = max(1, count if self.is_fortran else _BLOCK // row_bytes)
        for begin in range(0, count, at_once):
            rows = min(at_once, count - begin)
            block = np.frombuffer(self._file.read(rows * row_bytes), dtype=self.dtype)
            yield block.reshape(rows, *others, order="F" if self.is_fortran else "C")
        if self._file.read(1):
            raise ValueError("more than the array")


def _check_npz(words: _StoredArray, vectors: _StoredArray, name: str) -> None:
    if (
        words.dtype.kind != "U"
        or vectors.dtype not in (np.float16, np.float32)
        or len(vectors.shape) != 2
        or words.shape != vectors.shape[:1]
        or not 1 <= vectors.shape[1] <= _WIDEST
    ):
        raise DataError(
            f"{name}: expected words [n] of text and vectors [n, at most {_WIDEST}] of fp16 or fp32, "
            f"got words {list(words.shape)} {words.dtype} and vectors {list(vectors.shape)} {vectors.dtype}"
        )


_READERS = {"npz": _npz_rows, "binary": _binary_rows, "text": _text_rows}

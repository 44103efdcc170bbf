"""Pretrained word vectors, for the words of a vocabulary.

Files hold millions of words and a vocabulary tens of thousands, so text is streamed and only the rows asked for are
parsed: memory is bounded by the result.
"""

import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator

import numpy as np
import torch

from .reading import DataError, read_lines
from .vocabulary import PADDING_ID, UNKNOWN_ID, Vocabulary

_LARGEST = float(np.finfo(np.float32).max)


def load_vectors(path: str | os.PathLike[str], vocabulary: Vocabulary, *, seed: int = 0) -> tuple[torch.Tensor, int]:
    """Read the vectors of a vocabulary's words.

    ``path`` is an ``.npz`` with the arrays ``words`` [n] and ``vectors`` [n, dimension] (fp16 or fp32), or else text
    as of GloVe and word2vec (``.gz`` too): a word and its numbers a line, separated by single spaces, with or without
    a first line "count dimension".  The first row of a word counts.  Rows of text that are not needed are checked
    for being too short only.

    A lower-cased vocabulary meets cased files: for "paris", the file's "paris" is taken, else its "Paris", else its
    "PARIS".  Words that the file lacks, and the unknown word, get normal random values with the mean and standard
    deviation of the found rows, dimension by dimension; the padding row is zero.

    Returns:
        float32 [len(vocabulary), dimension], and how many words were found.

    Raises:
        DataError: the file is malformed or has none of the words.
    """
    name = os.fspath(path)
    wanted = _spellings(vocabulary)
    preference = [len(_CASES)] * len(vocabulary)  # of the spelling found so far
    table = None
    for spelling, vector in (_npz_rows if name.endswith(".npz") else _text_rows)(name, wanted):
        if table is None:
            table = np.zeros((len(vocabulary), len(vector)), dtype=np.float32)
        for row, rank in wanted[spelling]:
            if rank < preference[row]:
                preference[row] = rank
                table[row] = vector
    if table is None:
        raise DataError(f"{name}: expected vectors of the vocabulary's words, got none of {len(vocabulary) - 2}")

    found = np.array(preference) < len(_CASES)
    # A single vector says nothing of how a dimension varies: then its numbers are taken together.
    axis = 0 if found.sum() > 1 else None
    mean, deviation = (
        torch.as_tensor(moment(table[found], axis=axis, dtype=np.float64)).float() for moment in (np.mean, np.std)
    )
    vectors, missing = torch.from_numpy(table), torch.from_numpy(~found)
    noise = torch.randn(int(missing.sum()), vectors.size(1), generator=torch.Generator().manual_seed(seed))
    vectors[missing] = mean + deviation * noise
    vectors[PADDING_ID] = 0
    return vectors, int(found.sum())


_CASES = (str, str.capitalize, str.upper)  # in order of preference


def _spellings(vocabulary: Vocabulary) -> dict[str, list[tuple[int, int]]]:
    """For every spelling to look for: the rows that it can fill, each with its rank in ``_CASES``."""
    wanted = defaultdict(list)
    for row, word in enumerate(vocabulary.words):
        if row not in (UNKNOWN_ID, PADDING_ID):
            for rank, case in enumerate(_CASES):
                wanted[case(word)].append((row, rank))
    return dict(wanted)


def _text_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of a text file with their float32 vectors."""
    spellings = {spelling.encode(): spelling for spelling in wanted}
    beginnings = {spelling.partition(b" ")[0] for spelling in spellings}
    dimension = 0
    for number, line in enumerate(read_lines(name), start=1):
        line = line.rstrip(b" \r\n")
        if number == 1:
            fields = line.split(b" ")
            is_header = len(fields) == 2 and all(map(bytes.isdigit, fields))
            dimension = int(fields[1]) if is_header else len(fields) - 1
            if dimension < 1:
                raise DataError(f"{name}:1: expected a word and its vector")
            if is_header:
                continue
        count = line.count(b" ")
        if count < dimension:
            raise DataError(f"{name}:{number}: expected {dimension} numbers, got {count}")
        if line[: line.find(b" ")] not in beginnings:
            continue
        # From the right: GloVe 840B has words with spaces inside, such as ". . .".
        word, *fields = line.rsplit(b" ", dimension)
        if b" " in word and _is_number(word.rpartition(b" ")[2]):
            raise DataError(f"{name}:{number}: expected {dimension} numbers, got {count}")
        if word in spellings:
            for field in fields:
                if not _is_number(field):
                    raise DataError(
                        f"{name}:{number}: expected a finite number, got {field.decode(errors='replace')!r}"
                    )
            yield spellings[word], np.array(list(map(float, fields)), dtype=np.float32)


def _is_number(field: bytes) -> bool:
    """Whether a field is a number that float32 can hold, so neither NaN nor infinite."""
    try:
        return abs(float(field)) <= _LARGEST
    except ValueError:
        return False


def _npz_rows(name: str, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the wanted words of an ``.npz`` archive with their vectors."""
    try:
        with open(name, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            is_npz = isinstance(archive, np.lib.npyio.NpzFile)
            arrays = {key: np.asarray(array) for key, array in archive.items()} if is_npz else {}
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    except (EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: expected an .npz archive of plain arrays") from error
    if not {"words", "vectors"} <= arrays.keys():
        raise DataError(f"{name}: expected the arrays words and vectors, got {', '.join(arrays) or 'none'}")
    words, vectors = arrays["words"], arrays["vectors"]
    if (
        words.dtype.kind != "U"
        or vectors.dtype not in (np.float16, np.float32)
        or vectors.ndim != 2
        or words.shape != vectors.shape[:1]
        or vectors.shape[1] == 0
    ):
        raise DataError(
            f"{name}: expected words [n] of text and vectors [n, dimension] of fp16 or fp32, "
            f"got words {list(words.shape)} {words.dtype} and vectors {list(vectors.shape)} {vectors.dtype}"
        )
    for word, vector in zip(words.tolist(), vectors, strict=True):
        if word in wanted:
            if not np.isfinite(vector).all():
                raise DataError(f"{name}: expected finite numbers, got others in the vector of {word!r}")
            yield word, vector

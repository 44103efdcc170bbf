"""Load pretrained word vectors for the words of a vocabulary."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError, one_line
from .cache import Arrays, kept, text_array, text_of
from .compression import compression_of
from .reading import BadRow
from .vector_files import form_of, wanted_rows
from .vocabulary import PADDING, PADDING_ID, UNKNOWN, UNKNOWN_ID, Vocabulary

_CASES: Sequence[Callable[[str], str]] = (str, str.lower, str.capitalize, str.upper)  # in order of preference
_EXPECTED = {  # dtype and dimensions
    "rows": (torch.float32, 2),
    "found": (torch.bool, 1),
    "bad_rows": (torch.uint8, 1),
}
_MOST_BAD_ROWS = 100_000  # in a file; more mean that it is something else, and would fill up memory


class PretrainedVectors(NamedTuple):
    """A vocabulary and its word vectors.

    Attributes:
        vocabulary: the given vocabulary, followed by those of ``more_words`` that have a vector.
        matrix: float32 ``[len(vocabulary), dimension]``, the embedding matrix.
        found: how many words of the vocabulary have a vector.
    """

    vocabulary: Vocabulary
    matrix: Tensor
    found: int


def load_vectors(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    more_words: Sequence[str] = (),
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    on_bad_row: Callable[[BadRow], object] | None = None,
    show_progress_bar: bool = False,
) -> PretrainedVectors:
    """Load the word vectors for a vocabulary from a file.

    The suffix of the file's name says what it holds:

    * ``.npz``: the arrays ``words`` [n] and ``vectors`` [n, dimension] (fp16, fp32 or fp64).
    * ``.bin``: word2vec's binary form.
    * Anything else: text as written by GloVe, word2vec and fastText, one word and its numbers per line, with or without
      a first line "count dimension". Single spaces separate the fields; or a tab follows the word, and spaces or tabs
      separate the numbers. Rows of other words are checked only for being too short and for NUL bytes.

    ``.bin`` and text files may be compressed as ``.gz``, ``.bz2``, ``.xz`` or a ``.zip`` of one file. If a file has
    several vectors for a word, the first one counts.

    If the file lacks a word as spelled, the vector of its lowercase, Capitalized or UPPERCASE form is used, in this
    order. Words without a vector, and the unknown word, get normally distributed random values with the mean and
    standard deviation of the found rows in each dimension. The padding row is zero.

    Args:
        path: the file of vectors.
        vocabulary: the words to find vectors for.
        more_words: words that join the vocabulary, in this order, if they have a vector. Words that the vocabulary
            already lists or cannot list are skipped.
        seed: seed of the random values.
        cache: the folder in which to save the rows found, for the next call; None saves nothing.
        on_bad_row: called for each row that cannot be read, which is then skipped, and once if the number of rows is
            not the one that the first line says. In ``.bin`` and ``.npz`` files, ``line`` is the row. If None, a bad
            row raises ``DataError``.
        show_progress_bar: show progress on stderr if reading takes longer than a second.

    Returns:
        The vocabulary, extended by ``more_words``, its embedding matrix and the number of words found.

    Raises:
        DataError: the file cannot be read, is malformed or has a vector for none of the words.
    """
    asked = vocabulary.extended(more_words)
    arrays = _found_rows(path, asked, cache, on_bad_row, show_progress_bar)
    if not arrays["found"].any():
        got = f"none of {len(asked) - 2}"
        for row in _bad_rows(arrays)[:1]:
            got += f" that can be read; line {row.line}: {row.reason}"
        raise DataError(f"{path}: expected vectors of the vocabulary's words, got {got}")
    stays = arrays["found"].clone()
    stays[: len(vocabulary)] = True
    matrix, found = arrays["rows"][stays], arrays["found"][stays]
    _fill(matrix, found, seed)
    return PretrainedVectors(vocabulary.extended(compress(asked.words, stays)), matrix, int(found.sum()))


def words_with_vector(
    path: str | os.PathLike[str],
    words: Iterable[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    on_bad_row: Callable[[BadRow], object] | None = None,
    show_progress_bar: bool = False,
) -> list[str]:
    """Return those of ``words`` for which a file has a vector.

    Args:
        path: the file of vectors.
        words: the words to look for, spelled in any case as in ``load_vectors``.
        cache: as for ``load_vectors``.
        on_bad_row: as for ``load_vectors``.
        show_progress_bar: as for ``load_vectors``.

    Returns:
        The words found, each once, in order of first occurrence.

    Raises:
        DataError: the file cannot be read or is malformed.
    """
    asked = Vocabulary([UNKNOWN, PADDING]).extended(words)
    return list(compress(asked.words, _found_rows(path, asked, cache, on_bad_row, show_progress_bar)["found"]))


def _fill(matrix: Tensor, found: Tensor, seed: int) -> None:
    """Fill the rows that were not found with random values that resemble the found ones."""
    known = matrix[found].numpy()
    # One vector has no deviation within a dimension, so take the moments over all its numbers.
    axis = 0 if len(known) > 1 else None
    moments = (moment(known, axis=axis, dtype=np.float64) for moment in (np.mean, np.std))
    mean, deviation = (torch.as_tensor(moment).float() for moment in moments)
    noise = torch.randn(int((~found).sum()), matrix.size(1), generator=torch.Generator().manual_seed(seed))
    matrix[~found] = mean + deviation * noise
    matrix[PADDING_ID] = 0


def _found_rows(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    cache: str | os.PathLike[str] | None,
    on_bad_row: Callable[[BadRow], object] | None,
    show_progress_bar: bool,
) -> Arrays:
    """Find the vectors of a vocabulary's words, in the cache or in the file.

    Returns:
        ``rows``: float32 ``[words, dimension]``, zero for words not found; ``found``: bool ``[words]``; ``bad_rows``:
        JSON.
    """
    name = os.fspath(path)
    options = {
        "result": "vectors 2",
        "form": form_of(name),
        "cases": "exact, lower, capitalized, upper",
        "words": hashlib.sha256("\n".join(vocabulary.words).encode()).hexdigest(),
    }
    most_bad = 0 if on_bad_row is None else _MOST_BAD_ROWS
    read = partial(_read_rows, name, vocabulary, most_bad=most_bad, show_progress_bar=show_progress_bar)
    arrays = kept(cache, name, options, read, fits=partial(_fit, count=len(vocabulary)))
    for row in _bad_rows(arrays):
        if on_bad_row is None:
            raise _refusal(name, row)
        on_bad_row(row)
    return arrays


def _fit(arrays: Arrays, count: int) -> bool:
    """Return whether cached arrays are valid for ``count`` words."""
    if {name: (array.dtype, array.dim()) for name, array in arrays.items()} != _EXPECTED:
        return False
    try:
        bad_rows = _bad_rows(arrays)
    except (TypeError, ValueError, RecursionError):
        return False
    rows, found = arrays["rows"], arrays["found"]
    return (
        len(rows) == len(found) == count
        and bool(rows.isfinite().all())
        and (rows.shape[1] > 0 or not found.any())
        and all(isinstance(row.line, int) and row.reason == one_line(row.reason) for row in bad_rows)
    )


def _bad_rows(arrays: Arrays) -> list[BadRow]:
    return [BadRow(*row) for row in json.loads(text_of(arrays["bad_rows"]))]


def _refusal(name: str, row: BadRow, before: int = 0) -> DataError:
    remedy = " (to skip such rows, use --skip-bad-rows or on_bad_row=)"
    more = f", and {before:,} rows before it are bad as well" if before else remedy
    return DataError(f"{name}:{row.line}: {row.reason}{more}")


def _read_rows(name: str, vocabulary: Vocabulary, most_bad: int, show_progress_bar: bool) -> Arrays:
    wanted = _spellings(vocabulary)
    preference = np.full(len(vocabulary), len(_CASES))  # rank of the spelling found so far
    table = None
    bad_rows: list[BadRow] = []
    with _bar(name, show_progress_bar) as bar, closing(wanted_rows(name, wanted, most_bad, bar.update)) as rows:
        for found in rows:
            if isinstance(found, BadRow):
                bad_rows.append(found)
                if len(bad_rows) > most_bad:
                    raise _refusal(name, found, most_bad)
                continue
            spelling, vector = found
            if table is None:
                table = np.zeros((len(vocabulary), len(vector)), dtype=np.float32)
            for row, rank in wanted[spelling]:
                if rank < preference[row]:
                    preference[row] = rank
                    table[row] = vector
    if table is None:
        table = np.zeros((len(vocabulary), 0), dtype=np.float32)
    return {
        "rows": torch.from_numpy(table),
        "found": torch.from_numpy(preference < len(_CASES)),
        "bad_rows": text_array(json.dumps(bad_rows)),
    }


def _bar(name: str, shown: bool) -> tqdm:
    """Return a bar that counts bytes; the total of a compressed file is unknown."""
    is_plain = os.path.isfile(name) and form_of(name) != "npz" and not compression_of(name)
    size = os.path.getsize(name) if is_plain else None
    return tqdm(desc=name, total=size, unit="B", unit_scale=True, delay=1, leave=False, disable=not shown)


def _spellings(vocabulary: Vocabulary) -> dict[str, list[tuple[int, int]]]:
    """Map each spelling to look for to the rows that it can fill, with its rank in ``_CASES``."""
    wanted = defaultdict(list)
    for row, word in enumerate(vocabulary.words):
        if row not in (UNKNOWN_ID, PADDING_ID):
            for rank, spelling in enumerate(dict.fromkeys(case(word) for case in _CASES)):
                wanted[spelling].append((row, rank))
    return dict(wanted)

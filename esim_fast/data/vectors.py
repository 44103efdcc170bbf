"""Pretrained word vectors, for the words of a vocabulary."""

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

_CASES: Sequence[Callable[[str], str]] = (str, str.lower, str.capitalize, str.upper)  # by preference
_EXPECTED = {  # dtype and dimensions
    "rows": (torch.float32, 2),
    "found": (torch.bool, 1),
    "bad_rows": (torch.uint8, 1),
}
_MOST_BAD_ROWS = 100_000  # of a file; with more of them it is something else, and they would fill the memory


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
    cache: str | os.PathLike[str] | None = None,
    on_bad_row: Callable[[BadRow], object] | None = None,
    show_progress_bar: bool = False,
) -> PretrainedVectors:
    """Read the vectors of a vocabulary's words.

    The name of the file says what it holds. Of a word that it holds twice the first vector counts.

    * ``.npz``: the arrays ``words`` [n] and ``vectors`` [n, dimension] (fp16, fp32 or fp64);
    * ``.bin``: word2vec's binary form;
    * anything else: text as of GloVe, word2vec and fastText, a word and its numbers a line, separated by single spaces,
      or the word by a tab and the numbers by spaces or tabs, with or without a first line "count dimension". Rows that
      are not needed are checked for being too short and for NUL bytes only.

    Either may be compressed: ``.gz``, ``.bz2``, ``.xz`` or a ``.zip`` of one file.

    Where the file lacks a word as it is spelled, its vector is that of the word in lower case, else Capitalized, else
    in UPPER case. Words found in no case, and the unknown word, get normal random values with the mean and standard
    deviation of the found rows, dimension by dimension; the padding row is zero.

    Args:
        more_words: words that join the vocabulary if they have a vector, in this order; what the vocabulary lists or
            could not list is passed over.
        cache: folder that keeps the rows found for the next time; None keeps nothing.
        on_bad_row: called for each row that cannot be read, which is then left out; what its first line promises in
            vain counts as one. ``line`` is the row in ``.bin`` and ``.npz`` files. With None such a row is an error.
        show_progress_bar: show on stderr how much of the file is read, where that takes longer than a second.

    Raises:
        DataError: the file cannot be read, is malformed or has none of the words.
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
    """Those of some words for which a file has a vector, as :func:`load_vectors` looks for them."""
    asked = Vocabulary([UNKNOWN, PADDING]).extended(words)
    return list(compress(asked.words, _found_rows(path, asked, cache, on_bad_row, show_progress_bar)["found"]))


def _fill(matrix: Tensor, found: Tensor, seed: int) -> None:
    """Give the rows that were not ``found`` values that resemble those of the others."""
    known = matrix[found].numpy()
    # A single vector says nothing of how a dimension varies: then its numbers are taken together.
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
    """The ``rows`` of a vocabulary's words, float32 [words, dimension], zero where they were not ``found``, bool
    [words]; and the ``bad_rows``, as JSON.
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
    """Whether these are the rows of ``count`` words."""
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
    remedy = " (to leave out such rows: --skip-bad-rows or on_bad_row=)"
    more = f", and {before:,} rows before it are bad as well" if before else remedy
    return DataError(f"{name}:{row.line}: {row.reason}{more}")


def _read_rows(name: str, vocabulary: Vocabulary, most_bad: int, show_progress_bar: bool) -> Arrays:
    wanted = _spellings(vocabulary)
    preference = np.full(len(vocabulary), len(_CASES))  # of the spelling found so far
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
    """Counts the bytes that are read; how many there are is not known of a file that is packed."""
    is_plain = os.path.isfile(name) and form_of(name) != "npz" and not compression_of(name)
    size = os.path.getsize(name) if is_plain else None
    return tqdm(desc=name, total=size, unit="B", unit_scale=True, delay=1, leave=False, disable=not shown)


def _spellings(vocabulary: Vocabulary) -> dict[str, list[tuple[int, int]]]:
    """For every spelling to look for: the rows that it can fill, each with its rank among the cases."""
    wanted = defaultdict(list)
    for row, word in enumerate(vocabulary.words):
        if row not in (UNKNOWN_ID, PADDING_ID):
            for rank, spelling in enumerate(dict.fromkeys(case(word) for case in _CASES)):
                wanted[spelling].append((row, rank))
    return dict(wanted)

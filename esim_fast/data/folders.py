"""Find the training, dev and test files in a folder."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from .hub import find_splits

_ENDINGS = tuple(
    ending + packed
    for ending in (".jsonl", ".tsv", ".csv", ".txt", ".json")
    for packed in ("", ".gz", ".bz2", ".xz", ".zip")
) + (".parquet",)
# The file names of official releases. MultiNLI's test labels are not public, so its mismatched dev set is the test set.
_RELEASES = (
    ("snli_1.0_train", "snli_1.0_dev", "snli_1.0_test"),
    ("multinli_1.0_train", "multinli_1.0_dev_matched", "multinli_1.0_dev_mismatched"),
    ("train", "dev_matched", "dev_mismatched"),  # GLUE
    ("train", "dev", "test"),
)
# Words that give a file's role away. They must be whole words, because "latest" is not a test set.
_WORDS = {"train": "train|training", "dev": "dev|valid|validation|val", "test": "test"}


class CorpusFiles(NamedTuple):
    """The splits of a corpus, as file names or ``hub:NAME#SPLIT``."""

    train: str
    dev: str
    test: str | None


def find_corpus(folder: str | os.PathLike[str]) -> CorpusFiles:
    """Find the splits of a corpus in a folder, or in the dataset ``hub:NAME`` or ``hub:NAME:CONFIGURATION``.

    The layouts of SNLI, MultiNLI and GLUE are known. In other folders, the one file with "train" in its name is the
    training file, and so on. If several files differ only in their suffix, ``.jsonl`` is preferred.

    Raises:
        DataError: there is no such folder, a split is missing, or several files could be it.
    """
    name = os.fspath(folder)
    if name.startswith("hub:"):
        return CorpusFiles(*find_splits(name))
    if not os.path.isdir(name):
        raise DataError(f"{name}: no such directory")
    corpora = (path for path in Path(name).iterdir() if path.name.endswith(_ENDINGS) and path.name[0] != ".")
    files = sorted(path.name for path in corpora if path.is_file())
    for stems in _RELEASES:
        there = (next((stem + ending for ending in _ENDINGS if stem + ending in files), None) for stem in stems)
        train, dev, test = (file and os.path.join(name, file) for file in there)
        if train and dev:
            return CorpusFiles(train, dev, test)
    found: dict[str, Any] = {}  # by field of CorpusFiles
    for part, words in _WORDS.items():
        named = [file for file in files if re.search(rf"(?<![a-z])({words})(?![a-z])", file.lower())]
        by_form = ([file for file in named if file.endswith(ending)] for ending in _ENDINGS)
        candidates = next(filter(None, by_form), [])  # files in the preferred form
        if len(candidates) > 1:
            raise DataError(f"{name}: expected one {part} file, got {', '.join(candidates)}")
        sides = [os.path.join(name, f"{side}.{part}") for side in ("s1", "s2", "labels")]
        if not candidates and all(map(os.path.exists, sides)):
            raise DataError(
                f"{name}: sentences and labels are in separate files; join them for every split, for example "
                f"paste labels.{part} s1.{part} s2.{part} > {part}.tsv"
            )
        if not candidates and part != "test":
            raise DataError(f"{name}: expected a file with {part} in its name that ends in .tsv, .jsonl or the like")
        found[part] = os.path.join(name, candidates[0]) if candidates else None
        files = [file for file in files if file not in candidates]
    return CorpusFiles(**found)

"""Folders that hold a training, a dev and perhaps a test file."""

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
# The names of official releases. MultiNLI publishes no labels of its test sets; its mismatched dev set is what people
# report beside the matched one.
_RELEASES = (
    ("snli_1.0_train", "snli_1.0_dev", "snli_1.0_test"),
    ("multinli_1.0_train", "multinli_1.0_dev_matched", "multinli_1.0_dev_mismatched"),
    ("train", "dev_matched", "dev_mismatched"),  # as in GLUE
    ("train", "dev", "test"),
)
# What else a name may say of a file, if it stands there as a word: "latest" is no test.
_WORDS = {"train": "train|training", "dev": "dev|valid|validation|val", "test": "test"}


class CorpusFiles(NamedTuple):
    """Where the parts of a corpus are: files, or ``hub:NAME#SPLIT``."""

    train: str
    dev: str
    test: str | None


def find_corpus(folder: str | os.PathLike[str]) -> CorpusFiles:
    """The parts of a corpus in a folder, or of the data set ``hub:NAME`` or ``hub:NAME:CONFIGURATION``.

    The folders of SNLI, MultiNLI and GLUE are known; in others, the one file with "train" in its name is taken for
    training, and so on. Of files that differ in their ending only, ``.jsonl`` is preferred.

    Raises:
        DataError: there is no such folder, a part is missing, or several files could be it.
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
    found: dict[str, Any] = {}  # fields of CorpusFiles
    for part, words in _WORDS.items():
        named = [file for file in files if re.search(rf"(?<![a-z])({words})(?![a-z])", file.lower())]
        by_form = ([file for file in named if file.endswith(ending)] for ending in _ENDINGS)
        candidates = next(filter(None, by_form), [])  # those in the preferred form
        if len(candidates) > 1:
            raise DataError(f"{name}: which is the {part} file? {', '.join(candidates)}")
        sides = [os.path.join(name, f"{side}.{part}") for side in ("s1", "s2", "labels")]
        if not candidates and all(map(os.path.exists, sides)):
            raise DataError(
                f"{name}: sentences and labels are in files of their own: put them side by side, "
                f"paste labels.{part} s1.{part} s2.{part} > {part}.tsv, and so on"
            )
        if not candidates and part != "test":
            raise DataError(f"{name}: expected a file with {part} in its name and a corpus's ending")
        found[part] = os.path.join(name, candidates[0]) if candidates else None
        files = [file for file in files if file not in candidates]
    return CorpusFiles(**found)

"""Data sets of the Hugging Face hub, or saved by its library: ``hub:NAME``, ``hub:NAME:CONFIGURATION``, ``…#SPLIT``.

Needs the extra ``esim_fast[hub]``. Classes become their names, so that no order of theirs can change a label's meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import DataError, kind_and_reason

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SPLITS = {
    "train": ("train",),
    "dev": ("validation", "dev", "validation_matched"),
    "test": ("test", "validation_mismatched"),
}


def find_splits(name: str) -> tuple[str, str, str | None]:
    """Names of the training, dev and test split of a data set."""
    splits = _load(name)
    train, dev, test = (
        next((f"{name}#{split}" for split in names if split in splits), None) for names in _SPLITS.values()
    )
    if "validation_matched" in splits:  # the labels of MultiNLI's test sets are not public
        test = f"{name}#validation_mismatched"
    if train is None or dev is None:
        expected = _SPLITS["dev" if train else "train"]
        raise DataError(f"{name}: expected a split {' or '.join(expected)}, got {', '.join(splits)}")
    return train, dev, test


def dataset_lines(name: str) -> Iterator[bytes]:
    """The rows of ``hub:NAME#SPLIT`` as lines of JSON."""
    from datasets import ClassLabel, Value  # optional, and slow to import

    rows = _split(name)
    classes = {column: feature.names for column, feature in rows.features.items() if isinstance(feature, ClassLabel)}
    columns = [column for column, feature in rows.features.items() if isinstance(feature, (ClassLabel, Value))]
    for row in rows.select_columns(columns):
        for column, names in classes.items():
            number = row[column]
            row[column] = "-" if number is None or number < 0 else names[number]  # -1: no gold label
        yield json.dumps(row, default=str).encode()


def fingerprint(name: str) -> str:
    """What tells one content of a split from another."""
    return str(_split(name)._fingerprint)


def _split(name: str) -> Dataset:
    source, _, split = name.partition("#")
    splits = _load(source)
    if split not in splits:
        raise DataError(f"{source}: expected one of its splits after #, {', '.join(splits)}, got {split!r}")
    return splits[split]


def _load(name: str) -> DatasetDict:
    try:
        import datasets  # optional, and slow to import
    except ImportError as error:
        raise DataError(f"{name}: needs Hugging Face's library: pip install datasets") from error
    path, _, configuration = name.removeprefix("hub:").partition(":")
    try:
        saved = os.path.isdir(path) and any("dataset_dict.json" in entry for entry in os.listdir(path))
        return datasets.load_from_disk(path) if saved else datasets.load_dataset(path, configuration or None)
    except Exception as error:  # the library raises whatever its network and file layers do
        raise DataError(f"{name}: {kind_and_reason(error)}") from error

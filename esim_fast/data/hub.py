"""Read datasets of the Hugging Face Hub, datasets saved to disk, and Parquet files.

Datasets are named ``hub:NAME`` or ``hub:NAME:CONFIGURATION``, and their splits ``…#SPLIT``. This module needs the
extra ``esim_fast[hub]``. Class ids become class names, so that no order of classes can change what a label means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import DataError, first_line, kind_and_reason, naming
from .compression import open_file

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ROWS, _ROWS_AT_ONCE = 1000, 16  # rows to decode together, and to convert to Python objects together
_LARGEST_GROUP = 2**30  # bytes in a row group, which Parquet can only read as a whole
_SPLITS = {
    "train": ("train",),
    "dev": ("validation", "dev", "validation_matched"),
    "test": ("test", "validation_mismatched"),
}


def find_splits(name: str) -> tuple[str, str, str | None]:
    """Return the names of a dataset's training, dev and test splits."""
    splits = _load(name)
    train, dev, test = (
        next((f"{name}#{split}" for split in names if split in splits), None) for names in _SPLITS.values()
    )
    if "validation_matched" in splits:  # MultiNLI, whose test labels are not public
        test = f"{name}#validation_mismatched"
    if train is None or dev is None:
        expected = _SPLITS["dev" if train else "train"]
        raise DataError(f"{name}: expected a split {' or '.join(expected)}, got {', '.join(splits)}")
    return train, dev, test


def dataset_lines(name: str) -> Iterator[bytes]:
    """Yield the rows of ``hub:NAME#SPLIT`` as lines of JSON."""
    from datasets import ClassLabel, Value  # optional, and slow to import

    rows = _split(name)
    classes = {column: feature.names for column, feature in rows.features.items() if isinstance(feature, ClassLabel)}
    columns = [column for column, feature in rows.features.items() if isinstance(feature, (ClassLabel, Value))]
    yield from _json_lines(rows.select_columns(columns), classes)


def parquet_lines(name: str) -> Iterator[bytes]:
    """Yield the rows of a Parquet file as lines of JSON; skip columns other than text, numbers and booleans.

    Raises:
        DataError: pyarrow is not installed, the file is not Parquet, or a row group is too large.
    """
    try:
        import pyarrow  # optional, and slow to import
        from pyarrow import parquet, types
    except ImportError as error:
        raise DataError(f"{name}: needs pyarrow: pip install pyarrow") from error
    try:
        with naming(name):
            source = open_file(name)
        with source:
            schema = parquet.read_schema(source)
            text = (types.is_string, types.is_large_string, types.is_dictionary)
            plain = (*text, types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
            strings, columns = (
                [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
                for kinds in (text, plain)
            )
            # Keep a string that many rows share in memory only once.
            file = parquet.ParquetFile(source, read_dictionary=strings)
            classes = _classes_of(schema.metadata or {})
            for group in range(file.num_row_groups):
                if file.metadata.row_group(group).total_byte_size > _LARGEST_GROUP:
                    raise DataError(f"{name}: expected row groups of at most {_LARGEST_GROUP} bytes, got a larger one")
            for batch in file.iter_batches(_ROWS, columns=columns):
                for begin in range(0, len(batch), _ROWS_AT_ONCE):
                    yield from _json_lines(batch.slice(begin, _ROWS_AT_ONCE).to_pylist(), classes)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: not a Parquet file, or a damaged one: {first_line(error)}") from error


def _classes_of(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return class names by column, as Hugging Face's library stores them in a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: list(map(str, kind["names"])) for name, kind in features.items() if "names" in kind}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _json_lines(rows: Iterable[dict[str, Any]], classes: dict[str, list[str]]) -> Iterator[bytes]:
    for row in rows:
        for column, names in classes.items():
            number = row.get(column)
            if isinstance(number, int | None):
                row[column] = "-" if number is None or not 0 <= number < len(names) else names[number]
        yield json.dumps(row, default=str).encode()


def fingerprint(name: str) -> str:
    """Return a string that changes with the content of a split."""
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

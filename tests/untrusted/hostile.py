"""Helpers of the tests of hostile files: how to create them, and how they must be rejected."""

import contextlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from esim_fast import Classifier
from esim_fast.classifier import CONFIG, LABELS, VOCABULARY, WEIGHTS
from esim_fast.data import DataError
from tests.data.files import zipped
from tests.untrusted import fuzz_targets
from tests.untrusted.fuzz_targets import Marker

PARTS = (CONFIG, LABELS, VOCABULARY, WEIGHTS)
DEEP = 100_000  # nested brackets


def save_model(folder: Path) -> Path:
    """A model directory, and its path."""
    fuzz_targets.model().save_pretrained(folder / "model")
    return folder / "model"


@contextlib.contextmanager
def in_disguise(folder: Path) -> Iterator[bytes]:
    """A pickle that creates a directory if it is loaded; checks afterwards that there is none."""
    place = folder / "executed"
    yield pickle.dumps(Marker(place), protocol=2)
    assert not place.exists()


def refused(read: Callable[[], object], message: str = "", kind: type[Exception] = DataError) -> None:
    with pytest.raises(kind) as caught:
        read()
    line = str(caught.value)
    assert message in line
    assert line.isprintable()
    assert 0 < len(line) < 1100


def load(model: Path, **options: str) -> Classifier:
    return Classifier.from_pretrained(model, device="cpu", **options)


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    yield
    assert content() == before


def in_safetensors(header: object, numbers: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def in_npy(header: str, numbers: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + numbers


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.write_bytes(zipped(members, compression))
    return path


def in_torch(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Checks that nothing is printed besides the error."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        yield
    assert not said.getvalue()

"""Files for the tests of their readers, and what a reader says of a wrong one."""

import gzip
import io
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esim_fast.data import DataError, PreparedCorpus, Vocabulary


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """Writes a file, a compressed one if its name says so."""
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression, compresslevel=1) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def damage(content: bytes, draw: random.Random, pieces: list[bytes]) -> bytes:
    """Bytes with one to three things done to them: some are left out, replaced, or there twice."""
    found = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        place, end = sorted(draw.randrange(len(found) + 1) for _ in "be")
        other = [b"", bytes([draw.randrange(256)]), draw.choice(pieces), bytes(found[place:end]) * 2]
        found[place : draw.choice([place, place + 1, end])] = draw.choice(other)
    return bytes(found)


def refusal(function: Callable, *arguments: object, **options: object) -> str:
    """What a function says when it refuses a file: one printable line of some length."""
    with pytest.raises(DataError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert 0 < len(message) < 1100
    return message


def vocabulary_of(*words: str) -> Vocabulary:
    return Vocabulary(["<unk>", "<pad>", *words])


def pairs_of(corpus: PreparedCorpus) -> list[tuple[list[str], list[str], str | None, int]]:
    """What a corpus holds, as one would write it down."""
    sentences = [[corpus.words[token] for token in part] for part in np.split(corpus.tokens, corpus.ends)][:-1]
    labels = [None if label < 0 else corpus.label_names[label] for label in corpus.labels]
    return list(zip(sentences[::2], sentences[1::2], labels, corpus.lines.tolist(), strict=True))


def assert_linear(work: Callable[[int], object]) -> None:
    """Work's time grows with its size and not faster."""

    def seconds(count: int) -> float:
        begin = time.process_time()
        work(count)
        return time.process_time() - begin

    seconds(100)
    short, long = min(seconds(2_000) for _ in range(3)), seconds(32_000)
    assert long < 5 * 16 * short + 0.01  # a square would be 16 times 16

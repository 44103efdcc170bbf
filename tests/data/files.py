"""Files for the tests of their readers, and what a reader says of a wrong one."""

import bz2
import gzip
import io
import lzma
import os
import random
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esim_fast.data import DataError, PreparedCorpus, Vocabulary


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """Writes a file, a compressed one if its name says so."""
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(compressed(path.name, data))
    return path


def compressed(name: str, data: bytes) -> bytes:
    """Bytes as a file of this name should hold them."""
    stem, ending = os.path.splitext(name.lower())
    if ending == ".zip":
        return zipped({stem: data}, zipfile.ZIP_DEFLATED)
    if ending == ".gz":
        return gzip.compress(data, mtime=0)  # tests have the content in their names
    return {".bz2": bz2, ".xz": lzma}[ending].compress(data) if ending in (".bz2", ".xz") else data


def xz_with_dictionary(data: bytes, code: int) -> bytes:
    """An .xz file whose decoder is told to take more memory than the data need: 1 GiB for a code of 36."""
    content = lzma.compress(data)
    header_end = 12 + 4 * content[12]  # of the first block's header, without its checksum
    header = bytearray(content[12:header_end])
    header[header.index(b"\x21\x01") + 2] = code
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "little") + content[header_end + 4 :]


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression, compresslevel=1) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member, compression, 1)  # of no time: tests are named by it
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

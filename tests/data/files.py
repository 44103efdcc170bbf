"""Files for the tests of readers, and the messages about bad files."""

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
    """Writes a file, compressed according to its name."""
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(compressed(path.name, data))
    return path


def compressed(name: str, data: bytes) -> bytes:
    """Bytes compressed according to a file's name."""
    stem, ending = os.path.splitext(name.lower())
    if ending == ".zip":
        return zipped({stem: data}, zipfile.ZIP_DEFLATED)
    if ending == ".gz":
        return gzip.compress(data, mtime=0)  # reproducible, because test names contain it
    return {".bz2": bz2, ".xz": lzma}[ending].compress(data) if ending in (".bz2", ".xz") else data


def xz_with_dictionary(data: bytes, code: int) -> bytes:
    """An .xz file that declares more decoder memory than it needs: 1 GiB with code 36."""
    content = lzma.compress(data)
    header_end = 12 + 4 * content[12]  # end of the first block's header, without its checksum
    header = bytearray(content[12:header_end])
    header[header.index(b"\x21\x01") + 2] = code
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "little") + content[header_end + 4 :]


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression, compresslevel=1) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member, compression, 1)  # no time: test names contain it
    return content.getvalue()


def damage(content: bytes, draw: random.Random, pieces: list[bytes]) -> bytes:
    """Bytes with one to three random changes: deletions, replacements or repetitions."""
    found = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        place, end = sorted(draw.randrange(len(found) + 1) for _ in "be")
        other = [b"", bytes([draw.randrange(256)]), draw.choice(pieces), bytes(found[place:end]) * 2]
        found[place : draw.choice([place, place + 1, end])] = draw.choice(other)
    return bytes(found)


def refusal(function: Callable, *arguments: object, **options: object) -> str:
    """The error of a function that rejects a file: one printable line of limited length."""
    with pytest.raises(DataError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert 0 < len(message) < 1100
    return message


def vocabulary_of(*words: str) -> Vocabulary:
    return Vocabulary(["<unk>", "<pad>", *words])


def pairs_of(corpus: PreparedCorpus) -> list[tuple[list[str], list[str], str | None, int]]:
    """A corpus's content in a readable form."""
    sentences = [[corpus.words[token] for token in part] for part in np.split(corpus.tokens, corpus.ends)][:-1]
    labels = [None if label < 0 else corpus.label_names[label] for label in corpus.labels]
    return list(zip(sentences[::2], sentences[1::2], labels, corpus.lines.tolist(), strict=True))


def assert_linear(work: Callable[[int], object]) -> None:
    """Checks that the time of some work grows linearly with its size."""

    def seconds(count: int) -> float:
        begin = time.process_time()
        work(count)
        return time.process_time() - begin

    seconds(100)
    short, long = min(seconds(2_000) for _ in range(3)), seconds(32_000)
    assert long < 5 * 16 * short + 0.01  # quadratic time would be 256 times as long

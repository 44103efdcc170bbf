"""Rows of word vectors, and how programs write them."""

import gzip
from pathlib import Path

import numpy as np

from esim_fast.data import Vocabulary

VOCABULARY = Vocabulary(["<unk>", "<pad>", "the", "cat", "paris", "usa", "unheard"])


Rows = list[tuple[str, np.ndarray]]


ROWS = "the 1 2 3\nof 9 9 9\ncat -1e-1 0.5 4\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def write_npz(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "vectors.npz"
    np.savez(path, **arrays)
    return path


def as_text(rows: Rows) -> bytes:
    """As GloVe writes it, with just so many digits that float32 numbers read back."""
    return b"".join(b" ".join([word.encode(), *(str(n).encode() for n in row)]) + b"\n" for word, row in rows)


def as_binary(rows: Rows, ending: bytes = b"") -> bytes:
    """As word2vec (the ending is a line feed) and gensim (there is none) write it."""
    header = f"{len(rows)} {len(rows[0][1])}\n".encode()
    return header + b"".join(word.encode() + b" " + row.astype("<f4").tobytes() + ending for word, row in rows)

"""Files of word vectors for tests, in the forms of GloVe, word2vec and gensim."""

import io
from pathlib import Path

import numpy as np

from tests.data.files import vocabulary_of

Rows = list[tuple[str, np.ndarray]]

VOCABULARY = vocabulary_of("the", "cat", "paris", "usa", "unheard")
NONE = ": expected vectors of the vocabulary's words, got none of 5"
REMEDY = " (to skip such rows, use --skip-bad-rows or on_bad_row=)"
ROWS = "the 1 2 3\nof 9 9 9\ncat -1e-1 0.5 4\n"
BEHIND_TABS = "the\t1 2 3\nof\t9 9 9\ncat\t-1e-1 0.5 4\n"


def write_npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "vectors.npz", **arrays)
    return folder / "vectors.npz"


def saved(save, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    content = io.BytesIO()
    save(content, *arrays, **named)
    return content.getvalue()


def as_text(rows: Rows, word_end: bytes = b" ", between: bytes = b" ") -> bytes:
    """GloVe's form, with enough digits to read float32 numbers back."""
    return b"".join(word.encode() + word_end + between.join(str(n).encode() for n in row) + b"\n" for word, row in rows)


def as_binary(rows: Rows, ending: bytes = b"") -> bytes:
    """The binary form of word2vec (``ending`` is a line feed) and gensim (no ending)."""
    header = f"{len(rows)} {len(rows[0][1])}\n".encode()
    return header + b"".join(word.encode() + b" " + row.astype("<f4").tobytes() + ending for word, row in rows)


THREE = [
    ("the", np.array([1, 2], dtype=np.float32)),
    ("of", np.array([np.nan, np.inf], dtype=np.float32)),  # not needed, so not checked
    ("Cat", np.frombuffer(b"\n \x00\x3f \n\x20\x40", dtype="<f4")),  # its bytes look like text
]

"""What a file of word vectors is by its first bytes, whatever its name says."""

import math
import re

import numpy as np

from .compression import what_it_is

BLANKS = b" \t\r\n"  # that may end a line
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1f]")
_TO_NPZ = "save its words and vectors with numpy.savez, as .npz"
_GENSIM = "gensim's save_word2vec_format('vectors.bin', binary=True)"
_PICKLE = f"a pickle, which could execute anything: {_TO_NPZ}, or with {_GENSIM}"
_FASTTEXT = "a model of fastText: use its .vec file, or write one with get_words() and get_word_vector()"
# How files begin that hold vectors but cannot be read, and what to do about them.
_BEGINNINGS = {
    b"\xba\x16\x4f\x2f": _FASTTEXT,
    b"\x93NUMPY": f"an array without words: {_TO_NPZ}",
    **{bytes([0x80, protocol]): _PICKLE for protocol in range(2, 6)},
}


def other_than_vectors(beginning: bytes) -> str | None:
    """What a file is that begins like this and holds no vectors that can be read, and what to do about it."""
    if beginning.startswith(b"PK\x03\x04"):
        name = beginning[30 : 30 + int.from_bytes(beginning[26:28], "little")]  # of the first file in it
        if name.endswith(b".npy"):
            return "an .npz archive: its name should end in .npz"
        if name.endswith(b"/data.pkl"):
            return f"a file of torch.save: {_TO_NPZ}"
    what = next((what for magic, what in _BEGINNINGS.items() if beginning.startswith(magic)), None)
    return what or what_it_is(beginning)


def is_row(line: bytes, dimension: int | None = None) -> bool:
    """Whether a line is a word and its vector as text; without a dimension, a word that is no number."""
    word, *fields = fields_of(line.rstrip(BLANKS))
    if dimension is None:
        return bool(fields) and all(map(is_number, fields)) and not is_number(word)
    return 0 < dimension <= len(fields) and all(map(is_number, fields[-dimension:]))


def is_text(content: bytes) -> bool:
    """Whether bytes can be of a text, in UTF-8, which may be cut off within a character."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
    return not _NOT_TEXT.search(content)


def fields_of(line: bytes) -> list[bytes]:
    return line.replace(b"\t", b" ").split(b" ")


def is_number(field: bytes) -> bool:
    """Whether a field is a number that float32 can hold, so neither NaN nor infinite."""
    try:
        with np.errstate(over="ignore"):
            return math.isfinite(np.float32(float(field)))
    except ValueError:
        return False

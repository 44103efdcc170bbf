"""Recognize files of word vectors by their first bytes, whatever their names say."""

import math
import re

import numpy as np

from .compression import what_it_is

BLANKS = b" \t\r\n"  # allowed at the end of a line
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1f]")
_TO_NPZ = "save its words and vectors with numpy.savez, as .npz"
_GENSIM = "gensim's save_word2vec_format('vectors.bin', binary=True)"
_PICKLE = f"a pickle, which could execute arbitrary code; {_TO_NPZ}, or with {_GENSIM}"
_FASTTEXT = "a fastText model; use its .vec file, or write one with get_words() and get_word_vector()"
# The first bytes of files whose vectors cannot be read, and the remedy for each.
_BEGINNINGS = {
    b"\xba\x16\x4f\x2f": _FASTTEXT,
    b"\x93NUMPY": f"an array without words; {_TO_NPZ}",
    **{bytes([0x80, protocol]): _PICKLE for protocol in range(2, 6)},
}


def other_than_vectors(beginning: bytes) -> str | None:
    """Return what kind of file begins like this, with the remedy; None if it may hold vectors."""
    if beginning.startswith(b"PK\x03\x04"):
        name = beginning[30 : 30 + int.from_bytes(beginning[26:28], "little")]  # of the archive's first file
        if name.endswith(b".npy"):
            return "an .npz archive; its name should end in .npz"
        if name.endswith(b"/data.pkl"):
            return f"a file written by torch.save; {_TO_NPZ}"
    what = next((what for magic, what in _BEGINNINGS.items() if beginning.startswith(magic)), None)
    return what or what_it_is(beginning)


def is_row(line: bytes, dimension: int | None = None) -> bool:
    """Return whether a line is a word and its vector as text; without ``dimension``, the word must not be a number."""
    word, *fields = fields_of(line.rstrip(BLANKS))
    if dimension is None:
        return bool(fields) and all(map(is_number, fields)) and not is_number(word)
    return 0 < dimension <= len(fields) and all(map(is_number, fields[-dimension:]))


def is_text(content: bytes) -> bool:
    """Return whether bytes may be UTF-8 text, possibly cut off inside a character."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
    return not _NOT_TEXT.search(content)


def fields_of(line: bytes) -> list[bytes]:
    return line.replace(b"\t", b" ").split(b" ")


def is_number(field: bytes) -> bool:
    """Return whether a field is a number that is finite in float32."""
    try:
        with np.errstate(over="ignore"):
            return math.isfinite(np.float32(float(field)))
    except ValueError:
        return False

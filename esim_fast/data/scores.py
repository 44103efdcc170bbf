"""Scores: numbers that stand where other corpora have labels, such as how alike two sentences are."""

import re

import numpy as np

from ..errors import BadRowError

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)


def is_score(text: str) -> bool:
    """Whether a text is a decimal number that float32 holds."""
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) <= _LARGEST


def score_of(text: str) -> float:
    """The number that a label is; BadRowError if it is none."""
    if not is_score(text):
        message = f"expected a number as the score, got {text[:40]!r}"
        raise BadRowError(f"{message} (regression is for scores, not for classes)")
    return float(text)

"""Parse scores: labels that are numbers, such as how similar two sentences are."""

import re

import numpy as np

from ..errors import BadRowError

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)


def is_score(text: str) -> bool:
    """Return whether a text is a decimal number within float32's range."""
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) <= _LARGEST


def score_of(text: str) -> float:
    """Parse a label as a number; raise BadRowError if it is not one."""
    if not is_score(text):
        message = f"expected a number as the score, got {text[:40]!r}"
        raise BadRowError(f"{message} (regression needs scores, not classes)")
    return float(text)

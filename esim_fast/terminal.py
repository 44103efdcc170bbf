"""Whether output goes to a terminal."""

import sys


def is_watched() -> bool:
    """Whether stderr is open and a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()

"""Whether somebody watches what is written."""

import sys


def is_watched() -> bool:
    """Whether stderr is a terminal; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()

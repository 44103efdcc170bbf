"""The progress bar of an epoch; without a terminal, it prints a line per minute."""

import sys
from typing import Any

from tqdm import tqdm

from ..terminal import is_watched

_LOG_SECONDS = 60.0  # between two lines, if stderr is not a terminal
_LOG_LINE = "{desc}: batch {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} to go{postfix}"


def progress_bar(description: str, done: int, total: int, disable: bool) -> tqdm:
    """A progress bar over ``total`` batches, ``done`` of which are finished."""
    how: dict[str, Any]
    if is_watched():
        how = {"dynamic_ncols": True, "mininterval": 0.2}
    else:
        how = {"file": _Log(), "mininterval": _LOG_SECONDS, "delay": _LOG_SECONDS, "bar_format": _LOG_LINE}
    return tqdm(desc=description, initial=done, total=total, unit="batch", leave=False, disable=disable, **how)


class _Log:
    """A file that turns each state of a progress bar into a line on stderr."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()

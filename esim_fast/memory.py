"""Memory: that it is short, which torch says in several ways, and that nobody fills it without need."""

import os
import re

from .errors import first_line

_SHORT = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory|not enough memory|_ALLOC_FAILED")
# An allocation in the extension: LibTorch's stable ABI says which call failed, but not why.
_ALLOCATION = re.compile(r'"aten::(new_empty|new_zeros|empty_like)".*API call failed', re.DOTALL)


def short_of_memory(error: Exception) -> str | None:
    """One line about it, if ``error`` is that memory did not suffice; else None."""
    if isinstance(error, MemoryError):
        return first_line(error) or "no memory left"
    if isinstance(error, RuntimeError):
        import torch  # slow to import, and already imported if torch raised the error

        if _ALLOCATION.search(str(error)):
            return "a tensor could not be allocated"
        if isinstance(error, torch.OutOfMemoryError) or _SHORT.search(first_line(error)):
            return first_line(error)
    return None


def bound_caches() -> None:
    """Bounds how many products oneDNN remembers, before it makes the first; what the user has set stays.

    It keeps a primitive for each shape that it has met, up to a thousand of them, in two places. Packed batches have
    new shapes all the time: a process would grow and grow, and gain nothing.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")

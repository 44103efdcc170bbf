"""Recognize out-of-memory errors, which torch raises in several forms, and bound oneDNN's caches."""

import os
import re

from .errors import first_line

_SHORT = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|not enough memory|_ALLOC_FAILED"
    r"|^could not (create|execute) a primitive$"  # oneDNN, whose code and buffers need memory, too
)
# A failed allocation in the extension: LibTorch's stable ABI reports which call failed, but not why.
_ALLOCATION = re.compile(r'"aten::(new_empty|new_zeros|empty_like)".*API call failed', re.DOTALL)


def short_of_memory(error: Exception) -> str | None:
    """Return a one-line reason if ``error`` means that memory ran out, else None."""
    if isinstance(error, MemoryError):
        reason = first_line(error)
        return "no memory left" if reason in ("", "std::bad_alloc") else reason
    if isinstance(error, RuntimeError):
        import torch  # slow to import; already imported if torch raised the error

        if _ALLOCATION.search(str(error)):
            return "a tensor could not be allocated"
        if isinstance(error, torch.OutOfMemoryError) or _SHORT.search(first_line(error)):
            return first_line(error)
    return None


def bound_caches() -> None:
    """Limit oneDNN's primitive caches unless the user has set their size. Must run before the first oneDNN call.

    oneDNN caches a primitive for each shape, up to a thousand, in two places. Packed batches have new shapes all the
    time, so memory would keep growing without any benefit.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")

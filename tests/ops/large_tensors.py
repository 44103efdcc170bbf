"""Tensors of more than 2**31 elements: addresses without memory.

Pages that nobody writes are the system's one page of zeros.
"""

import math
import mmap

import pytest
import torch

FAR = 2**31


def reserve(shape, dtype=torch.bfloat16):
    """Zeros that take memory only where they are written."""
    size = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python names from 3.13 on
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        pytest.skip(f"the system reserves no {size / 2**30:.0f} GiB of addresses: {error.strerror}")
    memory.madvise(mmap.MADV_HUGEPAGE)  # what is written as a whole is there sooner
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def spread(compact, along):
    """A copy whose last index along a dimension is more than 2**31 elements behind its first, as far into memory."""
    strides = list(torch.empty_like(compact).stride())
    strides[along] = FAR // (compact.shape[along] - 1) + 8
    memory = reserve((2 * FAR + 2**16,), compact.dtype)
    return memory.as_strided(compact.shape, strides, storage_offset=FAR).copy_(compact)

"""Tensors of more than 2**31 elements that take almost no memory.

Unwritten pages all map to the system's single page of zeros.
"""

import math
import mmap

import pytest
import torch

FAR = 2**31


def reserve(shape, dtype=torch.bfloat16):
    """Zeros that take memory only once written."""
    size = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which Python has from 3.13 on
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        pytest.skip(f"the system reserves no {size / 2**30:.0f} GiB of addresses: {error.strerror}")
    memory.madvise(mmap.MADV_HUGEPAGE)  # faster if everything is written
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def spread(compact, along):
    """A copy in which the last index along a dimension is more than 2**31 elements after the first."""
    strides = list(torch.empty_like(compact).stride())
    strides[along] = FAR // (compact.shape[along] - 1) + 8
    memory = reserve((2 * FAR + 2**16,), compact.dtype)
    return memory.as_strided(compact.shape, strides, storage_offset=FAR).copy_(compact)

"""Check everything that could make a kernel read or write outside its tensors.

Operators are also called directly and inside compiled graphs, which bypasses the checks of the op. Lengths need no
check, because the kernels clamp them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...packed import Rows
from ..checks import check_rows

LONGEST = 2**31 - 1024  # tokens in a sentence, because time steps are 32-bit
WIDEST = 2**31 // 4 - 1024  # features, because elements of a result's row are counted in 32 bits


def check_arguments(a: Tensor, b: Tensor, addresses: Sequence[Any]) -> None:
    """Check two sides. ``addresses`` are start, step, lengths and mask of a, then of b, and three options."""
    *tensors, a_longest, b_longest, _ = addresses
    a_pairs, b_pairs = _check_side("a", a, tensors[:4], a_longest), _check_side("b", b, tensors[4:], b_longest)
    if (a.dtype, a.device, a.shape[-1]) != (b.dtype, b.device, b.shape[-1]):
        raise ValueError("a and b must have the same dtype, device and width")
    if a_pairs != b_pairs:
        raise ValueError(f"a and b must have the same number of sentences, got {a_pairs} and {b_pairs}")


def check_packed(x: Tensor, addresses: Sequence[Any], filled: Tensor | None) -> None:
    """Check a tensor that holds both sides, as ``check_arguments`` does."""
    if addresses[0] is None or addresses[4] is None:
        raise ValueError("start and step must be given for both sides, because one tensor holds them")
    check_arguments(x, x, addresses)
    if filled is not None and (filled.shape != (1,) or filled.dtype != torch.int64 or filled.device != x.device):
        raise ValueError(f"filled must be int64 [1] on {x.device}")


def check_gradient(name: str, grad_m: Tensor, x: Tensor) -> None:
    shape = (*x.shape[:-1], 4 * x.shape[-1])
    if not isinstance(grad_m, Tensor) or grad_m.shape != shape or grad_m.dtype != x.dtype or grad_m.device != x.device:
        raise ValueError(f"{name} must be {list(shape)} in {x.dtype} on {x.device}, like the result")


def _check_side(name: str, x: Tensor, addresses: Sequence[Tensor | None], longest: int) -> int:
    """Check one side and return its number of sentences."""
    start, step, lengths, mask = addresses
    row_addressed = start is not None
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name} must be a float32, float16 or bfloat16 tensor, got {x if x is None else x.dtype}")
    if x.dim() != (2 if row_addressed else 3) or row_addressed != (step is not None):
        raise ValueError(f"{name} must be [B, L, D], or [N, D] with start and step, got shape {list(x.shape)}")
    for part, vector in (("start", start), ("step", step), ("lengths", lengths)):
        if vector is None:
            continue
        if vector.dim() != 1 or vector.dtype != torch.int64 or vector.device != x.device or not vector.is_contiguous():
            raise ValueError(f"{name}_{part} must be a contiguous one-dimensional int64 tensor on {x.device}")
    if start is not None and step is not None:
        if lengths is None or not x.is_contiguous() or not 0 <= longest <= len(step):
            raise ValueError(
                f"row-addressed {name} must be contiguous and have lengths, and {name}_longest = {longest} must lie "
                f"between 0 and the {len(step)} entries of {name}_step"
            )
        pairs, length = len(start), longest
        if x.device.type == "cpu":
            check_rows(f"{name}_rows", Rows(start, step, lengths, longest), x)
    else:
        pairs, length = x.shape[0], x.shape[1]
        if x.shape[2] > 1 and x.stride(2) != 1 and x.numel():
            raise ValueError(f"{name} must have contiguous values in its last dimension, got strides {x.stride()}")
    if length >= LONGEST or x.shape[-1] >= WIDEST:
        raise ValueError(
            f"{name} must have fewer than {LONGEST} tokens and {WIDEST} features, got {length} and {x.shape[-1]}"
        )
    if lengths is not None and len(lengths) != pairs:
        raise ValueError(f"{name}_lengths must have one entry for each of the {pairs} sequences, got {len(lengths)}")
    if mask is not None and not (
        mask.shape == (pairs, length) and mask.dtype == torch.bool and mask.device == x.device and mask.is_contiguous()
    ):
        raise ValueError(f"{name}_mask must be a contiguous boolean tensor [{pairs}, {length}] on {x.device}")
    return pairs

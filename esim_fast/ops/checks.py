"""Input checks shared by all ops.

Shapes, dtypes, devices and values on the CPU are checked. Values on a GPU are not, because reading them would sync.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..packed import Rows, check_lengths, move

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Function = TypeVar("Function", bound=Callable[..., object])


def constant_when_compiled(function: Function) -> Function:
    """Mark a function like ``torch.compiler.assume_constant_result``, without importing the compiler, which takes a
    second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype; None if autocast is off, or for meta tensors, which autocast does not support."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, which costs nothing if autocast is off already."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation is active, which rules out shortcuts around autograd."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_hooked(layer: nn.Module) -> bool:
    """Whether a layer has hooks."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def check_features(name: str, x: Tensor, rows: Rows | None) -> None:
    """Check that ``x`` is floating point and ``[B, L, D]`` or, with rows, ``[N, D]``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    expected, shape = (3, "[batch, length, D] (or [N, D] with rows=)") if rows is None else (2, "[N, D] with rows")
    if x.dim() != expected:
        raise ValueError(f"{name} must be {shape}, got shape {list(x.shape)}")


def check_mask(name: str, mask: Tensor, batch: int, longest: int, x: Tensor) -> Tensor:
    """Return ``mask`` as a bool tensor ``[batch, longest]``."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.shape != (batch, longest):
        raise ValueError(f"{name} must have shape [{batch}, {longest}], got {list(mask.shape)}")
    if mask.device != x.device:
        raise ValueError(f"{name} is on {mask.device}, but the input is on {x.device}")
    return mask if mask.dtype == torch.bool else mask != 0


def check_is_rows(name: str, rows: object) -> None:
    if not isinstance(rows, Rows):
        raise TypeError(f"{name} must be esim_fast.Rows, got {type(rows).__name__}")


def check_rows(name: str, rows: Rows, x: Tensor) -> None:
    """Check that rows are on the device of ``x [N, D]`` and, on the CPU, inside it."""
    check_is_rows(name, rows)
    if rows.start.device != x.device:
        raise ValueError(f"{name} is on {rows.start.device}, but the input is on {x.device}: use Rows.to")
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not rows.known:
        check_lengths(f"{name}.lengths", rows.lengths, len(rows.start), rows.max_length)
        words = int(rows.lengths.sum())
        for part, count in (("tokens", rows.tokens), ("filled", rows.filled)):
            if count is not None and int(count) != words:
                raise ValueError(f"{name}.{part} = {int(count)}, but the lengths sum to {words}")
        if rows.filled is not None and rows.extent is not None and rows.extent.highest > (words - 1) * x.shape[1]:
            raise ValueError(f"{name}.filled = {words}, but tokens lie after the first {words} rows")
    if rows.extent is None:
        return
    lowest, highest, divisor, distinct = rows.extent
    count, width = x.shape
    if lowest < 0 or highest > (count - 1) * width:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} addresses element {wrong} of an input with {count} rows of {width} elements")
    if width and divisor % width:
        raise ValueError(f"{name} must address whole rows: start and step must be multiples of D = {width}")
    if width and not distinct:
        raise ValueError(f"{name} must give each token its own row, but two tokens share one")


def check_apart(a_rows: Rows, b_rows: Rows, width: int) -> None:
    """Check, for rows on the CPU, that two sides in one tensor share no row."""
    if a_rows.start.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if a_rows.extent is None or b_rows.extent is None or a_rows.is_apart_from(b_rows):
        return
    taken = np.zeros(1 + max(a_rows.extent.highest, b_rows.extent.highest) // max(width, 1), dtype=bool)
    taken[a_rows.offsets // max(width, 1)] = True
    if len(shared := b_rows.offsets[taken[b_rows.offsets // max(width, 1)]]):
        raise ValueError(
            f"a_rows and b_rows must not share rows of one tensor, but both address element {shared[0]}: "
            "copy the row for one side"
        )
    a_rows.remember_apart_from(b_rows)


def tokens_of(
    name: str, x: Tensor, lengths: Tensor | Sequence[int] | None, mask: Tensor | None, rows: Rows | None
) -> tuple[Tensor | None, Tensor | None, int]:
    """Check the arguments that select the tokens of ``x``.

    Returns:
        Lengths and mask on the device of ``x``, and the longest sentence's length, or the best upper bound that is
        known without a sync.
    """
    check_features(name, x, rows)
    prefix = "" if name == "x" else f"{name}_"
    if rows is not None:
        check_rows(f"{prefix}rows", rows, x)
        if lengths is not None:
            raise ValueError(f"pass {prefix}rows or {prefix}lengths, not both: rows include lengths")
        batch, longest = rows.start.shape[0], rows.max_length
    else:
        batch, longest = x.shape[0], x.shape[1]
    if lengths is not None and mask is not None:
        raise ValueError(f"pass {prefix}lengths or {prefix}mask, not both")
    if lengths is not None:
        lengths = check_lengths(f"{prefix}lengths", lengths, batch, longest)
        if lengths.device.type == "cpu" and batch and not torch.compiler.is_compiling():
            longest = int(lengths.max())
        lengths = move(lengths, x.device)
    if mask is not None:
        mask = check_mask(f"{prefix}mask", mask, batch, longest, x)
    return lengths, mask, longest

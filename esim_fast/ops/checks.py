"""What every op asks of its input, said in the same words.

Values on a GPU are not read back to be checked; shapes, dtypes, devices and what lies on the CPU are.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..packed import Rows, check_lengths, move

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Function = TypeVar("Function", bound=Callable[..., object])


def constant_when_compiled(function: Function) -> Function:
    """As ``torch.compiler.assume_constant_result``, which imports the compiler: a second that few have a use for."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast asks for; None where it is off, and for tensors without values, which it does not know."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: shortcuts around autograd are not for them."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_hooked(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes through this layer, or changes it."""
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks))


def check_features(name: str, x: Tensor, rows: Rows | None) -> None:
    """``x`` must be floating point, ``[B, L, D]`` or, with rows, ``[N, D]``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    expected, shape = (3, "[batch, length, D] (or [N, D] with rows=)") if rows is None else (2, "[N, D] with rows")
    if x.dim() != expected:
        raise ValueError(f"{name} must be {shape}, got shape {list(x.shape)}")


def check_mask(name: str, mask: Tensor, batch: int, longest: int, x: Tensor) -> Tensor:
    """Returns ``mask`` as a boolean tensor ``[batch, longest]``."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.shape != (batch, longest):
        raise ValueError(f"{name} must have shape [{batch}, {longest}], got {list(mask.shape)}")
    if mask.device != x.device:
        raise ValueError(f"{name} is on {mask.device}, but the input on {x.device}")
    return mask if mask.dtype == torch.bool else mask != 0


def check_is_rows(name: str, rows: object) -> None:
    if not isinstance(rows, Rows):
        raise TypeError(f"{name} must be esim_fast.Rows, got {type(rows).__name__}")


def check_rows(name: str, rows: Rows, x: Tensor) -> None:
    """Rows must lie on the device of ``x [N, D]`` and, where that can be read, inside it."""
    check_is_rows(name, rows)
    if rows.start.device != x.device:
        raise ValueError(f"{name} is on {rows.start.device}, but the input on {x.device}: use Rows.to")
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not rows.known:
        check_lengths(f"{name}.lengths", rows.lengths, len(rows.start), rows.max_length)
        if rows.tokens is not None and rows.tokens != (words := int(rows.lengths.sum())):
            raise ValueError(f"{name}.tokens = {rows.tokens}, but the lengths sum up to {words}")
    if rows.extent is None:
        return
    lowest, highest, divisor, distinct = rows.extent
    count, width = x.shape
    if lowest < 0 or highest > (count - 1) * width:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} addresses element {wrong} of an input with {count} rows of {width} elements")
    if width and divisor % width:
        raise ValueError(f"{name} must count whole rows: start and step must be multiples of D = {width}")
    if width and not distinct:
        raise ValueError(f"{name} must give each token a row of its own, but two share one")


def check_apart(a_rows: Rows, b_rows: Rows, width: int) -> None:
    """Two sides in one tensor must not share a row of it, where that can be read."""
    if a_rows.start.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if a_rows.extent is None or b_rows.extent is None or a_rows.is_apart_from(b_rows):
        return
    taken = np.zeros(1 + max(a_rows.extent.highest, b_rows.extent.highest) // max(width, 1), dtype=bool)
    taken[a_rows.offsets // max(width, 1)] = True
    if len(shared := b_rows.offsets[taken[b_rows.offsets // max(width, 1)]]):
        raise ValueError(
            f"a_rows and b_rows must not share rows of one tensor, but both address element {shared[0]}: "
            "give one side a copy of it"
        )
    a_rows.remember_apart_from(b_rows)


def tokens_of(
    name: str, x: Tensor, lengths: Tensor | Sequence[int] | None, mask: Tensor | None, rows: Rows | None
) -> tuple[Tensor | None, Tensor | None, int]:
    """Checks what says which tokens of ``x`` count.

    Returns:
        lengths and mask on the device of ``x``, and the longest sentence's length, or the least bound of it that is
        known without reading anything back.
    """
    check_features(name, x, rows)
    prefix = "" if name == "x" else f"{name}_"
    if rows is not None:
        check_rows(f"{prefix}rows", rows, x)
        if lengths is not None:
            raise ValueError(f"{prefix}rows have lengths of their own: leave {prefix}lengths out")
        batch, longest = rows.start.shape[0], rows.max_length
    else:
        batch, longest = x.shape[0], x.shape[1]
    if lengths is not None and mask is not None:
        raise ValueError(f"give {prefix}lengths or {prefix}mask, not both")
    if lengths is not None:
        lengths = check_lengths(f"{prefix}lengths", lengths, batch, longest)
        if lengths.device.type == "cpu" and batch and not torch.compiler.is_compiling():
            longest = int(lengths.max())
        lengths = move(lengths, x.device)
    if mask is not None:
        mask = check_mask(f"{prefix}mask", mask, batch, longest, x)
    return lengths, mask, longest

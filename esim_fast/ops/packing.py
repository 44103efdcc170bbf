"""Caches what is made of parameters, for as long as these do not change.

Weights that are only read, again and again, are best read in the order in which a kernel wants them. The copy takes as
much memory as they do, until they change and are used again or die.
"""

from collections.abc import Callable
from math import gcd
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .checks import transforming

_SAMPLED = 64  # elements of each parameter


class _Kept(NamedTuple):
    """An entry is replaced as a whole, so that threads need no lock: at worst each thread makes it once."""

    parameters: list[ref]
    state: list[tuple]
    sampled: list[np.ndarray]  # views of the parameters, which also keep others from getting their memory
    sample: bytes
    value: Any


_kept = WeakIdKeyDictionary()  # by the first parameter, and what was made of it by the function that did


def packed(make: Callable[..., Any], *parameters: Tensor) -> Any:
    """``make(*parameters)``, or what it returned before if no parameter has changed since: for use without gradients.

    A change is noticed by the parameters' identities and memory, by PyTorch's count of changes in place and, for those
    that it does not count (through ``.data``, a NumPy array or shared memory), by 64 elements spread over each
    parameter. So only a change that is not counted, and of some elements, rows or columns alone, may be missed.

    Args:
        make: a function of a module, not made anew for each call. What it returns must not refer to the parameters,
            which it dies with.
        parameters: those that ``can_keep`` takes.
    """
    first = parameters[0]
    state = [_state(parameter) for parameter in parameters]
    by_function = _kept.setdefault(first, {})
    kept = by_function.get(make)
    if kept is not None and _is_current(kept, parameters, state):
        return kept.value
    sampled = [_spread(parameter) for parameter in parameters]
    sample = _bytes_of(sampled)  # first, so that a change while it is made is noticed later
    value = make(*parameters)
    by_function[make] = _Kept([ref(parameter) for parameter in parameters], state, sampled, sample, value)
    return value


def can_keep(*parameters: Tensor) -> bool:
    """Whether ``packed`` takes these: plain contiguous fp32 tensors on the CPU, while nothing watches what is done with
    them, as compilers and transforms do."""
    # A mode sees every operation, to trace them for example, or has tensors without values.
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or transforming()
        or torch._C._len_torch_dispatch_stack()
    ):
        return False
    return all(_is_plain(parameter) for parameter in parameters)


def _is_plain(x: Tensor) -> bool:
    if type(x) not in (nn.Parameter, Tensor) or x.dtype is not torch.float32 or x.layout is not torch.strided:
        return False
    return x.device.type == "cpu" and not x.is_inference() and x.is_contiguous() and x.dim() > 0 and x.numel() > 0


def _state(x: Tensor) -> tuple:
    return x._version, x.data_ptr(), x.shape


def _is_current(kept: _Kept, parameters: tuple[Tensor, ...], state: list[tuple]) -> bool:
    # Addresses first: once a parameter's memory has moved, the arrays may point to memory that has been freed.
    if kept.state != state:
        return False
    if any(known() is not parameter for known, parameter in zip(kept.parameters, parameters, strict=True)):
        return False
    return _bytes_of(kept.sampled) == kept.sample


def _bytes_of(sampled: list[np.ndarray]) -> bytes:
    return np.concatenate(sampled).tobytes()  # NaN is not equal to itself, but its bytes are


def _spread(x: Tensor) -> np.ndarray:
    """A view of elements evenly spread, in different columns."""
    step = max(x.numel() // _SAMPLED, 1)
    while gcd(step, x.shape[-1]) > 1:
        step -= 1
    view = x.detach().as_strided((min(x.numel(), _SAMPLED),), (step,), x.storage_offset())
    return np.from_dlpack(view)  # after view.numpy() the memory could not be resized, as sharded training does

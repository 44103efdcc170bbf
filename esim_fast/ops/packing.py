"""Cache values derived from parameters until the parameters change.

Kernels read weights fastest in their own order. The reordered copy takes as much memory as the weights, and is dropped
when they change and are used again, or are freed.
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

_SAMPLED = 64  # elements of each parameter that are compared


class _Kept(NamedTuple):
    """A cache entry. Entries are replaced as a whole, so no lock is needed; at worst each thread computes the value
    once.
    """

    parameters: list[ref]
    state: list[tuple]
    sampled: list[np.ndarray]  # views of the parameters, which also keep their memory from being reused
    sample: bytes
    value: Any


_kept = WeakIdKeyDictionary()  # first parameter -> function -> entry


def packed(make: Callable[..., Any], *parameters: Tensor) -> Any:
    """Return ``make(*parameters)``, cached until a parameter changes. For use without gradients.

    A change is detected by the parameters' identities and memory, by PyTorch's counter of in-place changes, and, for
    changes that it does not count (through ``.data``, a NumPy array or shared memory), by comparing 64 elements spread
    over each parameter. Only an uncounted change of some elements, rows or columns can go unnoticed.

    Args:
        make: a module-level function. Its result must not refer to the parameters, because it is freed with them.
        parameters: parameters that ``can_keep`` accepts.
    """
    first = parameters[0]
    state = [_state(parameter) for parameter in parameters]
    by_function = _kept.setdefault(first, {})
    kept = by_function.get(make)
    if kept is not None and _is_current(kept, parameters, state):
        return kept.value
    sampled = [_spread(parameter) for parameter in parameters]
    sample = _bytes_of(sampled)  # sampled before make() runs, so that a concurrent change is noticed later
    value = make(*parameters)
    by_function[make] = _Kept([ref(parameter) for parameter in parameters], state, sampled, sample, value)
    return value


def can_keep(*parameters: Tensor) -> bool:
    """Whether ``packed`` supports these: plain contiguous fp32 tensors on the CPU, with no compiler or transform
    active.
    """
    # A dispatch mode may trace every operation or use tensors without values.
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
    # Compare addresses first: if a parameter's memory has moved, the arrays may point to freed memory.
    if kept.state != state:
        return False
    if any(known() is not parameter for known, parameter in zip(kept.parameters, parameters, strict=True)):
        return False
    return _bytes_of(kept.sampled) == kept.sample


def _bytes_of(sampled: list[np.ndarray]) -> bytes:
    return np.concatenate(sampled).tobytes()  # bytes, because NaN is not equal to itself


def _spread(x: Tensor) -> np.ndarray:
    """Return a view of evenly spaced elements in different columns."""
    step = max(x.numel() // _SAMPLED, 1)
    while gcd(step, x.shape[-1]) > 1:
        step -= 1
    view = x.detach().as_strided((min(x.numel(), _SAMPLED),), (step,), x.storage_offset())
    return np.from_dlpack(view)  # view.numpy() would forbid resizing, which sharded training needs

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

from .checks import transforming

_SAMPLED = 64  # elements of each parameter that are compared


class _Kept(NamedTuple):
    """A cache entry. Entries are replaced as a whole, so no lock is needed; at worst each thread computes the value
    once.
    """

    parameters: list[ref]
    states: list[tuple]
    sampled: list[np.ndarray]  # views of the parameters, which also keep their memory from being reused
    sample: bytes
    value: Any


# By the id of the first parameter, which drops its entries when it is freed. A weak dictionary would be slower.
_kept: dict[tuple[int, Callable], _Kept] = {}


def packed(make: Callable[..., Any], *parameters: Tensor) -> Any:
    """Return ``make(*parameters)``, cached until a parameter changes, or None if it cannot be cached. For use without
    gradients.

    A change is detected by the parameters' identities and memory, by PyTorch's counter of in-place changes, and, for
    changes that it does not count (through ``.data``, a NumPy array or shared memory), by comparing 64 elements spread
    over each parameter. Only an uncounted change of some elements, rows or columns can go unnoticed.

    Args:
        make: a module-level function. Its result must not refer to the parameters, because it is freed with them.
        parameters: cached if they are plain contiguous fp32 tensors on the CPU, and no compiler or transform is active.
    """
    # A dispatch mode may trace every operation or use tensors without values.
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or transforming()
        or torch._C._len_torch_dispatch_stack()
    ):
        return None
    key = id(parameters[0]), make
    kept = _kept.get(key)
    if kept is not None and _is_current(kept, parameters):
        return kept.value
    if not all(_is_plain(parameter) for parameter in parameters):
        _kept.pop(key, None)
        return None
    drop = _kept.pop  # bound, because the module may be gone when the interpreter ends
    known = [ref(parameters[0], lambda _: drop(key, None)), *(ref(parameter) for parameter in parameters[1:])]
    states = [_state(parameter) for parameter in parameters]
    sampled = [_spread(parameter) for parameter in parameters]
    sample = _bytes_of(sampled)  # sampled before make() runs, so that a concurrent change is noticed later
    value = make(*parameters)
    _kept[key] = _Kept(known, states, sampled, sample, value)
    return value


def _is_plain(x: Tensor) -> bool:
    if type(x) not in (nn.Parameter, Tensor) or x.dtype is not torch.float32 or x.layout is not torch.strided:
        return False
    return x.device.type == "cpu" and not x.is_inference() and x.is_contiguous() and x.dim() > 0 and x.numel() > 0


def _state(x: Tensor) -> tuple:
    return x._version, x.data_ptr(), x.dtype, x.shape, x.stride()


def _is_current(kept: _Kept, parameters: tuple[Tensor, ...]) -> bool:
    if len(kept.parameters) != len(parameters):
        return False
    for known, parameter, state in zip(kept.parameters, parameters, kept.states, strict=True):
        # Compare addresses first: if a parameter's memory has moved, the arrays may point to freed memory.
        if known() is not parameter or _state(parameter) != state:
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

"""Local inference: masked co-attention, soft alignment and enhancement. Triton on NVIDIA GPUs, C++ on the CPU.

The kernels on GPUs are triton/one_tile.py and triton/many_tiles.py, and triton/launch.py chooses between them; those on
the CPU are csrc/local_inference_cpu.cpp.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..packed import Rows
from . import reference
from .checks import autocast_dtype, check_apart, check_backend, constant_when_compiled, tokens_of
from .derivatives import apply, first_derivative

launch: Any = None
# Importing Triton takes a while: only where its kernels can run, on CUDA or interpreted.
if find_spec("triton") and (torch.version.cuda or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")):
    from .triton import launch


@constant_when_compiled
def _backends(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Those that can run, the best one first."""
    triton = launch is not None and dtype != torch.float64
    if device.type == "cpu":
        # The interpreter is for trying the kernels out: it runs only when it is asked for.
        return ("cpp", "triton", "reference") if triton and launch.INTERPRETED else ("cpp", "reference")
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    if triton and nvidia and torch.cuda.get_device_capability(device) >= (8, 0):  # what Triton supports
        return ("triton", "reference")
    return ("reference",)


def local_inference(
    a: Tensor,
    b: Tensor,
    a_lengths: Tensor | Sequence[int] | None = None,
    b_lengths: Tensor | Sequence[int] | None = None,
    *,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    a_rows: Rows | None = None,
    b_rows: Rows | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft alignment of two sentences and its enhancement (Chen et al. 2017, equations 11-15).

    Equivalent to, with ``a``, ``b`` the tokens of one pair alone (``[La, D]``, ``[Lb, D]``)::

        e = a @ b.T
        a_aligned, b_aligned = e.softmax(1) @ b, e.softmax(0).T @ a
        m_a = torch.cat([a, a_aligned, a - a_aligned, a * a_aligned], 1)
        m_b = torch.cat([b, b_aligned, b - b_aligned, b * b_aligned], 1)

    Args:
        a, b: ``[B, La, D]`` and ``[B, Lb, D]``, fp32, fp16, bf16 or fp64, any strides of batch and time, the D values
            of a token one behind the other; or ``[N, D]`` with rows.
        a_lengths, b_lengths: integers ``[B]``, on any device: the first ``lengths[b]`` tokens count. On the CPU they
            also say how long the longest sentence is, and with it how large a tile a kernel needs.
        a_mask, b_mask: ``[B, La]`` and ``[B, Lb]``, boolean or 0/1 of any dtype, any pattern.
        a_rows, b_rows: where the tokens of row-addressed (concatenated, packed) input lie. ``a`` and ``b`` may be the
            same tensor, with the rows of either in it: each of its rows belongs to one sentence of one side.
        backend: "triton" (kernels for NVIDIA GPUs from compute capability 8.0 on, not fp64; CPU tensors too if
            ``TRITON_INTERPRET=1``), "cpp" (kernels for the CPU), "reference" (plain PyTorch) or None, the best one for
            the tensors at hand.

    Returns:
        m_a, m_b: ``[B, La, 4D]`` and ``[B, Lb, 4D]``, or ``[N, 4D]`` in the rows of ``a`` and ``b``; where ``a`` and
        ``b`` are the same row-addressed tensor, one tensor holds both and is returned twice. Exactly zero outside the
        sentences. The partner of a sentence of length 0 is aligned with zeros. Sums and softmax are taken in fp32 (fp64
        for fp64); results have the input's dtype, or autocast's for fp32 input under autocast. On GPUs the kernels
        multiply fp32 in TF32 where PyTorch's matrix products may (``torch.set_float32_matmul_precision``), else as
        exactly as fp32 does. They give the same bits every time, on the CPU with any number of threads. Second
        derivatives are not implemented in them and raise.

    Raises:
        TypeError: a dtype or type is wrong.
        ValueError: shapes, dtypes or devices disagree, lengths lie outside 0..L (checked on the CPU), the D values of
            a token lie apart, or ``backend`` cannot run here.
    """
    a_lengths, a_mask, a_longest = tokens_of("a", a, a_lengths, a_mask, a_rows)
    b_lengths, b_mask, b_longest = tokens_of("b", b, b_lengths, b_mask, b_rows)
    _check_pair(a, b, a_rows, b_rows)
    device, dtype = a.device.type, autocast_dtype(a.device)
    if dtype is not None and a.dtype == torch.float32:
        a, b = (a.to(dtype),) * 2 if a is b else (a.to(dtype), b.to(dtype))
    possible = _backends(a.device, a.dtype)
    check_backend(backend, "local_inference", possible, f"{a.device} in {a.dtype}")
    backend = backend or possible[0]
    if backend == "reference":
        options: dict[str, Any] = {"a_mask": a_mask, "b_mask": b_mask, "a_rows": a_rows, "b_rows": b_rows}
        if device == "meta":
            return reference.local_inference(a, b, a_lengths, b_lengths, **options)
        with torch.autocast(device, enabled=False):
            return reference.local_inference(a, b, a_lengths, b_lengths, **options)

    if a is b and a_rows is not None and b_rows is not None:
        one_tensor, every_row = True, _every_row(a, a_rows, b_rows)
    else:
        one_tensor = False
        every_row = all(_every_row(x, rows) for x, rows in ((a, a_rows), (b, b_rows)) if rows is not None)
    of_a = _addresses(a, a_lengths, a_mask, a_rows)
    of_b = _addresses(of_a[0] if one_tensor else b, b_lengths, b_mask, b_rows)
    if torch.compiler.is_compiling():  # it takes no tensor twice: the second time as a view of itself
        of_b = tuple(of.view_as(of) if any(of is other for other in of_a) and of is not None else of for of in of_b)
    x = None if one_tensor else of_b[0]
    addresses = *of_a[1:], *of_b[1:], a_longest, b_longest, every_row
    m_a, m_b = apply(_LocalInference, of_a[0], x, *addresses, backend)
    return (m_a, m_a) if one_tensor else (m_a, m_b)


def _check_pair(a: Tensor, b: Tensor, a_rows: Rows | None, b_rows: Rows | None) -> None:
    if a.dtype != b.dtype:
        raise TypeError(f"a and b must have the same dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"a is on {a.device}, but b on {b.device}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have the same width D, got {a.shape[-1]} and {b.shape[-1]}")
    pairs = [len(x) if rows is None else len(rows.start) for x, rows in ((a, a_rows), (b, b_rows))]
    if pairs[0] != pairs[1]:
        raise ValueError(f"a and b must hold as many sentences, got {pairs[0]} and {pairs[1]}")
    for name, x in (("a", a), ("b", b)):
        if x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{name} must have the D values of a token one behind the other, got strides {list(x.stride())}: "
                f"use {name}.contiguous()"
            )
    if a is b and a_rows is not None and b_rows is not None:
        check_apart(a_rows, b_rows, a.shape[1])


def _every_row(x: Tensor, *rows: Rows) -> bool:
    """Whether these rows are known to be all rows of ``x [N, D]``."""
    tokens = [of.tokens for of in rows if of.tokens is not None]
    return len(tokens) == len(rows) and sum(tokens) == len(x)


def _addresses(x: Tensor, lengths: Tensor | None, mask: Tensor | None, rows: Rows | None) -> tuple[Any, ...]:
    """``x``, start, step, lengths and mask, as the operator takes them."""
    mask = None if mask is None else mask.contiguous()
    if rows is None:
        return x, None, None, lengths, mask
    # Offsets count elements of a contiguous tensor.
    return x.contiguous(), rows.start.contiguous(), rows.step.contiguous(), rows.lengths.contiguous(), mask


# By backend: the operator and its gradient's, which take the same arguments and return the same.
_OPERATORS = {"cpp": "local_inference", "triton": "local_inference_triton"}


class _LocalInference(torch.autograd.Function):
    generate_vmap_rule = True

    # Written out: torch.compile counts the parameters to tell whether the first is a context.
    @staticmethod
    def forward(
        a,
        b,
        a_start,
        a_step,
        a_lengths,
        a_mask,
        b_start,
        b_step,
        b_lengths,
        b_mask,
        a_longest,
        b_longest,
        every_row,
        backend,
    ):
        a_side, b_side = (a_start, a_step, a_lengths, a_mask), (b_start, b_step, b_lengths, b_mask)
        operator = getattr(torch.ops.esim_fast, _OPERATORS[backend])
        return operator(a, b, *a_side, *b_side, a_longest, b_longest, every_row)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, a_longest, b_longest, every_row, backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.options = (a_longest, b_longest, every_row, backend)

    @staticmethod
    def backward(ctx, grad_m_a, grad_m_b):
        a, b, *addresses = ctx.saved_tensors
        arguments = grad_m_a, grad_m_b, a, b, *addresses, *ctx.options
        grad_a, grad_b = first_derivative("local_inference", _backward, *arguments)
        return grad_a, None if b is None else grad_b, *[None] * 12


def _backward(*arguments):
    *others, backend = arguments
    return getattr(torch.ops.esim_fast, f"{_OPERATORS[backend]}_backward")(*others)


def _results(a, b, *_):
    """Tensors as the operators return them. Where b is None, the first holds both sides."""
    m_a, m_b = (None if x is None else x.new_empty(*x.shape[:-1], 4 * x.shape[-1]) for x in (a, b))
    return m_a, a.new_empty(0) if b is None else m_b


def _gradients(_grad_m_a, _grad_m_b, a, b, *_):
    return a.new_empty(a.shape), a.new_empty(0) if b is None else b.new_empty(b.shape)


if launch is not None:
    # The schemas of the C++ operators, which are in csrc/ops.cpp.
    _ADDRESSES = ", ".join(f"Tensor? {side}_{part}" for side in "ab" for part in ("start", "step", "lengths", "mask"))
    _OPTIONS = "SymInt a_longest, SymInt b_longest, bool every_row"
    _library = torch.library.Library("esim_fast", "FRAGMENT")
    _library.define(
        f"local_inference_triton(Tensor a, Tensor? b, {_ADDRESSES}, {_OPTIONS}) -> (Tensor, Tensor)",
        tags=torch.Tag.pt2_compliant_tag,
    )
    _library.define(
        "local_inference_triton_backward(Tensor grad_m_a, Tensor grad_m_b, Tensor a, Tensor? b, "
        f"{_ADDRESSES}, {_OPTIONS}) -> (Tensor, Tensor)",
        tags=torch.Tag.pt2_compliant_tag,
    )
    for _device in ("CUDA", "CPU") if launch.INTERPRETED else ("CUDA",):
        _library.impl("local_inference_triton", launch.forward, _device)
        _library.impl("local_inference_triton_backward", launch.backward, _device)
for _operator in _OPERATORS.values() if launch is not None else ("local_inference",):
    torch.library.register_fake(f"esim_fast::{_operator}")(_results)
    torch.library.register_fake(f"esim_fast::{_operator}_backward")(_gradients)

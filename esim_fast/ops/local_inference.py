"""Local inference: masked co-attention, soft alignment and enhancement. Triton on NVIDIA GPUs, C++ on the CPU.

The GPU kernels are triton/one_tile.py and triton/many_tiles.py, selected in triton/local_inference.py. The CPU kernels
are in csrc/local_inference_cpu.cpp.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..packed import Rows
from . import reference
from .backends import BACKENDS, choose
from .checks import autocast_dtype, check_apart, check_is_rows, tokens_of, without_autocast
from .derivatives import apply, first_derivative
from .triton import runtime


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
    """Compute the soft alignment of two sentences and its enhancement (Chen et al. 2017, equations 11-15).

    For the tokens ``a [La, D]`` and ``b [Lb, D]`` of a single pair, equivalent to:

        e = a @ b.T
        a_aligned, b_aligned = e.softmax(1) @ b, e.softmax(0).T @ a
        m_a = torch.cat([a, a_aligned, a - a_aligned, a * a_aligned], 1)
        m_b = torch.cat([b, b_aligned, b - b_aligned, b * b_aligned], 1)

    Args:
        a: ``[B, La, D]``, fp32, fp16, bf16 or fp64, or ``[N, D]`` with rows. Batch and time may have any strides; the D
            values of a token must be contiguous.
        b: ``[B, Lb, D]``, or ``[N, D]`` with rows.
        a_lengths: integers ``[B]``, on any device: the first ``a_lengths[b]`` tokens count. On the CPU they also tell
            how long the longest sentence is, so that a kernel can use a smaller tile.
        b_lengths: the same for ``b``.
        a_mask: ``[B, La]``, bool or 0/1 of any dtype, any pattern.
        b_mask: ``[B, Lb]``, likewise.
        a_rows: where the tokens of row-addressed (concatenated, packed) input lie. If one tensor holds both sides, use
            ``local_inference_packed``.
        b_rows: the same for ``b``.
        backend: ``"triton"`` (kernels for NVIDIA GPUs with compute capability 8.0 or higher, not fp64; with
            ``TRITON_INTERPRET=1`` also for CPU tensors), ``"cpp"`` (kernels for CPUs), ``"reference"`` (plain PyTorch)
            or None, the best one for the tensors at hand.

    Returns:
        ``(m_a, m_b)``: ``[B, La, 4D]`` and ``[B, Lb, 4D]``, or ``[N, 4D]`` in the rows of ``a`` and ``b``. Exactly zero
        outside the sentences. If a sentence has length 0, its partner is aligned with zeros. Sums and softmax use fp32
        (fp64 for fp64); results have the input's dtype, or autocast's for fp32 input under autocast. On GPUs the
        kernels multiply fp32 in TF32 if PyTorch's matrix products may (``torch.set_float32_matmul_precision``),
        otherwise with the accuracy of fp32. Results are bitwise reproducible, on the CPU with any number of threads.
        The kernels' second derivatives are not implemented and raise RuntimeError.

    Raises:
        TypeError: a dtype or type is wrong.
        ValueError: shapes, dtypes or devices disagree, lengths lie outside 0..L (checked on the CPU), the D values of a
            token are not contiguous, or ``backend`` cannot run here.
    """
    a_lengths, a_mask, a_longest = tokens_of("a", a, a_lengths, a_mask, a_rows)
    b_lengths, b_mask, b_longest = tokens_of("b", b, b_lengths, b_mask, b_rows)
    _check_pair(a, b, a_rows, b_rows)
    a, b = _in_autocast_dtype(a), _in_autocast_dtype(b)
    backend = _choose(backend, a)
    if backend == "reference":
        with without_autocast(a.device):
            return reference.local_inference(
                a, b, a_lengths, b_lengths, a_mask=a_mask, b_mask=b_mask, a_rows=a_rows, b_rows=b_rows
            )
    every_row = all(_are_all_rows(x, rows) for x, rows in ((a, a_rows), (b, b_rows)) if rows is not None)
    a_side, b_side = _side(a, a_lengths, a_mask, a_rows), _side(b, b_lengths, b_mask, b_rows)
    (a, *a_address), (b, *b_address) = a_side, _distinct(b_side, a_side)
    return apply(_LocalInference, a, b, *a_address, *b_address, a_longest, b_longest, every_row, backend)


def local_inference_packed(
    x: Tensor,
    a_rows: Rows,
    b_rows: Rows,
    *,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    filled: Tensor | None = None,
    difference: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Compute ``local_inference`` of sentences that lie in one tensor, as in a packed batch of pairs.

    Equivalent to the following, but with a single result and without adding two gradients:

        m_a, m_b = local_inference(x, x, a_rows=a_rows, b_rows=b_rows)
        m = m_a + m_b  # each row belongs to one side and is zero in the other's result

    Args:
        x: ``[N, D]``, dtypes as for ``local_inference``.
        a_rows: where the tokens of the first side lie. Each row of ``x`` belongs to at most one sentence of one side.
        b_rows: where the tokens of the second side lie.
        a_mask: ``[B, a_rows.max_length]``, bool or 0/1 of any dtype: narrows the rows.
        b_mask: ``[B, b_rows.max_length]``, likewise.
        filled: int64 ``[1]`` on the device of ``x``, how many rows the sentences of both sides fill, if they fill the
            first rows without gaps. The Triton kernels then clear only the rows after them.
        difference: whether the result has the third part, ``x - aligned``. A linear layer can do without it, as in
            ``esim_fast.ops.projection``. Only ``"cpp"`` and ``"reference"`` can leave it out, so on a GPU that is plain
            PyTorch.
        backend: as for ``local_inference``.

    Returns:
        ``[N, 4D]``, or ``[N, 3D]`` without the difference: the enhanced tokens in the rows of ``x``; zero in rows that
        belong to no sentence.

    Raises:
        TypeError: as for ``local_inference``.
        ValueError: as for ``local_inference``, or both sides address the same row (checked on the CPU).
    """
    check_is_rows("a_rows", a_rows)
    check_is_rows("b_rows", b_rows)
    _, a_mask, a_longest = tokens_of("a", x, None, a_mask, a_rows)
    _, b_mask, b_longest = tokens_of("b", x, None, b_mask, b_rows)
    _check_pair(x, x, a_rows, b_rows)
    check_apart(a_rows, b_rows, x.shape[1])
    x = _in_autocast_dtype(x)
    backend = _choose(backend, x, difference)
    if backend == "reference":
        with without_autocast(x.device):
            return reference.local_inference_packed(
                x, a_rows, b_rows, a_mask=a_mask, b_mask=b_mask, difference=difference
            )
    every_row = _are_all_rows(x, a_rows, b_rows)
    if every_row or backend != "triton":
        filled = None
    x, *a_address = a_side = _side(x, None, a_mask, a_rows)
    _, *b_address = _distinct(_side(x, None, b_mask, b_rows), a_side)
    options = a_longest, b_longest, every_row, backend, difference
    return apply(_PackedLocalInference, x, filled, *a_address, *b_address, *options)


def _choose(backend: str | None, x: Tensor, difference: bool = True) -> str:
    by_triton = x.dtype != torch.float64 and difference
    return choose(backend, "local_inference", BACKENDS["local_inference"] if by_triton else ("cpp", "reference"), x)


def _in_autocast_dtype(x: Tensor) -> Tensor:
    dtype = autocast_dtype(x.device)
    return x if dtype is None or x.dtype != torch.float32 else x.to(dtype)


def _check_pair(a: Tensor, b: Tensor, a_rows: Rows | None, b_rows: Rows | None) -> None:
    if a.dtype != b.dtype:
        raise TypeError(f"a and b must have the same dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"a is on {a.device}, but b is on {b.device}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have the same width D, got {a.shape[-1]} and {b.shape[-1]}")
    pairs = [(x if rows is None else rows.start).shape[0] for x, rows in ((a, a_rows), (b, b_rows))]
    if pairs[0] != pairs[1]:
        raise ValueError(f"a and b must have the same number of sentences, got {pairs[0]} and {pairs[1]}")
    for name, x in (("a", a), ("b", b)):
        if x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{name} must have contiguous values in its last dimension, got strides {list(x.stride())}: "
                f"use {name}.contiguous()"
            )


def _are_all_rows(x: Tensor, *parts: Rows) -> bool:
    """Whether these are known to cover every row of ``x [N, D]``."""
    counts = [rows.tokens for rows in parts if rows.tokens is not None]
    return len(counts) == len(parts) and sum(counts) == x.shape[0]


def _side(x: Tensor, lengths: Tensor | None, mask: Tensor | None, rows: Rows | None) -> tuple[Any, ...]:
    """Return ``x``, start, step, lengths and mask, as the operators take them."""
    mask = None if mask is None else mask.contiguous()
    if rows is None:
        return x, None, None, lengths, mask
    # Offsets count elements of a contiguous tensor.
    return x.contiguous(), rows.start.contiguous(), rows.step.contiguous(), rows.lengths.contiguous(), mask


def _distinct(side: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``side`` with tensors that ``other`` also holds replaced by views: compiled operators reject repeated
    tensors.
    """
    if not torch.compiler.is_compiling():
        return side
    return tuple(
        part.view_as(part) if part is not None and any(part is taken for taken in other) else part for part in side
    )


def _operator(name: str, backend: str, suffix: str = "", filled: Tensor | None = None) -> Any:
    operator = getattr(torch.ops.esim_fast, f"{name}{'_triton' if backend == 'triton' else ''}{suffix}")
    return operator if filled is None else partial(operator, filled=filled)


def _shortened(difference: bool) -> tuple[bool, ...]:
    """Return the last argument of the C++ operators, which the Triton operators do not have."""
    return () if difference else (False,)


# No *args: torch.compile counts parameters to decide whether the first is a context. a_max and b_max are upper bounds
# of the longest sentences.


class _LocalInference(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        a, b, a_start, a_step, a_lengths, a_mask, b_start, b_step, b_lengths, b_mask, a_max, b_max, every_row, backend
    ):
        sides = a_start, a_step, a_lengths, a_mask, b_start, b_step, b_lengths, b_mask, a_max, b_max, every_row
        return _operator("local_inference", backend)(a, b, *sides)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, a_max, b_max, every_row, ctx.backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.options = (a_max, b_max, every_row)

    @staticmethod
    def backward(ctx, grad_m_a, grad_m_b):
        operator = _operator("local_inference", ctx.backend, "_backward")
        arguments = grad_m_a, grad_m_b, *ctx.saved_tensors, *ctx.options
        return *first_derivative("local_inference", operator, *arguments), *[None] * 12


class _PackedLocalInference(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x, filled, a_start, a_step, a_lengths, a_mask, b_start, b_step, b_lengths, b_mask, a_max, b_max, every_row,
        backend, difference,
    ):  # fmt: skip
        sides = a_start, a_step, a_lengths, a_mask, b_start, b_step, b_lengths, b_mask, a_max, b_max, every_row
        return _operator("local_inference_packed", backend, filled=filled)(x, *sides, *_shortened(difference))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *inputs, ctx.difference = inputs
        _LocalInference.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, grad_m):
        x, filled, *addresses = ctx.saved_tensors
        operator = _operator("local_inference_packed", ctx.backend, "_backward", filled)
        arguments = grad_m, x, *addresses, *ctx.options, *_shortened(ctx.difference)
        return first_derivative("local_inference", operator, *arguments), *[None] * 14


def _results(a, b, *_):
    return a.new_empty(*a.shape[:-1], 4 * a.shape[-1]), b.new_empty(*b.shape[:-1], 4 * b.shape[-1])


def _gradients(grad_m_a, grad_m_b, a, b, *_):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _packed_result(x, *sides_and_difference, filled=None):
    parts = 3 if sides_and_difference[11:] == (False,) else 4
    return x.new_empty(x.shape[0], parts * x.shape[-1])


def _packed_gradient(grad_m, x, *_, filled=None):
    return x.new_empty(x.shape)


# The operators: first arguments, results, fake implementation, and Triton kernel. {} is "_triton" or, for the C++
# operators, whose schemas are in csrc/ops.cpp, empty.
_OPERATORS: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "local_inference{}": ("Tensor a, Tensor b", "(Tensor, Tensor)", _results, "forward"),
    "local_inference{}_backward": (
        "Tensor grad_m_a, Tensor grad_m_b, Tensor a, Tensor b",
        "(Tensor, Tensor)",
        _gradients,
        "backward",
    ),
    "local_inference_packed{}": ("Tensor x", "Tensor", _packed_result, "forward_packed"),
    "local_inference_packed{}_backward": ("Tensor grad_m, Tensor x", "Tensor", _packed_gradient, "backward_packed"),
}
_SIDES = ", ".join(f"Tensor? {side}_{part}" for side in "ab" for part in ("start", "step", "lengths", "mask"))
for _name, (_first, _returned, _fake, _kernel) in _OPERATORS.items():
    torch.library.register_fake(f"esim_fast::{_name.format('')}")(_fake)
    if runtime.AVAILABLE:
        from .triton import local_inference as kernels  # imports Triton, so only if it is available

        _filled = ", *, Tensor? filled=None" * ("_packed" in _name)
        _schema = f"({_first}, {_SIDES}, SymInt a_longest, SymInt b_longest, bool every_row{_filled}) -> {_returned}"
        runtime.register(_name.format("_triton") + _schema, getattr(kernels, _kernel), _fake)

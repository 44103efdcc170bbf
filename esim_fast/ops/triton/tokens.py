"""Helpers shared by the kernels: where the tokens of a sentence lie, which of them count, and products of tiles."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
NOTHING = tl.constexpr(float("-inf"))  # the score of a pair of words that does not count


class Tokens(NamedTuple):
    """One side of a batch of sentence pairs, as kernels take it.

    ``length`` (L of a padded ``x``, or the longest sentence of a row-addressed one) is passed separately, because
    Triton compiles a kernel for each pattern of ones and multiples of 16 in here.

    Attributes:
        x: ``[B, L, D]``, or row-addressed ``[N, D]``, contiguous.
        start: the sentence's part of a row-addressed token's offset, ``start[b] + step[t]`` elements; None if padded.
        step: the time step's part; None if padded.
        lengths: int64 ``[B]``, or None if all ``length`` tokens count.
        mask: bool ``[B, length]``, contiguous, or None.
        time_stride: the stride of time in a padded ``x``, in elements.
    """

    x: torch.Tensor
    start: torch.Tensor | None
    step: torch.Tensor | None
    lengths: torch.Tensor | None
    mask: torch.Tensor | None
    time_stride: int


@triton.jit
def end_of(tokens, length, pair):
    """Return the end of the positions at which a token can count."""
    if tokens.lengths is None:
        return length
    else:  # noqa: RET505 (Triton compiles the code after an if that returns)
        return tl.minimum(tl.load(tokens.lengths + pair), length).to(tl.int32)


@triton.jit
def counting(tokens, length, pair, t):
    """Return which positions ``t [T]`` hold a token that counts."""
    inside = t < end_of(tokens, length, pair)
    if tokens.mask is not None:
        inside &= tl.load(tokens.mask + pair * length + t, mask=inside, other=0) != 0
    return inside


@triton.jit
def written(tokens, length, pair, t):
    """Return which positions ``t [T]`` get results, including padding, which gets zeros."""
    if tokens.start is None:
        return t < length
    else:  # noqa: RET505
        return t < end_of(tokens, length, pair)


@triton.jit
def offsets(tokens, length, batch_stride, pair, t, D: tl.constexpr, VECTOR: tl.constexpr):
    """Return where the tokens at ``t [T]`` begin, in elements: in ``x``, and in a contiguous tensor of its shape.

    In results ``[..., 4D]``, tokens are four times as far apart. Offsets are multiples of VECTOR, which the compiler
    cannot infer from ``start`` and the strides but needs for wide loads and stores.
    """
    if tokens.start is None:
        x_offset = pair * batch_stride + t.to(tl.int64) * tokens.time_stride
        offset = (pair * length + t) * D
    else:
        inside = t < end_of(tokens, length, pair)
        offset = tl.load(tokens.start + pair) + tl.load(tokens.step + t, mask=inside, other=0)
        x_offset = offset
    return tl.multiple_of(x_offset, VECTOR), tl.multiple_of(offset, VECTOR)


@triton.jit
def places(tokens, length, batch_stride, pair, t, D: tl.constexpr, VECTOR: tl.constexpr):
    """Return which of the positions ``t [T]`` count, which get results, and both ``offsets``."""
    x_offset, offset = offsets(tokens, length, batch_stride, pair, t, D, VECTOR)
    return counting(tokens, length, pair, t), written(tokens, length, pair, t), x_offset, offset


@triton.jit
def load(x, offset, rows, d, D: tl.constexpr):
    """Load ``[T, W]``: elements ``d [W]`` of the rows at ``offset [T]``, zero if ``rows [T]`` is False."""
    return tl.load(x + offset[:, None] + d[None, :], mask=rows[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store(x, offset, rows, d, value, D: tl.constexpr):
    """Store ``value [T, W]`` where ``load`` would read."""
    value = value.to(x.dtype.element_ty)
    tl.store(x + offset[:, None] + d[None, :], value, mask=rows[:, None] & (d < D)[None, :])


@triton.jit
def clear(x, filled, rows, W: tl.constexpr):
    """Write zeros to the rows of ``x [rows, W]`` after the first ``filled`` (in memory); all programs share the work.

    If ``filled`` is None, do nothing.
    """
    if filled is not None:
        BLOCK: tl.constexpr = 1024
        first = tl.minimum(tl.maximum(tl.load(filled), 0), rows)
        for row in range(first + tl.program_id(0), rows, tl.num_programs(0)):
            for d0 in range(0, W, BLOCK):
                d = d0 + tl.arange(0, BLOCK)
                tl.store(x + row * W + d, tl.zeros([BLOCK], x.dtype.element_ty), mask=d < W)


@triton.jit
def enhance(m, offset, counts, rows, d, x, aligned, D: tl.constexpr):
    """Write ``[x; x̃; x - x̃; x ⊙ x̃]`` (equations 14 and 15) for the rows at ``offset [T]`` of ``[..., D]``."""
    x = x.to(tl.float32)
    aligned = tl.where(counts[:, None], aligned, 0.0)
    store(m, 4 * offset, rows, d, x, D)
    store(m + D, 4 * offset, rows, d, aligned, D)
    store(m + 2 * D, 4 * offset, rows, d, x - aligned, D)
    store(m + 3 * D, 4 * offset, rows, d, x * aligned, D)


@triton.jit
def aligned_gradient(grad_m, offset, counts, d, x, D: tl.constexpr):
    """Return the gradient of the alignment x̃ from its three quarters of the enhancement."""
    second = load(grad_m + D, 4 * offset, counts, d, D).to(tl.float32)
    third = load(grad_m + 2 * D, 4 * offset, counts, d, D).to(tl.float32)
    fourth = load(grad_m + 3 * D, 4 * offset, counts, d, D).to(tl.float32)
    return (second - third + fourth * x.to(tl.float32)).to(x.dtype)


@triton.jit
def direct_gradient(grad_m, offset, counts, d, aligned, D: tl.constexpr):
    """Return the gradient of x from its three quarters of the enhancement."""
    first = load(grad_m, 4 * offset, counts, d, D).to(tl.float32)
    third = load(grad_m + 2 * D, 4 * offset, counts, d, D).to(tl.float32)
    fourth = load(grad_m + 3 * D, 4 * offset, counts, d, D).to(tl.float32)
    return first + third + fourth * aligned


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """Return ``total + x @ y`` in fp32."""
    if _INTERPRETED:  # NumPy has no bf16, and the interpreter would multiply the raw bits
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def fixed(x):
    """Return ``x``, but let nothing that needs it start before this point, after all earlier loads and stores.

    Otherwise the compiler moves conversions between layouts up to each load, where they wait for it, and keeps their
    results in registers for all later uses.
    """
    if not _INTERPRETED:
        PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=False, pack=PACK)
    return x

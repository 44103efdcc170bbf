"""Local inference for sentences that fit one tile, as in one_tile, but each program reads the rows of its pair once.

It loads them all, in blocks of features, before it uses the first, and computes everything from these registers.
"""

import triton
import triton.language as tl

from .one_tile import UNSPECIALIZED, softmaxes
from .tokens import aligned_gradient, clear, direct_gradient, dot, enhance, fixed, load, places, store


@triton.jit
def _blocks(x, offset, counts, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load all features of the rows at ``offset [T]``: a tuple of blocks ``[T, BLOCK_D]``."""
    blocks = ()
    for d0 in tl.static_range(0, D, BLOCK_D):
        blocks += (load(x, offset, counts, d0 + tl.arange(0, BLOCK_D), D),)  # type: ignore[assignment]
    return blocks


@triton.jit
def _hidden(x, zero):
    """Return ``x`` so that the compiler does not recognize it. Else it would keep other values computed from ``x``.

    Args:
        zero: 0, as a value that the compiler does not know.
    """
    if x.dtype.primitive_bitwidth == 16:
        return (x.to(tl.int16, bitcast=True) ^ zero.to(tl.int16)).to(x.dtype, bitcast=True)
    else:  # noqa: RET505 (Triton compiles the code after an if that returns)
        return (x.to(tl.int32, bitcast=True) ^ zero).to(x.dtype, bitcast=True)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward(
    a, b, a_length, b_length, a_batch_stride, b_batch_stride, m_a, m_b, filled, rows,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, A_TILE: tl.constexpr, B_TILE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute equations 11-15 for one pair and every SPLITS-th block of features."""
    clear(m_a, filled, rows, 4 * D)
    pair, split = (tl.program_id(0) // SPLITS).to(tl.int64), tl.program_id(0) % SPLITS
    t_a, t_b = tl.arange(0, A_TILE), tl.arange(0, B_TILE)
    a_counts, a_rows, a_offset, m_a_offset = places(a, a_length, a_batch_stride, pair, t_a, D, VECTOR)
    b_counts, b_rows, b_offset, m_b_offset = places(b, b_length, b_batch_stride, pair, t_b, D, VECTOR)
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D

    a_blocks, b_blocks = _blocks(a.x, a_offset, a_counts, D, BLOCK_D), _blocks(b.x, b_offset, b_counts, D, BLOCK_D)
    scores = tl.zeros([A_TILE, B_TILE], tl.float32)
    for i in tl.static_range(BLOCKS):
        a_part, b_part = fixed(a_blocks[i]), fixed(b_blocks[i])
        scores = dot(a_part, b_part.T, scores, PRECISION)
    alpha, beta = softmaxes(scores, a_counts, b_counts)

    dtype = a.x.dtype.element_ty
    alpha, beta = alpha.to(dtype), beta.to(dtype)
    for i in tl.static_range(BLOCKS):
        if i % SPLITS == split:
            d = i * BLOCK_D + tl.arange(0, BLOCK_D)
            a_part, b_part = fixed(a_blocks[i]), fixed(b_blocks[i])
            a_aligned = dot(alpha, b_part, tl.zeros([A_TILE, BLOCK_D], tl.float32), PRECISION)
            b_aligned = dot(beta.T, a_part, tl.zeros([B_TILE, BLOCK_D], tl.float32), PRECISION)
            enhance(m_a, m_a_offset, a_counts, a_rows, d, a_part, fixed(a_aligned), D)
            enhance(m_b, m_b_offset, b_counts, b_rows, d, b_part, fixed(b_aligned), D)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward(
    a, b, a_length, b_length, a_batch_stride, b_batch_stride, grad_m_a, grad_m_b, grad_a, grad_b,
    filled, rows,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, A_TILE: tl.constexpr, B_TILE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one pair's tokens, for every SPLITS-th block of features."""
    clear(grad_a, filled, rows, D)
    pair, split = (tl.program_id(0) // SPLITS).to(tl.int64), tl.program_id(0) % SPLITS
    t_a, t_b = tl.arange(0, A_TILE), tl.arange(0, B_TILE)
    a_counts, a_rows, a_offset, grad_a_offset = places(a, a_length, a_batch_stride, pair, t_a, D, VECTOR)
    b_counts, b_rows, b_offset, grad_b_offset = places(b, b_length, b_batch_stride, pair, t_b, D, VECTOR)
    BLOCKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D

    a_blocks, b_blocks = _blocks(a.x, a_offset, a_counts, D, BLOCK_D), _blocks(b.x, b_offset, b_counts, D, BLOCK_D)
    scores = tl.zeros([A_TILE, B_TILE], tl.float32)
    grad_alpha = tl.zeros([A_TILE, B_TILE], tl.float32)
    grad_beta = tl.zeros([A_TILE, B_TILE], tl.float32)
    for i in tl.static_range(BLOCKS):
        d = i * BLOCK_D + tl.arange(0, BLOCK_D)
        a_part, b_part = fixed(a_blocks[i]), fixed(b_blocks[i])
        grad_a_aligned = fixed(aligned_gradient(grad_m_a, grad_a_offset, a_counts, d, a_part, D))
        grad_b_aligned = fixed(aligned_gradient(grad_m_b, grad_b_offset, b_counts, d, b_part, D))
        scores = dot(a_part, b_part.T, scores, PRECISION)
        grad_alpha = dot(grad_a_aligned, b_part.T, grad_alpha, PRECISION)
        grad_beta = dot(a_part, grad_b_aligned.T, grad_beta, PRECISION)
    alpha, beta = softmaxes(scores, a_counts, b_counts)
    grad_scores = alpha * (grad_alpha - tl.sum(alpha * grad_alpha, 1)[:, None])
    grad_scores += beta * (grad_beta - tl.sum(beta * grad_beta, 0)[None, :])

    # From the last block to the first, because the cache holds what was read last. One side of a block after the other,
    # because both at once would need too many registers.
    zero = a_length >> 31
    dtype = a.x.dtype.element_ty
    alpha, beta, grad_scores = alpha.to(dtype), beta.to(dtype), grad_scores.to(dtype)
    for i in tl.static_range(BLOCKS - 1, -1, -1):
        if i % SPLITS == split:
            d = i * BLOCK_D + tl.arange(0, BLOCK_D)
            b_part = fixed(_hidden(b_blocks[i], zero))
            grad_b_aligned = fixed(aligned_gradient(grad_m_b, grad_b_offset, b_counts, d, b_part, D))
            a_aligned = dot(alpha, b_part, tl.zeros([A_TILE, BLOCK_D], tl.float32), PRECISION)
            of_a = direct_gradient(grad_m_a, grad_a_offset, a_counts, d, a_aligned, D)
            of_a = dot(beta, grad_b_aligned, of_a, PRECISION)
            of_a = dot(grad_scores, b_part, of_a, PRECISION)
            store(grad_a, grad_a_offset, a_rows, d, tl.where(a_counts[:, None], of_a, 0.0), D)
            a_part = fixed(_hidden(a_blocks[i], zero))
            grad_a_aligned = fixed(aligned_gradient(grad_m_a, grad_a_offset, a_counts, d, a_part, D))
            b_aligned = dot(beta.T, a_part, tl.zeros([B_TILE, BLOCK_D], tl.float32), PRECISION)
            of_b = direct_gradient(grad_m_b, grad_b_offset, b_counts, d, b_aligned, D)
            of_b = dot(alpha.T, grad_a_aligned, of_b, PRECISION)
            of_b = dot(grad_scores.T, a_part, of_b, PRECISION)
            store(grad_b, grad_b_offset, b_rows, d, tl.where(b_counts[:, None], of_b, 0.0), D)

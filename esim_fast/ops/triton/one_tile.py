"""Local inference for sentences that fit one tile: a program holds all scores of its pair and both softmaxes.

The D features are split over SPLITS programs, so that small batches fill a GPU; each recomputes the scores, which are
cheap. Only the inputs are saved for the backward pass.
"""

import triton
import triton.language as tl

from .tokens import NOTHING, aligned_gradient, clear, direct_gradient, dot, enhance, fixed, load, places, store


@triton.jit
def softmaxes(scores, a_counts, b_counts):
    """Return the soft alignment's weights from scores ``[A, B]`` (equations 12, 13), zero unless both words count."""
    scores = tl.where(a_counts[:, None] & b_counts[None, :], scores, NOTHING)
    a_any, b_any = tl.max(a_counts.to(tl.int32), 0) > 0, tl.max(b_counts.to(tl.int32), 0) > 0
    alpha = tl.exp(scores - tl.where(a_counts & b_any, tl.max(scores, 1), 0.0)[:, None])
    alpha /= tl.where(a_counts & b_any, tl.sum(alpha, 1), 1.0)[:, None]
    beta = tl.exp(scores - tl.where(b_counts & a_any, tl.max(scores, 0), 0.0)[None, :])
    beta /= tl.where(b_counts & a_any, tl.sum(beta, 0), 1.0)[None, :]
    return alpha, beta


@triton.jit
def _product(x, y, total, PRECISION: tl.constexpr, FIXES: tl.constexpr):
    """Return ``dot``, with FIXES of factors that are ``fixed``."""
    if FIXES:
        x, y = fixed(x), fixed(y)
    return dot(x, y, total, PRECISION)


UNSPECIALIZED = ["a_length", "b_length", "a_batch_stride", "b_batch_stride", "rows"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward(
    a, b, a_length, b_length, a_batch_stride, b_batch_stride, m_a, m_b, filled, rows,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, A_TILE: tl.constexpr, B_TILE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute equations 11-15 for one pair and every SPLITS-th block of features."""
    pair, split = (tl.program_id(0) // SPLITS).to(tl.int64), tl.program_id(0) % SPLITS
    t_a, t_b = tl.arange(0, A_TILE), tl.arange(0, B_TILE)
    a_counts, a_rows, a_offset, m_a_offset = places(a, a_length, a_batch_stride, pair, t_a, D, VECTOR)
    b_counts, b_rows, b_offset, m_b_offset = places(b, b_length, b_batch_stride, pair, t_b, D, VECTOR)

    scores = tl.zeros([A_TILE, B_TILE], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a_part, b_part = load(a.x, a_offset, a_counts, k, D), load(b.x, b_offset, b_counts, k, D)
        scores = dot(a_part, b_part.T, scores, PRECISION)
    alpha, beta = softmaxes(scores, a_counts, b_counts)

    dtype = a.x.dtype.element_ty
    alpha, beta = alpha.to(dtype), beta.to(dtype)
    for d0 in range(split * BLOCK_D, D, SPLITS * BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        a_part, b_part = load(a.x, a_offset, a_counts, d, D), load(b.x, b_offset, b_counts, d, D)
        a_aligned = dot(alpha, b_part, tl.zeros([A_TILE, BLOCK_D], tl.float32), PRECISION)
        b_aligned = dot(beta.T, a_part, tl.zeros([B_TILE, BLOCK_D], tl.float32), PRECISION)
        enhance(m_a, m_a_offset, a_counts, a_rows, d, a_part, a_aligned, D)
        enhance(m_b, m_b_offset, b_counts, b_rows, d, b_part, b_aligned, D)
    clear(m_a, filled, rows, 4 * D)  # last, because registers spill if it comes first


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward(
    a, b, a_length, b_length, a_batch_stride, b_batch_stride, grad_m_a, grad_m_b, grad_a, grad_b,
    filled, rows,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, A_TILE: tl.constexpr, B_TILE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one pair's tokens, for every SPLITS-th block of features."""
    clear(grad_a, filled, rows, D)
    # Three products split each factor in two. In larger tiles that takes too many registers unless factors are fixed.
    FIXES: tl.constexpr = PRECISION == "tf32x3" and A_TILE * B_TILE > 512
    pair, split = (tl.program_id(0) // SPLITS).to(tl.int64), tl.program_id(0) % SPLITS
    t_a, t_b = tl.arange(0, A_TILE), tl.arange(0, B_TILE)
    a_counts, a_rows, a_offset, grad_a_offset = places(a, a_length, a_batch_stride, pair, t_a, D, VECTOR)
    b_counts, b_rows, b_offset, grad_b_offset = places(b, b_length, b_batch_stride, pair, t_b, D, VECTOR)

    scores = tl.zeros([A_TILE, B_TILE], tl.float32)
    grad_alpha = tl.zeros([A_TILE, B_TILE], tl.float32)
    grad_beta = tl.zeros([A_TILE, B_TILE], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a_part, b_part = load(a.x, a_offset, a_counts, k, D), load(b.x, b_offset, b_counts, k, D)
        grad_a_aligned = aligned_gradient(grad_m_a, grad_a_offset, a_counts, k, a_part, D)
        grad_b_aligned = aligned_gradient(grad_m_b, grad_b_offset, b_counts, k, b_part, D)
        scores = _product(a_part, b_part.T, scores, PRECISION, FIXES)
        grad_alpha = _product(grad_a_aligned, b_part.T, grad_alpha, PRECISION, FIXES)
        grad_beta = _product(a_part, grad_b_aligned.T, grad_beta, PRECISION, FIXES)
    alpha, beta = softmaxes(scores, a_counts, b_counts)
    grad_scores = alpha * (grad_alpha - tl.sum(alpha * grad_alpha, 1)[:, None])
    grad_scores += beta * (grad_beta - tl.sum(beta * grad_beta, 0)[None, :])

    # One side after the other, because both at once would need too many registers.
    dtype = a.x.dtype.element_ty
    alpha, beta, grad_scores = alpha.to(dtype), beta.to(dtype), grad_scores.to(dtype)
    for d0 in range(split * BLOCK_D, D, SPLITS * BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        b_part = load(b.x, b_offset, b_counts, d, D)
        grad_b_aligned = aligned_gradient(grad_m_b, grad_b_offset, b_counts, d, b_part, D)
        a_aligned = _product(alpha, b_part, tl.zeros([A_TILE, BLOCK_D], tl.float32), PRECISION, FIXES)
        total = direct_gradient(grad_m_a, grad_a_offset, a_counts, d, a_aligned, D)
        total = _product(beta, grad_b_aligned, total, PRECISION, FIXES)
        total = _product(grad_scores, b_part, total, PRECISION, FIXES)
        store(grad_a, grad_a_offset, a_rows, d, tl.where(a_counts[:, None], total, 0.0), D)
    for d0 in range(split * BLOCK_D, D, SPLITS * BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        a_part = load(a.x, a_offset, a_counts, d, D)
        grad_a_aligned = aligned_gradient(grad_m_a, grad_a_offset, a_counts, d, a_part, D)
        b_aligned = _product(beta.T, a_part, tl.zeros([B_TILE, BLOCK_D], tl.float32), PRECISION, FIXES)
        total = direct_gradient(grad_m_b, grad_b_offset, b_counts, d, b_aligned, D)
        total = _product(alpha.T, grad_a_aligned, total, PRECISION, FIXES)
        total = _product(grad_scores.T, a_part, total, PRECISION, FIXES)
        store(grad_b, grad_b_offset, b_rows, d, tl.where(b_counts[:, None], total, 0.0), D)

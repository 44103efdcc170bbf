"""Pairs with longer sentences: each side in turn is ``x``, which looks at the other, ``y``, tile by tile.

The softmax over y is taken online (its maximum and sum grow with each tile); what the backward pass needs of it, the
maximum and the sum of exponentials for each token, is kept. They are kept apart: the logarithm of a sum beside scores
of ten thousand would lose it.
"""

import triton
import triton.language as tl

from .tokens import (
    NOTHING,
    aligned_gradient,
    counting,
    direct_gradient,
    dot,
    end_of,
    enhance,
    load,
    offsets,
    store,
    written,
)


@triton.jit
def _softmax_statistics(statistics, pairs, length, pair, t):
    """Maximum and sum of exponentials of tokens ``t [T]``, from ``[2, pairs, length]``; 0 and 1 behind the sentence."""
    place = pair * length + t
    highest = tl.load(statistics + place, mask=t < length, other=0.0)
    return highest, tl.load(statistics + pairs * length + place, mask=t < length, other=1.0)


_UNSPECIALIZED = ["x_length", "y_length", "x_batch_stride", "y_batch_stride", "pairs"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def forward(
    x,
    y,
    x_length,
    y_length,
    x_batch_stride,
    y_batch_stride,
    pairs,
    m,
    statistics,
    D: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    X_TILE: tl.constexpr,
    Y_TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Equations 11, 12 and 14 (or 13 and 15) for one tile of x and one block of features.

    Writes the enhancement ``m`` and, once for all blocks, ``statistics [2, pairs, x_length]``.
    """
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tiles = tl.cdiv(x_length, X_TILE)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks % tiles
    pair = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    t = tile * X_TILE + tl.arange(0, X_TILE)
    counts, rows = counting(x, x_length, pair, t), written(x, x_length, pair, t)
    x_offset, m_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)

    highest = tl.full([X_TILE], NOTHING, tl.float32)
    total = tl.zeros([X_TILE], tl.float32)
    aligned = tl.zeros([X_TILE, BLOCK_D], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, Y_TILE):
        t_y = first + tl.arange(0, Y_TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, _ = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        scores = tl.zeros([X_TILE, Y_TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            x_part, y_part = load(x.x, x_offset, counts, k, D), load(y.x, y_offset, y_counts, k, D)
            scores = dot(x_part, y_part.T, scores, PRECISION)
        scores = tl.where(y_counts[None, :], scores, NOTHING)
        risen = tl.maximum(highest, tl.max(scores, 1))
        # Until a word counts there is nothing to compare with.
        known = tl.where(risen == NOTHING, 0.0, risen)
        weights, shrunk = tl.exp(scores - known[:, None]), tl.exp(highest - known)
        total = total * shrunk + tl.sum(weights, 1)
        y_part = load(y.x, y_offset, y_counts, d, D)
        aligned = dot(weights.to(y_part.dtype), y_part, aligned * shrunk[:, None], PRECISION)
        highest = risen

    # Without a word that counts the alignment is zero.
    total = tl.where(total == 0.0, 1.0, total)
    aligned /= total[:, None]
    enhance(m, m_offset, counts, rows, d, load(x.x, x_offset, counts, d, D), aligned, D)
    if block == 0:
        place = pair * x_length + t
        tl.store(statistics + place, tl.where(highest == NOTHING, 0.0, highest), mask=t < x_length)
        tl.store(statistics + pairs * x_length + place, total, mask=t < x_length)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward_means(
    x,
    y,
    x_length,
    y_length,
    x_batch_stride,
    y_batch_stride,
    pairs,
    grad_m,
    statistics,
    means,
    D: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    X_TILE: tl.constexpr,
    Y_TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """For each token of x the mean of its weights' gradients, by those weights: ``means [pairs, x_length]``.

    It is what a softmax takes off the gradient of each weight.
    """
    tiles = tl.cdiv(x_length, X_TILE)
    tile, pair = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    t = tile * X_TILE + tl.arange(0, X_TILE)
    counts = counting(x, x_length, pair, t)
    x_offset, grad_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)
    highest, total = _softmax_statistics(statistics, pairs, x_length, pair, t)

    mean = tl.zeros([X_TILE], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, Y_TILE):
        t_y = first + tl.arange(0, Y_TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, _ = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        scores = tl.zeros([X_TILE, Y_TILE], tl.float32)
        grad_weights = tl.zeros([X_TILE, Y_TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            x_part, y_part = load(x.x, x_offset, counts, k, D), load(y.x, y_offset, y_counts, k, D)
            grad_aligned = aligned_gradient(grad_m, grad_offset, counts, k, x_part, D)
            scores = dot(x_part, y_part.T, scores, PRECISION)
            grad_weights = dot(grad_aligned, y_part.T, grad_weights, PRECISION)
        weights = tl.exp(tl.where(y_counts[None, :], scores, NOTHING) - highest[:, None]) / total[:, None]
        mean += tl.sum(weights * grad_weights, 1)
    tl.store(means + pair * x_length + t, tl.where(counts, mean, 0.0), mask=t < x_length)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward(
    x,
    y,
    x_length,
    y_length,
    x_batch_stride,
    y_batch_stride,
    pairs,
    grad_m_x,
    grad_m_y,
    x_statistics,
    y_statistics,
    x_means,
    y_means,
    grad_x,
    D: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    X_TILE: tl.constexpr,
    Y_TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one tile of x and one block of features: of its own alignment and of its part in y's."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tiles = tl.cdiv(x_length, X_TILE)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks % tiles
    pair = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    t = tile * X_TILE + tl.arange(0, X_TILE)
    counts, rows = counting(x, x_length, pair, t), written(x, x_length, pair, t)
    x_offset, grad_x_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    x_highest, x_total = _softmax_statistics(x_statistics, pairs, x_length, pair, t)
    x_mean = tl.load(x_means + pair * x_length + t, mask=t < x_length, other=0.0)

    aligned = tl.zeros([X_TILE, BLOCK_D], tl.float32)
    gradient = tl.zeros([X_TILE, BLOCK_D], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, Y_TILE):
        t_y = first + tl.arange(0, Y_TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, grad_y_offset = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        y_highest, y_total = _softmax_statistics(y_statistics, pairs, y_length, pair, t_y)
        y_mean = tl.load(y_means + pair * y_length + t_y, mask=t_y < y_length, other=0.0)

        scores = tl.zeros([X_TILE, Y_TILE], tl.float32)
        grad_alpha = tl.zeros([X_TILE, Y_TILE], tl.float32)
        grad_beta = tl.zeros([X_TILE, Y_TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            x_part, y_part = load(x.x, x_offset, counts, k, D), load(y.x, y_offset, y_counts, k, D)
            grad_x_aligned = aligned_gradient(grad_m_x, grad_x_offset, counts, k, x_part, D)
            grad_y_aligned = aligned_gradient(grad_m_y, grad_y_offset, y_counts, k, y_part, D)
            scores = dot(x_part, y_part.T, scores, PRECISION)
            grad_alpha = dot(grad_x_aligned, y_part.T, grad_alpha, PRECISION)
            grad_beta = dot(x_part, grad_y_aligned.T, grad_beta, PRECISION)
        scores = tl.where(counts[:, None] & y_counts[None, :], scores, NOTHING)
        alpha = tl.exp(scores - x_highest[:, None]) / x_total[:, None]  # x looks at y
        beta = tl.exp(scores - y_highest[None, :]) / y_total[None, :]  # y looks at x
        grad_scores = alpha * (grad_alpha - x_mean[:, None]) + beta * (grad_beta - y_mean[None, :])

        y_part = load(y.x, y_offset, y_counts, d, D)
        grad_y_aligned = aligned_gradient(grad_m_y, grad_y_offset, y_counts, d, y_part, D)
        aligned = dot(alpha.to(y_part.dtype), y_part, aligned, PRECISION)
        gradient = dot(beta.to(y_part.dtype), grad_y_aligned, gradient, PRECISION)
        gradient = dot(grad_scores.to(y_part.dtype), y_part, gradient, PRECISION)

    gradient += direct_gradient(grad_m_x, grad_x_offset, counts, d, aligned, D)
    store(grad_x, grad_x_offset, rows, d, tl.where(counts[:, None], gradient, 0.0), D)

"""Pairs with longer sentences: each side in turn is ``x``, which looks at the other, ``y``, tile by tile.

The softmax over y is taken online: its maximum and its sum grow with each tile. Nothing is kept for the backward pass;
there the gradients of all weights, less their mean by the weights, may cancel to nearly nothing, and would not if the
scores were rounded otherwise than in the forward pass. So ``backward_statistics`` makes maximum, sum and mean anew, and
computes every tile of scores just as ``backward`` does: rows of a by rows of b, whichever side is x.
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

_UNSPECIALIZED = ["x_length", "y_length", "x_batch_stride", "y_batch_stride", "pairs"]


@triton.jit
def _rows_by_rows(of_x, of_y, total, SWAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """``total`` plus the products of all rows of x with all of y: a's in rows, b's in columns, also if x is b."""
    if SWAPPED:
        return dot(of_y, of_x.T, total, PRECISION)
    else:  # noqa: RET505 (the compiler goes on behind an if that returns)
        return dot(of_x, of_y.T, total, PRECISION)


@triton.jit
def _turned(products, SWAPPED: tl.constexpr):
    """Rows of x by rows of y from :func:`_rows_by_rows`."""
    if SWAPPED:
        return products.T
    else:  # noqa: RET505
        return products


@triton.jit
def _risen(highest, scores):
    """The maximum with another tile's scores, and the same to compare with: 0 until a word counts."""
    risen = tl.maximum(highest, tl.max(scores, 1))
    return risen, tl.where(risen == NOTHING, 0.0, risen)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def forward(
    x,
    y,
    x_length,
    y_length,
    x_batch_stride,
    y_batch_stride,
    m,
    D: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Equations 11, 12 and 14 (or 13 and 15) for one tile of x and one block of features."""
    blocks, tiles = tl.cdiv(D, BLOCK_D), tl.cdiv(x_length, TILE)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks % tiles
    pair = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    t = tile * TILE + tl.arange(0, TILE)
    counts, rows = counting(x, x_length, pair, t), written(x, x_length, pair, t)
    x_offset, m_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)

    highest = tl.full([TILE], NOTHING, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    aligned = tl.zeros([TILE, BLOCK_D], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, _ = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        scores = tl.zeros([TILE, TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            x_part, y_part = load(x.x, x_offset, counts, k, D), load(y.x, y_offset, y_counts, k, D)
            scores = dot(x_part, y_part.T, scores, PRECISION)
        scores = tl.where(y_counts[None, :], scores, NOTHING)
        risen, known = _risen(highest, scores)
        weights, shrunk = tl.exp(scores - known[:, None]), tl.exp(highest - known)
        total = total * shrunk + tl.sum(weights, 1)
        y_part = load(y.x, y_offset, y_counts, d, D)
        aligned = dot(weights.to(y_part.dtype), y_part, aligned * shrunk[:, None], PRECISION)
        highest = risen

    aligned /= tl.where(total == 0.0, 1.0, total)[:, None]  # without a word that counts the alignment is zero
    enhance(m, m_offset, counts, rows, d, load(x.x, x_offset, counts, d, D), aligned, D)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward_statistics(
    x,
    y,
    x_length,
    y_length,
    x_batch_stride,
    y_batch_stride,
    grad_m,
    statistics,
    pairs,
    D: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAPPED: tl.constexpr,
):
    """For each token of x, ``statistics [3, pairs, x_length]``: the maximum of its scores, the sum of exponentials,
    and the mean of its weights' gradients, by those weights: what a softmax takes off each of them."""
    tiles = tl.cdiv(x_length, TILE)
    tile, pair = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    t = tile * TILE + tl.arange(0, TILE)
    counts = counting(x, x_length, pair, t)
    x_offset, grad_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)

    highest = tl.full([TILE], NOTHING, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    weighted = tl.zeros([TILE], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, _ = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        scores = tl.zeros([TILE, TILE], tl.float32)
        grad_weights = tl.zeros([TILE, TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            x_part, y_part = load(x.x, x_offset, counts, k, D), load(y.x, y_offset, y_counts, k, D)
            grad_aligned = aligned_gradient(grad_m, grad_offset, counts, k, x_part, D)
            scores = _rows_by_rows(x_part, y_part, scores, SWAPPED, PRECISION)
            grad_weights = _rows_by_rows(grad_aligned, y_part, grad_weights, SWAPPED, PRECISION)
        scores = tl.where(y_counts[None, :], _turned(scores, SWAPPED), NOTHING)
        risen, known = _risen(highest, scores)
        weights, shrunk = tl.exp(scores - known[:, None]), tl.exp(highest - known)
        total = total * shrunk + tl.sum(weights, 1)
        weighted = weighted * shrunk + tl.sum(weights * _turned(grad_weights, SWAPPED), 1)
        highest = risen

    place, here = statistics + pair * x_length + t, t < x_length
    any_word = total != 0.0
    total = tl.where(any_word, total, 1.0)
    tl.store(place, tl.where(any_word, highest, 0.0), mask=here)
    next_kind = pairs.to(tl.int64) * x_length
    tl.store(place + next_kind, total, mask=here)
    tl.store(place + 2 * next_kind, weighted / total, mask=here)


@triton.jit
def _load_statistics(statistics, pairs, length, pair, t):
    """Maximum, sum and mean of the tokens at ``t``."""
    place, here = statistics + pair * length + t, t < length
    next_kind = pairs.to(tl.int64) * length
    highest = tl.load(place, mask=here, other=0.0)
    total = tl.load(place + next_kind, mask=here, other=1.0)
    return highest, total, tl.load(place + 2 * next_kind, mask=here, other=0.0)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward(
    x,
    y,
    x_length,
    y_length,
    x_batch_stride,
    y_batch_stride,
    grad_m_x,
    grad_m_y,
    x_statistics,
    y_statistics,
    grad_x,
    pairs,
    D: tl.constexpr,
    VECTOR: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SWAPPED: tl.constexpr,
):
    """The gradient of one tile of x and one block of features: of its own alignment and of its part in y's."""
    blocks, tiles = tl.cdiv(D, BLOCK_D), tl.cdiv(x_length, TILE)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks % tiles
    pair = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    t = tile * TILE + tl.arange(0, TILE)
    counts, rows = counting(x, x_length, pair, t), written(x, x_length, pair, t)
    x_offset, grad_x_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    x_highest, x_total, x_mean = _load_statistics(x_statistics, pairs, x_length, pair, t)

    aligned = tl.zeros([TILE, BLOCK_D], tl.float32)
    gradient = tl.zeros([TILE, BLOCK_D], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, grad_y_offset = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        y_highest, y_total, y_mean = _load_statistics(y_statistics, pairs, y_length, pair, t_y)

        scores = tl.zeros([TILE, TILE], tl.float32)
        grad_x_weights = tl.zeros([TILE, TILE], tl.float32)
        grad_y_weights = tl.zeros([TILE, TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            x_part, y_part = load(x.x, x_offset, counts, k, D), load(y.x, y_offset, y_counts, k, D)
            grad_x_aligned = aligned_gradient(grad_m_x, grad_x_offset, counts, k, x_part, D)
            grad_y_aligned = aligned_gradient(grad_m_y, grad_y_offset, y_counts, k, y_part, D)
            scores = _rows_by_rows(x_part, y_part, scores, SWAPPED, PRECISION)
            grad_x_weights = _rows_by_rows(grad_x_aligned, y_part, grad_x_weights, SWAPPED, PRECISION)
            grad_y_weights = _rows_by_rows(x_part, grad_y_aligned, grad_y_weights, SWAPPED, PRECISION)
        scores = tl.where(counts[:, None] & y_counts[None, :], _turned(scores, SWAPPED), NOTHING)
        x_weights = tl.exp(scores - x_highest[:, None]) / x_total[:, None]  # x looks at y
        y_weights = tl.exp(scores - y_highest[None, :]) / y_total[None, :]  # y looks at x
        grad_scores = x_weights * (_turned(grad_x_weights, SWAPPED) - x_mean[:, None])
        grad_scores += y_weights * (_turned(grad_y_weights, SWAPPED) - y_mean[None, :])

        y_part = load(y.x, y_offset, y_counts, d, D)
        grad_y_aligned = aligned_gradient(grad_m_y, grad_y_offset, y_counts, d, y_part, D)
        aligned = dot(x_weights.to(y_part.dtype), y_part, aligned, PRECISION)
        gradient = dot(y_weights.to(y_part.dtype), grad_y_aligned, gradient, PRECISION)
        gradient = dot(grad_scores.to(y_part.dtype), y_part, gradient, PRECISION)

    gradient += direct_gradient(grad_m_x, grad_x_offset, counts, d, aligned, D)
    store(grad_x, grad_x_offset, rows, d, tl.where(counts[:, None], gradient, 0.0), D)

"""Local inference for longer sentences: products of words are computed tile by tile and stored for all later uses.

Scores and, in the backward pass, the gradients of the weights are fp32 matrices ``[pairs, a_longest, b_longest]`` with
rows padded to multiples of 16, which live as long as one call. Each side in turn is ``x``, which attends to the other,
``y``. It reads the matrices directly (x is a) or transposed (x is b, SWAPPED). The softmax over y is computed online:
its maximum and sum are updated with each tile.
"""

import triton
import triton.language as tl

from .tokens import (
    NOTHING,
    aligned_gradient,
    clear,
    counting,
    direct_gradient,
    dot,
    end_of,
    enhance,
    load,
    offsets,
    places,
    store,
    written,
)

_UNSPECIALIZED = ["x_length", "y_length", "x_batch_stride", "y_batch_stride", "x_longest", "y_longest", "rows"]
_UNSPECIALIZED_PRODUCTS = ["a_length", "b_length", "a_batch_stride", "b_batch_stride", "a_longest", "b_longest"]


@triton.jit
def _matrix_place(x_longest, y_longest, pair, t_x, t_y, SWAPPED: tl.constexpr):
    """Return the offsets of word pairs ``t_x [X]`` and ``t_y [Y]`` in the matrices, and which of them are inside.

    Positions inside need not hold words that count: a mask of those would prevent vector loads.
    """
    if SWAPPED:
        width = (x_longest + 15) // 16 * 16
        place = (pair * y_longest + t_y)[None, :] * width + t_x[:, None]
        return place, (t_x < width)[:, None] & (t_y < y_longest)[None, :]
    else:  # noqa: RET505 (Triton compiles the code after an if that returns)
        width = (y_longest + 15) // 16 * 16
        place = (pair * x_longest + t_x)[:, None] * width + t_y[None, :]
        return place, (t_x < x_longest)[:, None] & (t_y < width)[None, :]


@triton.jit
def _tile_and_block(length, D: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the pair, the positions of this program's tile of x (tiles cover ``length``), and its features."""
    blocks, tiles = tl.cdiv(D, BLOCK_D), tl.cdiv(length, TILE)
    block, tile = tl.program_id(0) % blocks, tl.program_id(0) // blocks % tiles
    pair = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    return pair, tile * TILE + tl.arange(0, TILE), block * BLOCK_D + tl.arange(0, BLOCK_D)


@triton.jit
def _risen(highest, scores):
    """Return the running maximum after another tile of scores, and a finite version of it: 0 until a word counts."""
    risen = tl.maximum(highest, tl.max(scores, 1))
    return risen, tl.where(risen == NOTHING, 0.0, risen)


@triton.jit
def _tiles(a, b, a_length, b_length, a_longest, b_longest, TILE: tl.constexpr):
    """Return the pair, the positions of this program's tiles of a and b, and whether they contain any words."""
    a_tiles, b_tiles = tl.cdiv(a_longest, TILE), tl.cdiv(b_longest, TILE)
    a_tile, b_tile = tl.program_id(0) // b_tiles % a_tiles, tl.program_id(0) % b_tiles
    pair = (tl.program_id(0) // (a_tiles * b_tiles)).to(tl.int64)
    any_words = (a_tile * TILE < end_of(a, a_length, pair)) & (b_tile * TILE < end_of(b, b_length, pair))
    return pair, a_tile * TILE + tl.arange(0, TILE), b_tile * TILE + tl.arange(0, TILE), any_words


@triton.jit(do_not_specialize=_UNSPECIALIZED_PRODUCTS)
def scores(
    a, b, a_length, b_length, a_batch_stride, b_batch_stride, a_longest, b_longest, all_scores,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute equation 11 for one tile of a and one of b."""
    pair, t_a, t_b, any_words = _tiles(a, b, a_length, b_length, a_longest, b_longest, TILE)
    if any_words:
        a_counts, b_counts = counting(a, a_length, pair, t_a), counting(b, b_length, pair, t_b)
        a_offset, _ = offsets(a, a_length, a_batch_stride, pair, t_a, D, VECTOR)
        b_offset, _ = offsets(b, b_length, b_batch_stride, pair, t_b, D, VECTOR)
        of_tile = tl.zeros([TILE, TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            a_part, b_part = load(a.x, a_offset, a_counts, k, D), load(b.x, b_offset, b_counts, k, D)
            of_tile = dot(a_part, b_part.T, of_tile, PRECISION)
        place, here = _matrix_place(a_longest, b_longest, pair, t_a, t_b, False)
        tl.store(all_scores + place, of_tile, mask=here)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward_enhance(
    x, y, x_length, y_length, x_batch_stride, y_batch_stride, x_longest, y_longest, grad_m, grad_aligned,
    D: tl.constexpr, VECTOR: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the alignment for one tile of x and one block of features; y is not used."""
    pair, t, d = _tile_and_block(x_longest, D, TILE, BLOCK_D)
    counts = counting(x, x_length, pair, t)
    x_offset, offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)
    x_part = load(x.x, x_offset, counts, d, D)
    store(grad_aligned, offset, counts, d, aligned_gradient(grad_m, offset, counts, d, x_part, D), D)


@triton.jit(do_not_specialize=_UNSPECIALIZED_PRODUCTS)
def products(
    a, b, a_length, b_length, a_batch_stride, b_batch_stride, a_longest, b_longest, a_grad_aligned, b_grad_aligned,
    all_scores, grad_alpha, grad_beta,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Recompute ``scores``, and compute the gradients of the weights of both sides."""
    pair, t_a, t_b, any_words = _tiles(a, b, a_length, b_length, a_longest, b_longest, TILE)
    if any_words:
        a_counts, b_counts = counting(a, a_length, pair, t_a), counting(b, b_length, pair, t_b)
        a_offset, a_grad_offset = offsets(a, a_length, a_batch_stride, pair, t_a, D, VECTOR)
        b_offset, b_grad_offset = offsets(b, b_length, b_batch_stride, pair, t_b, D, VECTOR)
        of_tile = tl.zeros([TILE, TILE], tl.float32)
        of_alpha = tl.zeros([TILE, TILE], tl.float32)
        of_beta = tl.zeros([TILE, TILE], tl.float32)
        for k0 in range(0, D, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            a_part, b_part = load(a.x, a_offset, a_counts, k, D), load(b.x, b_offset, b_counts, k, D)
            a_grad_part = load(a_grad_aligned, a_grad_offset, a_counts, k, D)
            b_grad_part = load(b_grad_aligned, b_grad_offset, b_counts, k, D)
            of_tile = dot(a_part, b_part.T, of_tile, PRECISION)
            of_alpha = dot(a_grad_part, b_part.T, of_alpha, PRECISION)
            of_beta = dot(a_part, b_grad_part.T, of_beta, PRECISION)
        place, here = _matrix_place(a_longest, b_longest, pair, t_a, t_b, False)
        tl.store(all_scores + place, of_tile, mask=here)
        tl.store(grad_alpha + place, of_alpha, mask=here)
        tl.store(grad_beta + place, of_beta, mask=here)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def forward(
    x, y, x_length, y_length, x_batch_stride, y_batch_stride, x_longest, y_longest, all_scores, m,
    filled, rows,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
    SWAPPED: tl.constexpr,
):  # fmt: skip
    """Compute equations 12 and 14 (or 13 and 15) for one tile of x and one block of features."""
    clear(m, filled, rows, 4 * D)
    pair, t, d = _tile_and_block(x_length, D, TILE, BLOCK_D)
    counts, rows, x_offset, m_offset = places(x, x_length, x_batch_stride, pair, t, D, VECTOR)

    highest = tl.full([TILE], NOTHING, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    aligned = tl.zeros([TILE, BLOCK_D], tl.float32)
    words = tl.zeros([], tl.int32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, _ = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        place, here = _matrix_place(x_longest, y_longest, pair, t, t_y, SWAPPED)
        scores = tl.load(all_scores + place, mask=here, other=0.0)
        scores = tl.where(counts[:, None] & y_counts[None, :], scores, NOTHING)
        risen, known = _risen(highest, scores)
        weights, shrunk = tl.exp(scores - known[:, None]), tl.exp(highest - known)
        total = total * shrunk + tl.sum(weights, 1)
        y_part = load(y.x, y_offset, y_counts, d, D)
        aligned = dot(weights.to(y_part.dtype), y_part, aligned * shrunk[:, None], PRECISION)
        highest, words = risen, words + tl.sum(y_counts.to(tl.int32), 0)

    aligned /= tl.where(words > 0, total, 1.0)[:, None]  # if no word counts, the alignment is zero
    enhance(m, m_offset, counts, rows, d, load(x.x, x_offset, counts, d, D), aligned, D)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward_softmax(
    x, y, x_length, y_length, x_batch_stride, y_batch_stride, x_longest, y_longest, all_scores, grad_weights,
    all_weights, part_before, grad_scores,
    TILE: tl.constexpr, SWAPPED: tl.constexpr,
):  # fmt: skip
    """Compute equation 12 (or 13) for one tile of x, and add its part of the gradient of the scores to ``part_before``.

    The parts of both sides sum to the gradient; for the first side, ``part_before`` is None.
    """
    tiles = tl.cdiv(x_longest, TILE)
    tile, pair = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    t = tile * TILE + tl.arange(0, TILE)
    counts = counting(x, x_length, pair, t)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)

    highest = tl.full([TILE], NOTHING, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    weighted = tl.zeros([TILE], tl.float32)
    words = tl.zeros([], tl.int32)
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        y_counts = counting(y, y_length, pair, t_y)
        both = counts[:, None] & y_counts[None, :]
        place, here = _matrix_place(x_longest, y_longest, pair, t, t_y, SWAPPED)
        scores = tl.where(both, tl.load(all_scores + place, mask=here, other=0.0), NOTHING)
        gradient = tl.where(both, tl.load(grad_weights + place, mask=here, other=0.0), 0.0)
        risen, known = _risen(highest, scores)
        weights, shrunk = tl.exp(scores - known[:, None]), tl.exp(highest - known)
        total = total * shrunk + tl.sum(weights, 1)
        weighted = weighted * shrunk + tl.sum(weights * gradient, 1)
        highest, words = risen, words + tl.sum(y_counts.to(tl.int32), 0)

    any_word = counts & (words > 0)
    highest, total = tl.where(any_word, highest, 0.0), tl.where(any_word, total, 1.0)
    mean = weighted / total  # weighted mean of the weights' gradients, which a softmax subtracts from each
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        both = counts[:, None] & counting(y, y_length, pair, t_y)[None, :]
        place, here = _matrix_place(x_longest, y_longest, pair, t, t_y, SWAPPED)
        scores = tl.where(both, tl.load(all_scores + place, mask=here, other=0.0), NOTHING)
        gradient = tl.where(both, tl.load(grad_weights + place, mask=here, other=0.0), 0.0)
        weights = tl.exp(scores - highest[:, None]) / total[:, None]
        part = weights * (gradient - mean[:, None])
        if part_before is not None:
            part += tl.where(both, tl.load(part_before + place, mask=here, other=0.0), 0.0)
        tl.store(all_weights + place, weights.to(all_weights.dtype.element_ty), mask=here)
        tl.store(grad_scores + place, part.to(grad_scores.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def backward(
    x, y, x_length, y_length, x_batch_stride, y_batch_stride, x_longest, y_longest, grad_m, y_grad_aligned,
    x_weights, y_weights, grad_scores, grad_x, filled, rows,
    D: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
    SWAPPED: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of one tile of x and one block of features: from its own alignment and from y's."""
    clear(grad_x, filled, rows, D)
    pair, t, d = _tile_and_block(x_length, D, TILE, BLOCK_D)
    counts, rows = counting(x, x_length, pair, t), written(x, x_length, pair, t)
    _, grad_x_offset = offsets(x, x_length, x_batch_stride, pair, t, D, VECTOR)

    aligned = tl.zeros([TILE, BLOCK_D], tl.float32)
    gradient = tl.zeros([TILE, BLOCK_D], tl.float32)
    y_end = tl.where(tl.max(counts.to(tl.int32), 0) > 0, end_of(y, y_length, pair), 0)
    for first in range(0, y_end, TILE):
        t_y = first + tl.arange(0, TILE)
        y_counts = counting(y, y_length, pair, t_y)
        y_offset, y_grad_offset = offsets(y, y_length, y_batch_stride, pair, t_y, D, VECTOR)
        both = counts[:, None] & y_counts[None, :]
        place, here = _matrix_place(x_longest, y_longest, pair, t, t_y, SWAPPED)
        of_x = tl.where(both, tl.load(x_weights + place, mask=here, other=0.0), 0.0)
        of_y = tl.where(both, tl.load(y_weights + place, mask=here, other=0.0), 0.0)
        of_scores = tl.where(both, tl.load(grad_scores + place, mask=here, other=0.0), 0.0)
        y_part = load(y.x, y_offset, y_counts, d, D)
        y_grad_part = load(y_grad_aligned, y_grad_offset, y_counts, d, D)
        aligned = dot(of_x, y_part, aligned, PRECISION)
        gradient = dot(of_y, y_grad_part, gradient, PRECISION)
        gradient = dot(of_scores, y_part, gradient, PRECISION)

    gradient += direct_gradient(grad_m, grad_x_offset, counts, d, aligned, D)
    store(grad_x, grad_x_offset, rows, d, tl.where(counts[:, None], gradient, 0.0), D)

"""The weights of a bidirectional LSTM as its products read them, in one kernel instead of up to eight."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import Config, Launch, blocks_in

ROWS, COLUMNS = 4, 512  # elements that a program copies at once


@triton.jit
def pack(
    w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_x, bias, w_h,
    X: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write ``w_x [8H, X]``, ``bias [8H]`` and ``w_h [8H, PITCH]``, whose columns from H on are zero.

    A program has some rows of one direction. The forward direction has the first half of the results' rows.
    """
    first = 0
    if tl.program_id(0) % 2 == 1:
        w_ih, w_hh, b_ih, b_hh = w_ih_r, w_hh_r, b_ih_r, b_hh_r
        first = 4 * H
    row = (tl.program_id(0) // 2).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < 4 * H
    both = tl.load(b_ih + row, mask=there, other=0.0) + tl.load(b_hh + row, mask=there, other=0.0)
    tl.store(bias + first + row, both.to(bias.dtype.element_ty), mask=there)
    _copy(w_ih, w_x, row, first, there, X, X, COLUMNS)
    _copy(w_hh, w_h, row, first, there, H, PITCH, COLUMNS)


@triton.jit
def _copy(x, y, row, first, there, WIDTH: tl.constexpr, PITCH: tl.constexpr, COLUMNS: tl.constexpr):
    """Copy rows of ``x [.., WIDTH]`` to ``y [.., PITCH]``, where they begin at row ``first`` and end with zeros."""
    for column in range(0, PITCH, COLUMNS):
        c = column + tl.arange(0, COLUMNS)
        given = there[:, None] & (c < WIDTH)[None, :]
        value = tl.load(x + row[:, None] * WIDTH + c[None, :], mask=given, other=0.0)
        place = y + (first + row)[:, None] * PITCH + c[None, :]
        tl.store(place, value.to(y.dtype.element_ty), mask=there[:, None] & (c < PITCH)[None, :])


def run(*tensors: Tensor) -> None:
    """Implement ``esim_fast::bilstm_triton_weights``: take the weights, and write ``w_x``, ``bias`` and ``w_h``."""
    if not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
        raise ValueError("all weights and results must be tensors with dimensions")
    *weights, w_x, bias, w_h = tensors
    X, H, pitch = weights[0].shape[-1], weights[1].shape[-1], w_h.shape[-1]
    shapes = [*[(4 * H, X), (4 * H, H), (4 * H,), (4 * H,)] * 2, (8 * H, X), (8 * H,), (2, 4 * H, pitch)]
    dtypes = [torch.float32] * 8 + [w_x.dtype] * 3
    for tensor, shape, dtype in zip(tensors, shapes, dtypes, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != w_x.device:
            found = f"{list(tensor.shape)} in {tensor.dtype} on {tensor.device}"
            raise ValueError(f"expected {list(shape)} in {dtype} on {w_x.device}, got {found}")
    if pitch < H or not w_x.is_floating_point() or not all(x.is_contiguous() for x in (w_x, bias, w_h)):
        raise ValueError(f"expected contiguous results in floating point, with rows of at least {H} for {H} units")
    with torch.cuda.device_of(w_x):
        plan(*(weight.contiguous() for weight in weights), w_x, bias, w_h).start()


def plan(*tensors: Tensor) -> Launch:
    (gates, X), w_h = tensors[0].shape, tensors[-1]
    constants = {"X": X, "H": gates // 4, "PITCH": w_h.shape[-1], "ROWS": ROWS, "COLUMNS": COLUMNS}
    return Launch(pack, 2 * blocks_in(gates, ROWS), tensors, constants, Config(0, COLUMNS, 4, 1).options())

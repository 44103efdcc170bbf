"""Activation, dropout by a counter-based generator, and a cast, in one kernel."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bilstm import tanh
from .runtime import Config, Launch, blocks_in

ROWS, COLUMNS = 32, 64  # elements of a program
ACTIVATIONS = (None, "relu", "tanh")


@triton.jit(do_not_specialize=["layer", "rows"])
def dropout(
    values, x, key, sentence, result, layer, rows,
    D: tl.constexpr, DROP: tl.constexpr, SCALE: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write ``result [N, D]``: dropout of the activation of ``values``.

    With ``x``, ``values`` are instead the gradient of what was computed from ``x``, and ``result`` is the gradient of
    ``x``.
    """
    blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(0) % blocks * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < D)[None, :]
    place = row[:, None] * D + column[None, :]
    value = tl.load(values + place, mask=there, other=0.0).to(tl.float32)
    if x is not None:
        before = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        if ACTIVATION == "relu":
            value = tl.where(before <= 0, 0.0, value)
        elif ACTIVATION == "tanh":
            after = tanh(before)
            value *= 1 - after * after
    elif ACTIVATION == "relu":
        value = tl.where(value <= 0, 0.0, value)
    elif ACTIVATION == "tanh":
        value = tanh(value)
    sharer = row
    if sentence is not None:
        sharer = tl.load(sentence + row, mask=row < rows, other=0)
    # Four columns share a draw of four words.
    group = (first // 4 + tl.arange(0, COLUMNS // 4))[None, :].to(tl.uint32)
    sharer = sharer.to(tl.uint32)[:, None] + tl.zeros_like(group)
    group += tl.zeros_like(sharer)
    step = tl.load(key + 1).to(tl.uint32) + tl.zeros_like(group)
    a, b, c, d = tl.philox(tl.load(key), group, sharer, layer.to(tl.uint32) + tl.zeros_like(group), step)
    word = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    value = tl.where(word >= tl.full([], DROP, tl.uint32), value * SCALE, 0.0)
    tl.store(result + place, value.to(result.dtype.element_ty), mask=there)


def run(
    values: Tensor,
    x: Tensor | None,
    key: Tensor,
    sentence: Tensor | None,
    layer: int,
    drop: int,
    activation: str | None,
    dtype: torch.dtype,
) -> Tensor:
    """Implement ``esim_fast::dropout_triton``."""
    if values.dim() != 2 or (x is not None and x.shape != values.shape):
        raise ValueError(f"values and x must be [N, D], got shape {list(values.shape)}")
    if key.shape != (2,) or key.dtype != torch.int64 or not key.is_contiguous():
        raise ValueError(f"key must be a contiguous int64 [2], got {key.dtype} {list(key.shape)}")
    if sentence is not None and (sentence.shape != values.shape[:1] or sentence.dtype != torch.int64):
        raise ValueError(f"sentence must be int64 [{len(values)}], got {sentence.dtype} {list(sentence.shape)}")
    if any(tensor is not None and tensor.device != values.device for tensor in (x, key, sentence)):
        raise ValueError(f"x, key and sentence must be on {values.device}")
    if activation not in ACTIVATIONS or not 0 <= drop < 2**32:
        raise ValueError(f"expected a known activation and 0 <= drop < 2**32, got {activation!r} and {drop}")
    result = values.new_empty(values.shape, dtype=dtype)
    x, sentence = (None if tensor is None else tensor.contiguous() for tensor in (x, sentence))
    with torch.cuda.device_of(values):
        plan(values.contiguous(), x, key, sentence, result, layer, drop, activation).start()
    return result


def plan(
    values: Tensor,
    x: Tensor | None,
    key: Tensor,
    sentence: Tensor | None,
    result: Tensor,
    layer: int,
    drop: int,
    activation: str | None,
) -> Launch:
    rows, width = values.shape
    constants: dict[str, Any] = {
        "D": width,
        "DROP": drop,
        "SCALE": 2**32 / (2**32 - drop),
        "ACTIVATION": activation,
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
    }
    arguments = values, x, key, sentence, result, layer, rows
    programs = blocks_in(rows, ROWS) * blocks_in(width, COLUMNS)
    return Launch(dropout, programs, arguments, constants, Config(0, COLUMNS, 4, 1).options())

"""The gradient of an embedding: the sum of each word's rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .runtime import Config, Launch, blocks_in

ROWS, COLUMNS = 16, 64  # elements that a program adds at once


@triton.jit(do_not_specialize=["rows", "words"])
def embedding_gradient(
    table, grad, tokens, order, first, rows, words, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Add the rows of ``grad [N, D]`` to the rows of their words in ``table``.

    A program adds some columns of one word. Most programs have no word, because the grid has one for each row.
    """
    blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    run = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    start, end = tl.maximum(tl.load(first + run), 0), tl.minimum(tl.load(first + run + 1), rows)
    if start < end:
        total = tl.zeros([COLUMNS], tl.float32)
        for n in range(start, end, ROWS):
            place = n + tl.arange(0, ROWS)
            row = tl.load(order + place, mask=place < end, other=-1)
            there = ((row >= 0) & (row < rows))[:, None] & (column < D)[None, :]
            total += tl.sum(tl.load(grad + row[:, None] * D + column[None, :], mask=there, other=0.0), 0)
        row = tl.load(order + start)
        word = tl.load(tokens + row, mask=(row >= 0) & (row < rows), other=-1)
        if (word >= 0) & (word < words):
            to = table + word * D + column
            tl.store(to, tl.load(to, mask=column < D, other=0.0) + total, mask=column < D)


def run(table: Tensor, grad: Tensor, tokens: Tensor, order: Tensor, first: Tensor) -> None:
    """Implement ``esim_fast::embedding_gradient_triton``. The kernel bounds words and rows itself."""
    if table.dim() != 2 or table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(f"table must be contiguous float32 [V, D], got {table.dtype} {list(table.shape)}")
    if grad.dim() != 2 or grad.shape[1] != table.shape[1] or grad.dtype != torch.float32:
        raise ValueError(f"grad must be float32 [N, {table.shape[1]}], got {grad.dtype} {list(grad.shape)}")
    count = len(grad)
    for name, numbers, size in (("tokens", tokens, count), ("order", order, count), ("first", first, count + 1)):
        if numbers.shape != (size,) or numbers.dtype != torch.int64 or not numbers.is_contiguous():
            found = f"{numbers.dtype} {list(numbers.shape)}"
            raise ValueError(f"{name} must be contiguous int64 [{size}], got {found}")
    if any(tensor.device != table.device for tensor in (grad, tokens, order, first)):
        raise ValueError(f"grad, tokens, order and first must be on {table.device}")
    with torch.cuda.device_of(table):
        plan(table, grad.contiguous(), tokens, order, first).start()


def plan(table: Tensor, grad: Tensor, tokens: Tensor, order: Tensor, first: Tensor) -> Launch:
    rows, width = grad.shape
    constants = {"D": width, "ROWS": ROWS, "COLUMNS": COLUMNS}
    arguments = table, grad, tokens, order, first, rows, len(table)
    programs = rows * blocks_in(width, COLUMNS)
    return Launch(embedding_gradient, programs, arguments, constants, Config(0, COLUMNS, 4, 1).options())

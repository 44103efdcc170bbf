"""The gradient of an embedding, without a sort on the GPU: the host knows the words of a batch and sorts them."""

import numpy as np
import torch
from torch import Tensor

from .triton import runtime


def occurrences(tokens: Tensor, padding_idx: int | None) -> tuple[Tensor, Tensor]:
    """Find where each word of a batch occurs.

    Args:
        tokens: int64 ``[N]`` on the CPU, word ids.
        padding_idx: the id of a word that is left out, or None.

    Returns:
        ``(order, first)``: int64 ``[N]``, the rows sorted by word and then by place, followed by zeros; and int64
        ``[N + 1]``, where each word's rows begin in ``order``, followed by where the last word's rows end.
    """
    ids = tokens.numpy()
    # By the lower and then by the upper 16 bits of ids, because NumPy sorts numbers of 16 bits in linear time.
    rows = np.argsort(ids.astype(np.uint16), kind="stable")
    rows = rows[np.argsort((ids >> 16).astype(np.uint16)[rows], kind="stable")]
    rows = rows[ids[rows] != padding_idx] if padding_idx is not None else rows
    starts = np.flatnonzero(np.diff(ids[rows], prepend=-1))
    order, first = np.zeros(len(ids), np.int64), np.full(len(ids) + 1, len(rows))
    order[: len(rows)], first[: len(starts)] = rows, starts
    return torch.from_numpy(order), torch.from_numpy(first)


def add_gradient(
    table: Tensor, grad: Tensor, tokens: Tensor, order: Tensor, first: Tensor, *, backend: str | None = None
) -> None:
    """Add the gradient of each word's vector to the word's row of ``table``, in place.

    A word's rows are added in a fixed order, so results are the same to the bit every time.

    Args:
        table: float32 ``[V, D]``, contiguous.
        grad: float32 ``[N, D]``, the gradients of the batch's vectors.
        tokens: int64 ``[N]``, the batch's words.
        order: from ``occurrences``, as is ``first``.
        first: where each word's rows begin in ``order``.
        backend: ``"triton"``, ``"reference"`` or None, which is Triton on a GPU.
    """
    if backend == "triton" or (backend is None and table.is_cuda):
        torch.ops.esim_fast.embedding_gradient_triton(table, grad, tokens, order, first)
    else:
        rows = order[: first[-1]]
        table.index_add_(0, tokens[rows], grad[rows])


if runtime.AVAILABLE:
    from .triton import embedding as kernel  # imports Triton, so only if it is available

    runtime.register(
        "embedding_gradient_triton(Tensor(a!) table, Tensor grad, Tensor tokens, Tensor order, Tensor first) -> ()",
        kernel.run,
        lambda table, grad, tokens, order, first: None,
    )

"""Masked average and max pooling: C++ on the CPU, CUDA on NVIDIA GPUs, plain PyTorch elsewhere.

The kernels are csrc/masked_pool_cpu.cpp and csrc/masked_pool_cuda.cu; their schemas are in csrc/ops.cpp.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..packed import Rows
from . import reference
from .backends import BACKENDS, choose
from .checks import tokens_of
from .derivatives import apply, first_derivative


def masked_pool(
    x: Tensor,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    mask: Tensor | None = None,
    rows: Rows | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute average and max pooling over the tokens of each sentence (Chen et al. 2017, equations 18-20).

    For the tokens ``x_b`` of sentence b alone, equivalent to:

        v[b] = torch.cat([x_b.mean(0), x_b.max(0).values])

    Args:
        x: ``[B, L, D]``, fp32, fp16, bf16 or fp64, any strides; or ``[N, D]`` with ``rows``.
        lengths: integers ``[B]``, on any device: the first ``lengths[b]`` tokens count.
        mask: ``[B, L]``, bool or 0/1 of any dtype, any pattern: a token counts if its value is not 0. With ``rows`` it
            narrows them.
        rows: where the tokens of a row-addressed (concatenated, packed) ``x`` lie.
        backend: ``"cpp"`` (kernels for CPUs), ``"cuda"`` (kernels for NVIDIA GPUs), ``"reference"`` (plain PyTorch) or
            None, the best one for ``x``.

    Returns:
        ``[B, 2D]``, averages followed by maxima, in the dtype of ``x``. Sums use fp32 (fp64 for fp64). A sentence of
        length 0 gives zeros. NaN propagates. If several values are the maximum, the first one gets the gradient, as in
        ``torch.max``. Second derivatives of the kernels are not implemented and raise RuntimeError.

    Raises:
        TypeError: a dtype or type is wrong.
        ValueError: shapes or devices disagree, lengths lie outside 0..L (checked on the CPU), or ``backend`` cannot run
            here.
    """
    lengths, mask, _ = tokens_of("x", x, lengths, mask, rows)
    if choose(backend, "masked_pool", BACKENDS["masked_pool"], x) == "reference":
        return reference.masked_pool(x, lengths, mask=mask, rows=rows)
    start, step, filled = None, None, None
    if rows is not None:
        start, step = rows.start.contiguous(), rows.step[: rows.max_length].contiguous()
        lengths, filled = rows.lengths.contiguous(), rows.filled
    v, _argmax, _count = apply(_MaskedPool, x, filled, start, step, lengths, mask)
    return v


class _MaskedPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, filled, start, step, lengths, mask):
        return torch.ops.esim_fast.masked_pool(x, start, step, lengths, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *addresses = inputs
        _, argmax, count = output
        ctx.mark_non_differentiable(argmax, count)
        ctx.set_materialize_grads(False)  # indices have no gradients, so zeros for them would be wasted
        ctx.save_for_backward(argmax, count, *addresses)
        ctx.rows = x.shape[-2]

    @staticmethod
    def backward(ctx, grad_v, _grad_argmax, _grad_count):
        if grad_v is None:
            return (None,) * 6
        argmax, count, filled, *addresses = ctx.saved_tensors
        operator = partial(torch.ops.esim_fast.masked_pool_backward, filled=filled)
        grad_x = first_derivative("masked_pool", operator, grad_v, argmax, count, *addresses, ctx.rows)
        return grad_x, *[None] * 5


@torch.library.register_fake("esim_fast::masked_pool")
def _masked_pool_fake(x, start, step, lengths, mask):
    shape = (x if start is None else start).shape[0], x.shape[-1]
    argmax = x.new_empty(shape, dtype=torch.int32)
    return x.new_empty(shape[0], 2 * shape[1]), argmax, argmax.new_empty(shape[0])


@torch.library.register_fake("esim_fast::masked_pool_backward")
def _masked_pool_backward_fake(grad_v, argmax, count, start, step, lengths, mask, rows, *, filled=None):
    width = argmax.shape[1]
    return grad_v.new_empty(rows, width) if start is not None else grad_v.new_empty(argmax.shape[0], rows, width)

"""Matrix products on the CPU by oneDNN, which PyTorch ships but asks for lower precisions only.

PyTorch multiplies fp32 matrices with MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN uses AVX-512
there too. On an AMD EPYC (Zen 5, 2 cores, torch 2.13.0) it is 2.1 times as fast at the products of an LSTM and of the
projection. It takes transposed operands as they are.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .derivatives import apply

_LEAST_ROWS = 4  # below, a product is limited by reading the weights, and MKL has less to do before it begins
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    # A compiler chooses by itself, and takes weights from oneDNN only if they are constants.
    if torch.compiler.is_compiling() or not (_ONEDNN and x.device.type == "cpu" and torch.backends.mkldnn.enabled):
        return False
    return x.dtype == weight.dtype == torch.float32 and min(len(x), len(weight)) >= _LEAST_ROWS


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [M, K] @ weight[N, K].T + bias [N]``, for which nothing is kept: autograd does not see it."""
    if _for_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad [M, N].T @ x [M, K]``. oneDNN wants the first operand contiguous: the smaller one is copied for it."""
    if grad.shape[1] <= x.shape[1]:
        return product(grad.t(), x.t())
    return product(x.t(), grad.t()).t()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.nn.functional.linear`` of ``x [M, K]``, with its gradients."""
    if _for_onednn(x, weight) and not torch.is_autocast_enabled("cpu"):
        return apply(_Linear, x, weight, bias)
    return functional.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias):
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this
            return grad @ weight, grad.t() @ x, grad.sum(0)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs_x else None,
            weight_gradient(grad, x) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )

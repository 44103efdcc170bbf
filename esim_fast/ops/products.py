"""Matrix products on the CPU: MKL, which PyTorch uses, or oneDNN, which PyTorch ships but does not use for fp32.

On processors not made by Intel, MKL uses only AVX2, while oneDNN uses AVX-512 as well. On an AMD EPYC (Zen 5, 2 cores,
torch 2.13.0) oneDNN is 2.1 times as fast for the products of an LSTM and of the projection, and it takes transposed
operands without copies. On Intel's processors MKL is equally fast for these and faster for their gradients.

Weights that do not change are reordered for oneDNN once, which speeds up products of few rows, such as for a single
pair.
"""

from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from .checks import autocast_dtype
from .derivatives import apply, recorded
from .packing import packed


def _is_intel() -> bool:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return "GenuineIntel" in file.read(4096)  # the first core suffices, and reading all is slow on big machines
    except OSError:
        return False


_LEAST_ROWS = 4  # with fewer rows, reading the weights is the bottleneck and MKL has less overhead
_LARGE = 2**16  # elements of a reordered weight: reading it takes longer than calling oneDNN, even for one row
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_BF16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_MKL = torch.backends.mkl.is_available() and _is_intel()


def _onednn_takes(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    # Compilers select products themselves, and support oneDNN's weights only as constants.
    if torch.compiler.is_compiling() or not (_ONEDNN and x.device.type == "cpu" and torch.backends.mkldnn.enabled):
        return False
    return weight.dtype == torch.float32 and (dtype == torch.float32 or (dtype == torch.bfloat16 and _BF16))


def _is_large(x: Tensor, weight: Tensor) -> bool:
    return min(x.shape[0], weight.shape[0]) >= _LEAST_ROWS


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    return not _MKL and x.dtype == torch.float32 and _is_large(x, weight) and _onednn_takes(x, weight, x.dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x [M, K] @ weight[N, K].T + bias [N]`` without autograd and without caching."""
    return onednn_product(x, weight, bias) if _for_onednn(x, weight) else functional.linear(x, weight, bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``product`` with oneDNN. The weight may come from ``ordered``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def can_order(x: Tensor, *parameters: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``x`` may be multiplied, in this dtype, by a cached weight from ``ordered`` or ``ordered_bf16``.

    The first parameter is the weight; the others are parameters that the cached value also depends on.
    """
    return _onednn_takes(x, parameters[0], dtype) and not recorded(x, *parameters)


def ordered(weight: Tensor) -> Tensor:
    """Reorder a weight ``[N, K]`` as oneDNN reads it fastest, for any number of rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def ordered_bf16(weight: Tensor) -> Tensor:
    """Convert a weight to bf16 and reorder it."""
    return ordered(weight.bfloat16())


def ordered_linear(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder the weight of a linear layer, and copy its bias."""
    return ordered(weight), bias.detach().clone()


def ordered_linear_bf16(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return ordered_bf16(weight), bias.bfloat16()


def for_weight_gradients(x: Tensor) -> Tensor:
    """Return ``x`` in the layout that ``weight_gradient`` reads fastest, for several calls."""
    return x.t().contiguous().t() if _for_onednn(x.t(), x.t()) else x


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute ``grad [M, N].T @ x [M, K]``."""
    if not _for_onednn(grad.t(), x.t()):
        return grad.t() @ x
    # oneDNN needs a contiguous first operand, so make it the smaller one, which is cheaper to copy.
    if grad.shape[1] <= x.shape[1]:
        return product(grad.t(), x.t())
    return product(x.t(), grad.t()).t()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``torch.nn.functional.linear`` of ``x [M, K]``, with gradients."""
    dtype = autocast_dtype(x.device) or torch.float32
    fits = x.dtype in (torch.float32, dtype) and (_is_large(x, weight) or weight.numel() >= _LARGE)
    if fits and can_order(x, weight, bias, dtype=dtype):
        kept = packed(ordered_linear_bf16 if dtype == torch.bfloat16 else ordered_linear, weight, bias)
        if kept is not None:
            return onednn_product(x.to(dtype), *kept)
    use_onednn = dtype == torch.float32 and _for_onednn(x, weight)
    return apply(_Linear, x, weight, bias) if use_onednn else functional.linear(x, weight, bias)


def bf16_is_slower() -> bool:
    """Whether bf16 slows down training on this processor, judged by timing one product with its conversions."""
    x, weight = torch.randn(700, 300), torch.randn(1200, 300)

    def seconds(dtype: torch.dtype) -> float:
        begin = perf_counter()
        product(x.to(dtype), weight.to(dtype)).float()
        return perf_counter() - begin

    times = {dtype: min(seconds(dtype) for _ in range(6)) for dtype in (torch.float32, torch.bfloat16)}
    return times[torch.bfloat16] > times[torch.float32]


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
        if torch.is_grad_enabled():  # double backward needs differentiable results
            return grad @ weight, grad.t() @ x, grad.sum(0)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs_x else None,
            weight_gradient(grad, x) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )

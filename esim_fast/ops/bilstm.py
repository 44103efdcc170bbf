"""A bidirectional LSTM over packed sentences: C++ on the CPU, cuDNN on NVIDIA GPUs.

The kernel is csrc/bilstm_cpu.cpp, its schema csrc/ops.cpp. It does what has to go step by step; the products with the
input, and those that give the weights' gradients, are one for all tokens.
"""

import contextlib
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .checks import check_backend, transforming
from .derivatives import first_derivative
from .products import product, weight_gradient


def bilstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor, *, backend: str | None = None) -> Tensor:
    """The states of both directions at every token (Chen et al. 2017, equations 1 and 2).

    Equivalent to::

        lstm(PackedSequence(x, batch_sizes))[0].data

    Args:
        lstm: bidirectional. The kernel serves those of one layer with biases and without projections or hooks.
        x: ``[N, input_size]``, the rows of packed sentences: sorted by length and time-major.
        batch_sizes: int64 ``[T]`` on the CPU, how many sentences reach each time step.
        backend: "cpp" (the kernel: CPU tensors and parameters in fp32), "reference" (``lstm`` itself) or None, the best
            one for ``x``.

    Returns:
        ``[N, 2 * hidden_size]``, the forward and the backward state of each token, in the dtype of ``x``, or autocast's
        under autocast. The kernel keeps its states in fp32 then, and so does cuDNN under bf16 autocast, where it
        multiplies in TF32 if ``torch.backends.cudnn`` lets it. The kernel's second derivatives are not implemented and
        raise.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: ``x`` or ``batch_sizes`` has the wrong shape, or ``backend`` cannot run here.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dim() != 2 or x.shape[1] != lstm.input_size:
        raise ValueError(f"x must be [N, {lstm.input_size}], got shape {list(x.shape)}")
    if batch_sizes.device.type == "cpu" and not torch.compiler.is_compiling() and int(batch_sizes.sum()) != len(x):
        raise ValueError(f"batch_sizes sum up to {int(batch_sizes.sum())}, but x has {len(x)} rows")
    if len(x) == 0:  # every sentence is empty
        return x.new_zeros(0, 2 * lstm.hidden_size)
    autocast = torch.is_autocast_enabled(x.device.type)
    fp32 = x.dtype == torch.float32 or autocast
    possible = ("cpp", "reference") if x.device.type == "cpu" and _is_plain_fp32(lstm) and fp32 else ("reference",)
    check_backend(backend, "bilstm", possible, f"{x.device} in {x.dtype}")
    if (backend or possible[0]) == "reference":
        return _reference(lstm, x, batch_sizes)
    dtype = torch.get_autocast_dtype("cpu") if autocast else torch.float32
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(lstm, f"{name}_l0{direction}") for direction in ("", "_reverse") for name in names]
    with torch.autocast("cpu", enabled=False):
        x = x.to(dtype)
        if transforming() or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))):
            y, *_ = _BiLSTM.apply(x, batch_sizes, *weights)
        else:
            y, *_ = _forward(x, batch_sizes, *weights)
        return y.to(dtype)


def _reference(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """``lstm`` itself, but for what cuDNN would do otherwise on a GPU."""
    device = x.device.type
    if device == "cpu" or not _is_plain_fp32(lstm):
        return lstm(PackedSequence(x, batch_sizes))[0].data
    bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    # Autocast has one lower precision for cuDNN's LSTMs, fp16, whatever it was asked for: gradients would underflow.
    with torch.autocast(device, enabled=False) if bf16 else contextlib.nullcontext():
        y = _in_training_mode(lstm, x.float() if bf16 else x, batch_sizes)
    return y.bfloat16() if bf16 else y


def _in_training_mode(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """What ``lstm`` computes, with gradients in evaluation mode, too, where cuDNN has none.

    The mode is that of the dropout between layers, and there is one layer.
    """
    if lstm.training or not torch.is_grad_enabled():
        return lstm(PackedSequence(x, batch_sizes))[0].data
    zeros = x.new_zeros(2, int(batch_sizes[0]), lstm.hidden_size)
    weights = cast(list[Tensor], lstm._flat_weights)
    return torch.lstm(x, batch_sizes, (zeros, zeros), weights, True, 1, 0.0, True, True)[0]


def _is_plain_fp32(lstm: nn.Module) -> bool:
    """Whether all that ``lstm`` does is in its parameters: it may have been quantised, or given hooks."""
    if type(lstm) is not nn.LSTM or lstm.weight_ih_l0.dtype != torch.float32:
        return False
    hooks = lstm._forward_hooks, lstm._forward_pre_hooks, lstm._backward_hooks, lstm._backward_pre_hooks
    return lstm.num_layers == 1 and lstm.bidirectional and lstm.bias and lstm.proj_size == 0 and not any(hooks)


def _forward(x, batch_sizes, w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r):
    """y and c ``[N, 2H]``, and the gates of each direction ``[N, 4H]``."""
    # The kernel writes the gates over the products with the input.
    gates = product(x, w_ih.to(x.dtype), (b_ih + b_hh).to(x.dtype)).float()
    gates_r = product(x, w_ih_r.to(x.dtype), (b_ih_r + b_hh_r).to(x.dtype)).float()
    y, c = torch.ops.esim_fast.bilstm(gates, gates_r, w_hh.contiguous(), w_hh_r.contiguous(), batch_sizes)
    return y, c, gates, gates_r


def _backward(grad_y, x, batch_sizes, y, c, gates, gates_r, w_ih, w_hh, w_ih_r, w_hh_r, x_needed):
    """The gradients of x (None if it is not needed) and of each direction's four parameters."""
    grad_gates, grad_gates_r, previous = torch.ops.esim_fast.bilstm_backward(
        grad_y, y, c, gates, gates_r, w_hh.contiguous(), w_hh_r.contiguous(), batch_sizes
    )
    H = w_hh.shape[1]
    grad_x, gradients = None, []
    x = x.t().contiguous().t()  # as the weights' gradients want it, once for both
    directions = (grad_gates, previous[:, :H], w_ih), (grad_gates_r, previous[:, H:], w_ih_r)
    for grad, before, weight in directions:
        grad_b = grad.sum(0)
        grad = grad.to(x.dtype)
        if x_needed:
            part = product(grad, weight.to(x.dtype).t())
            grad_x = part if grad_x is None else grad_x.add_(part)
        grad_w_ih, grad_w_hh = (weight_gradient(grad, of.to(x.dtype)).float() for of in (x, before))
        gradients += [grad_w_ih, grad_w_hh, grad_b, grad_b.clone()]  # people scale gradients in place
    return grad_x, *gradients


class _BiLSTM(torch.autograd.Function):
    # Written out: torch.compile counts the parameters to tell whether the first is a context.
    @staticmethod
    def forward(x, batch_sizes, w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r):
        return _forward(x, batch_sizes, w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, batch_sizes, w_ih, w_hh, _, _, w_ih_r, w_hh_r, _, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, *output, w_ih, w_hh, w_ih_r, w_hh_r)

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 10
        arguments = grad_y, *ctx.saved_tensors, ctx.needs_input_grad[0]
        grad_x, *gradients = first_derivative("bilstm", _backward, *arguments)
        return grad_x, None, *gradients


@torch.library.register_fake("esim_fast::bilstm")
def _bilstm_fake(gates, gates_reverse, weight, weight_reverse, batch_sizes):
    rows, hidden = gates.shape[0], weight.shape[1]
    return gates.new_empty(rows, 2 * hidden), gates.new_empty(rows, 2 * hidden)


@torch.library.register_fake("esim_fast::bilstm_backward")
def _bilstm_backward_fake(grad_y, y, c, gates, gates_reverse, weight, weight_reverse, batch_sizes):
    return torch.empty_like(gates), torch.empty_like(gates), torch.empty_like(y)

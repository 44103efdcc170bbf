"""A packed BiLSTM whose recurrence is one CUDA kernel that keeps the weights on chip, csrc/bilstm_cuda.cu.

The gates of a unit lie side by side, so products with the input are ``[N, 2, H, 4]``: direction, unit, gate.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .backends import runs_on
from .checks import constant_when_compiled
from .derivatives import first_derivative


@constant_when_compiled
def can_run(device: torch.device, dtype: torch.dtype, hidden_size: int) -> bool:
    """Whether the kernels support this many units in ``dtype``, and the device has room for them.

    They take up to 512 units in half precision from compute capability 8.0, and up to 320 in fp32 from 9.0 with 227 KB
    of shared memory. A part of a GPU (MIG, MPS) may have room for less.
    """
    if not runs_on("cuda", device):
        return False
    return torch.ops.esim_fast.bilstm_cuda_fits(device.index or 0, dtype != torch.float32, hidden_size)


def shut(gates: Tensor, padding: Tensor | None) -> None:
    """Keep the state at zero in padding, where the backward direction starts.

    Closed gates also make the gradients there zero, because each has such a gate as a factor.
    """
    if padding is not None:
        gates.masked_fill_(padding[:, None], -torch.inf)


class PersistentBiLSTM(torch.autograd.Function):
    """Return y, c and the states before each step, ``[N, 2H]``, the gates ``[N, 8H]``, and the input's weights."""

    @staticmethod
    def forward(x, w_ih, w_hh, b_ih, b_hh, w_ih_r, w_hh_r, b_ih_r, b_hh_r, first_row, padding, sentences, tf32):
        H = w_hh.shape[1]
        by_unit = [weight.view(4, H, -1).transpose(0, 1) for weight in (w_ih, w_ih_r)]
        w_x = torch.stack(by_unit, out=x.new_empty(2, H, 4, x.shape[1])).view(8 * H, -1)
        bias = x.new_empty(2, H, 4)
        for of_direction, *both in zip(bias, (b_ih, b_ih_r), (b_hh, b_hh_r), strict=True):
            torch.add(*(part.view(4, H).t() for part in both), out=of_direction)
        gates = functional.linear(x, w_x, bias.view(-1))
        shut(gates[:, 4 * H :], padding)
        weights = w_hh.contiguous(), w_hh_r.contiguous()
        y, c, previous = torch.ops.esim_fast.bilstm_cuda(gates, *weights, first_row, sentences, tf32)
        return y, c, previous, gates, w_x

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, w_hh, _, _, _, w_hh_r, _, _, first_row, _, *ctx.options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:], w_hh, w_hh_r, first_row)

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return (None,) * 13
        arguments = grad_y, *ctx.saved_tensors, *ctx.options, ctx.needs_input_grad[0]
        grad_x, *gradients = first_derivative("bilstm", _backward, *arguments)
        return grad_x, *gradients, None, None, None, None


def _backward(grad_y, x, c, previous, gates, w_x, w_hh, w_hh_r, first_row, sentences, tf32, x_needed):
    """Return the gradients of x (None if not needed) and of each direction's four parameters."""
    H = w_hh.shape[1]
    weights = w_hh.contiguous(), w_hh_r.contiguous()
    grad_gates = torch.ops.esim_fast.bilstm_cuda_backward(grad_y, c, gates, *weights, first_row, sentences, tf32)
    of_directions = grad_gates.view(-1, 2, 4 * H).permute(1, 2, 0)
    grad_w_ih = _by_gate(grad_gates.t() @ x, H)
    grad_w_hh = _by_gate((of_directions @ previous.view(-1, 2, H).transpose(0, 1)).flatten(0, 1), H)
    grad_b = _by_gate(grad_gates.sum(0, dtype=torch.float32), H)
    grad_b_hh = grad_b.clone()  # gradients may be scaled in place
    gradients = []
    for direction in (0, 1):
        gradients += [grad_w_ih[direction], grad_w_hh[direction], grad_b[direction], grad_b_hh[direction]]
    return grad_gates @ w_x if x_needed else None, *gradients


def _by_gate(grad: Tensor, H: int) -> Tensor:
    """Return a gradient ``[8H, ...]``, whose rows are laid out ``[2, H, 4]``, as ``[2, 4H, ...]`` in fp32."""
    of_units = grad.view(2, H, 4, *grad.shape[1:]).transpose(1, 2)
    return grad.new_empty(of_units.shape, dtype=torch.float32).copy_(of_units).flatten(1, 2)


@torch.library.register_fake("esim_fast::bilstm_cuda")
def _fake(gates, weight, *_):
    y = gates.new_empty(gates.shape[0], 2 * weight.shape[1])
    return y, torch.empty_like(y, dtype=torch.float32), torch.empty_like(y)


@torch.library.register_fake("esim_fast::bilstm_cuda_backward")
def _backward_fake(grad_y, c, gates, *_):
    return torch.empty_like(gates)

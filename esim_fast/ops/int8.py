"""Inference in int8 on CPUs with VNNI: LSTMs and linear layers with weights and activations of eight bits.

Weights are quantized once for each row of theirs, activations for each token as they come, both symmetrically:
``x ≈ scale * q`` with integers ``q`` in -127..127 and ``scale = max |x| / 127`` of a row. Sums over products are exact;
gates, cells' states and everything between the layers are fp32. Products of all words are oneDNN's, the recurrence is
csrc/int8_cpu.cpp.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .packing import can_keep, packed
from .reference import quantized_rows

# Lanes of the processor's vectors, 0 if it has no VNNI.
LANES = torch.ops.esim_fast.int8_lanes() if torch.backends.mkldnn.is_available() else 0
_GATES, _TERMS = 4, 4  # terms: bytes that one instruction multiplies and adds


class _Weight(NamedTuple):
    """A quantized matrix ``[N, K]`` in oneDNN's form, which multiplies ``[M, K]`` to ``[M, N]``."""

    onednn: Tensor
    scale: Tensor  # [N]
    zero_point: Tensor  # [N], zeros

    def product(self, x: Tensor) -> Tensor:
        """``x`` int8 ``[M, K]`` to float32 ``[M, N]``."""
        return torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, self.onednn, self.scale, self.zero_point, None, 1.0, 0, torch.float32, "none", [], ""
        )


class _LSTM(NamedTuple):
    """Both directions of an LSTM, their units in blocks of one vector: ``[2, blocks, 4 gates, LANES]``."""

    input: _Weight
    bias: Tensor
    weight: Tensor  # int8 [2, blocks, terms, 4 gates, LANES, 4]
    scale: Tensor
    offset: Tensor


def _weight(weight: Tensor, scale: Tensor) -> _Weight:
    onednn = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return _Weight(onednn, scale, torch.zeros(len(scale), dtype=torch.int32))


def _quantized_linear(weight: Tensor) -> _Weight:
    return _weight(*quantized_rows(weight))


def _in_blocks(x: Tensor) -> Tensor:
    """``[4H, …]`` to ``[blocks, 4, LANES, …]``, with zeros for the units that fill up the last block."""
    H = len(x) // _GATES
    blocks = -(-H // LANES)
    x = x.view(_GATES, H, *x.shape[1:])
    padded = x.new_zeros(_GATES, blocks * LANES, *x.shape[2:])
    padded[:, :H] = x
    return padded.view(_GATES, blocks, LANES, *x.shape[2:]).transpose(0, 1)


def _quantized_lstm(*parameters: Tensor) -> _LSTM:
    """Of both directions' input weights, recurrent weights and two biases."""
    inputs, biases, recurrent = [], [], []
    for w_ih, w_hh, b_ih, b_hh in (parameters[:4], parameters[4:]):
        inputs.append([_in_blocks(part) for part in quantized_rows(w_ih)])
        biases.append(_in_blocks(b_ih + b_hh))
        weight, scale = quantized_rows(w_hh)
        offset = weight.sum(1, dtype=torch.int32) * 128  # the kernel takes activations without a sign
        terms = -(-weight.shape[1] // _TERMS)
        weight = functional.pad(weight, (0, terms * _TERMS - weight.shape[1])).unflatten(1, (terms, _TERMS))
        recurrent.append([_in_blocks(weight).permute(0, 3, 1, 2, 4), _in_blocks(scale), _in_blocks(offset)])
    weight, scale = (torch.stack(parts) for parts in zip(*inputs, strict=True))
    parts = [torch.stack(parts).contiguous() for parts in zip(*recurrent, strict=True)]
    return _LSTM(_weight(weight.flatten(0, 3), scale.flatten()), torch.stack(biases), *parts)


def _made(make: Callable[..., Any], *parameters: Tensor) -> Any:
    return packed(make, *parameters) if can_keep(*parameters) else make(*parameters)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` with ``x [N, K]``, quantized: float32."""
    if len(x) == 0:
        return x.new_zeros(0, layer.out_features)
    weight = _made(_quantized_linear, layer.weight)
    q, scale = torch.ops.esim_fast.quantize_rows(x)
    return torch.addcmul(layer.bias, weight.product(q), scale[:, None])


def bilstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """As :func:`esim_fast.ops.bilstm`, quantized: float32 ``[N, 2H]``."""
    if len(x) == 0:
        return x.new_zeros(0, 2 * lstm.hidden_size)
    weights = _made(_quantized_lstm, *(weight for direction in lstm.all_weights for weight in direction))
    q, scale = torch.ops.esim_fast.quantize_rows(x)
    gates = weights.input.product(q).view(len(x), *weights.bias.shape)
    return torch.ops.esim_fast.bilstm_int8(gates, scale, *weights[1:], lstm.hidden_size, batch_sizes)

"""LSTMs and linear layers in int8, for inference on CPUs with VNNI.

Weights are quantized once, per row, and activations per token as they arrive. Both are symmetric: ``x ≈ scale * q``
with integers ``q`` in -127..127 and ``scale = max |x| / 127`` of a row. Activations are stored as ``q + 128``, because
VNNI multiplies unsigned bytes by signed ones. Sums of products are exact. Gates, cell states and everything between the
layers are fp32. Products of many rows use oneDNN, those of few rows csrc/int8_products_cpu.cpp, and the recurrence
csrc/bilstm_int8_cpu.cpp.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .packing import packed
from .reference import quantized_rows

# Lanes of the processor's vectors, or 0 without VNNI.
LANES = torch.ops.esim_fast.int8_lanes() if torch.backends.mkldnn.is_available() else 0
_GATES, _TERMS, _VECTORS = 4, 4, 4  # terms: bytes that one instruction multiplies and adds; vectors of a block
_ZERO_POINT = 128  # of activations
# With more rows, the 20 to 30 us that a call of oneDNN costs no longer matter. With AMX it multiplies faster, so its
# limit is an estimate.
_FEW_ROWS = 24 if torch.cpu._is_amx_tile_supported() else 64
_MOST_TERMS = 2**16  # of our kernel's sums


class _Weight(NamedTuple):
    """A quantized matrix ``[N, K]``, stored twice: in oneDNN's order and in that of our kernel."""

    onednn: Tensor
    scale: Tensor  # [N]
    zero_point: Tensor  # [N], zeros
    blocks: Tensor  # int8 [blocks, terms, 4 vectors, LANES, 4]
    offset: Tensor  # int32 [blocks, 4 vectors, LANES]

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize ``x``, float32 ``[M, K]``, and return its product ``[M, N]``, not yet scaled by the second result,
        ``[M]``.
        """
        if x.shape[0] <= _FEW_ROWS and x.shape[1] <= _MOST_TERMS:
            return torch.ops.esim_fast.int8_products(x, self.blocks, self.scale, self.offset)
        q, scale = torch.ops.esim_fast.quantize_rows(x)
        # For signed activations, oneDNN has fast code only for processors with AMX.
        product = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, _ZERO_POINT, self.onednn, self.scale, self.zero_point, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product, scale


class _LSTM(NamedTuple):
    """Both directions of an LSTM, with units in blocks of one vector: ``[2, blocks, 4 gates, LANES]``."""

    input: _Weight
    bias: Tensor
    weight: Tensor  # int8 [2, blocks, terms, 4 gates, LANES, 4]
    scale: Tensor
    offset: Tensor


def _weight(weight: Tensor, scale: Tensor) -> _Weight:
    onednn = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return _Weight(onednn, scale, torch.zeros(len(scale), dtype=torch.int32), *_in_terms(weight))


def _in_terms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 ``[N, K]`` as our kernels read it, and the offsets that correct for unsigned activations."""
    N, K = weight.shape
    blocks, terms = -(-N // (_VECTORS * LANES)), -(-K // _TERMS)
    weight = functional.pad(weight, (0, terms * _TERMS - K, 0, blocks * _VECTORS * LANES - N))
    weight = weight.view(blocks, _VECTORS, LANES, terms, _TERMS)
    offset = weight.sum((3, 4), dtype=torch.int32) * _ZERO_POINT
    return weight.permute(0, 3, 1, 2, 4).contiguous(), offset


def _quantized_linear(weight: Tensor) -> _Weight:
    return _weight(*quantized_rows(weight))


def _in_blocks(x: Tensor) -> Tensor:
    """Reshape ``[4H, …]`` to ``[blocks, 4, LANES, …]``, padding the last block with zeros."""
    H = len(x) // _GATES
    blocks = -(-H // LANES)
    x = x.view(_GATES, H, *x.shape[1:])
    padded = x.new_zeros(_GATES, blocks * LANES, *x.shape[2:])
    padded[:, :H] = x
    return padded.view(_GATES, blocks, LANES, *x.shape[2:]).transpose(0, 1)


def _quantized_lstm(*parameters: Tensor) -> _LSTM:
    """Quantize input weights, recurrent weights and two biases of each direction."""
    inputs, biases, recurrent = [], [], []
    for w_ih, w_hh, b_ih, b_hh in (parameters[:4], parameters[4:]):
        inputs.append([_in_blocks(part) for part in quantized_rows(w_ih)])
        biases.append(_in_blocks(b_ih + b_hh))
        weight, scale = (_in_blocks(part) for part in quantized_rows(w_hh))
        weight, offset = _in_terms(weight.flatten(0, 2))
        recurrent.append([weight, scale, offset])
    weight, scale = (torch.stack(parts) for parts in zip(*inputs, strict=True))
    parts = [torch.stack(parts) for parts in zip(*recurrent, strict=True)]
    return _LSTM(_weight(weight.flatten(0, 3), scale.flatten()), torch.stack(biases), *parts)


def _made(make: Callable[..., Any], *parameters: Tensor) -> Any:
    kept = packed(make, *parameters)
    return make(*parameters) if kept is None else kept


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute ``layer(x)`` with ``x [N, K]`` in int8; the result is float32."""
    if x.shape[0] == 0:
        return x.new_zeros(0, layer.out_features)
    product, scale = _made(_quantized_linear, layer.weight).product(x)
    return torch.addcmul(layer.bias, product, scale[:, None])


def bilstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """Compute ``esim_fast.ops.bilstm`` in int8; the result is float32 ``[N, 2H]``."""
    if x.shape[0] == 0:
        return x.new_zeros(0, 2 * lstm.hidden_size)
    weights = _made(_quantized_lstm, *(weight for direction in lstm.all_weights for weight in direction))
    product, scale = weights.input.product(x)
    gates = product.view(x.shape[0], *weights.bias.shape)
    return torch.ops.esim_fast.bilstm_int8(gates, scale, *weights[1:], lstm.hidden_size, batch_sizes)

"""ESIM without gradients in int8, on CPUs with VNNI: both LSTMs, the projection and the classifier's hidden layer are
quantized, all else is fp32."""

from typing import Any, cast

import torch
from torch import Tensor

from .config import INFERENCE_PRECISIONS, check_precision
from .model import ESIM
from .ops import int8
from .packed import PackedPairs, check_tokens


def inference_precision(precision: str, device: torch.device) -> str:
    """The precision that inference runs in on a device: "auto" is int8 where that can be had, else fp32.

    Raises:
        ValueError: the precision is unknown, or the device cannot do it.
    """
    if precision not in ("int8", "auto"):
        check_precision(precision, device, known=INFERENCE_PRECISIONS)
        return precision
    if int8.runs_on(device):
        return "int8"
    if precision == "auto":
        return "fp32"
    raise ValueError("precision int8 needs a CPU with AVX512-VNNI or AVX-VNNI")


@torch.no_grad()
def quantized_logits(net: ESIM, pairs: PackedPairs) -> Tensor:
    """What ``net(pairs)`` computes, in int8 and without dropout: float32 ``[B, num_labels]``.

    Weights are quantized with the first call, and again once they have changed.

    Raises:
        ValueError: the network's parameters are not fp32, or tokens are not below ``vocab_size``.
    """
    if net.embedding.weight.dtype != torch.float32:
        raise ValueError(f"precision int8 is made of parameters in float32, these are {net.embedding.weight.dtype}")
    if len(pairs) == 0:
        return net(pairs)
    check_tokens("tokens", pairs.tokens, net.embedding)
    x = net.embedding(pairs.tokens)  # [N, embedding_dim]
    x = int8.bilstm(net.encoder.lstm, x, pairs.batch_sizes)  # [N, 2H]
    rows = pairs.rows(x.shape[1])
    m = net.inference(x, rows)  # [N, 8H]
    composition = net.infercomposition.composition
    y = composition.activation(int8.linear(composition.F, m))  # [N, H]
    y = int8.bilstm(composition.lstm, y, pairs.batch_sizes)  # [N, 2H]
    v = net.infercomposition.pool(y, rows)  # [B, 8H]
    hidden, (activation, _), output = (cast(Any, layer) for layer in list(net.linear.mlp)[1:])
    return output(activation(int8.linear(hidden, v)))

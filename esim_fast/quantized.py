"""ESIM without gradients in int8, on CPUs with VNNI: both LSTMs, the projection and the classifier's hidden layer are
quantized, all else is fp32."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .config import INFERENCE_PRECISIONS, check_precision
from .inputs import check_tokens
from .model import ESIM, is_as_made
from .ops import int8
from .ops.bilstm import is_plain_fp32
from .packed import PackedPairs


def inference_precision(precision: str, device: torch.device, net: ESIM | None = None) -> str:
    """The precision that inference runs in on a device: "auto" is int8 where supported, else fp32.

    Args:
        net: the network, if it is there already: not every one can be quantized.

    Raises:
        ValueError: the precision is unknown, or the device or the network does not support it.
    """
    if precision not in ("int8", "auto"):
        check_precision(precision, device, known=INFERENCE_PRECISIONS)
        return precision
    problem = _why_not(device, net)
    if problem and precision == "int8":
        raise ValueError(f"precision int8 needs {problem}")
    return "fp32" if problem else "int8"


def _why_not(device: torch.device, net: ESIM | None) -> str | None:
    """What is needed for int8, and missing."""
    if device.type != "cpu":
        return f"a CPU, and this model is to run on {device}"
    if not int8.LANES:
        return "a CPU with AVX512-VNNI or AVX-VNNI"
    if net is None:
        return None
    parameters = [*net.encoder.parameters(), *net.infercomposition.parameters(), *net.linear.parameters()]
    if others := {parameter.dtype for parameter in parameters} - {torch.float32}:
        return f"parameters in float32, got {others.pop()}"
    composition = net.infercomposition.composition
    plain = is_plain_fp32(net.encoder.lstm) and is_plain_fp32(composition.lstm)
    plain = plain and type(composition.F) is type(net.linear.mlp[1]) is nn.Linear
    if not plain or not is_as_made(net):
        return "layers as they were made, without hooks and wrappers, which it would leave out"
    return None


@torch.no_grad()
def quantized_logits(net: ESIM, pairs: PackedPairs) -> Tensor:
    """What ``net(pairs)`` computes, in int8 and without dropout: float32 ``[B, num_labels]``.

    Weights are quantized with the first call, and again once they have changed.

    Args:
        net: one that :func:`inference_precision` has int8 for.

    Raises:
        ValueError: tokens are not below ``vocab_size``.
    """
    if len(pairs) == 0:
        return net(pairs)
    check_tokens("tokens", pairs.tokens, net.embedding)
    return quantized_comparison(net, quantized_encoding(net, pairs), pairs)


@torch.no_grad()
def quantized_encoding(net: ESIM, pairs: PackedPairs) -> Tensor:
    """What ``net.encode(pairs)`` computes, in int8 and without dropout: float32 ``[N, 2H]``."""
    with torch.autocast("cpu", enabled=False):
        x = net.embedding(pairs.tokens)  # [N, embedding_dim]
        return int8.bilstm(net.encoder.lstm, x, pairs.batch_sizes)


@torch.no_grad()
def quantized_comparison(net: ESIM, x: Tensor, pairs: PackedPairs) -> Tensor:
    """The rest of it, of the encoded rows ``x [N, 2H]`` of pairs: float32 ``[B, num_labels]``."""
    with torch.autocast("cpu", enabled=False):
        rows = pairs.rows(x.shape[1])
        m = net.inference(x, rows)  # [N, 8H]
        composition = net.infercomposition.composition
        y = composition.activation(int8.linear(composition.F, m))  # [N, H]
        y = int8.bilstm(composition.lstm, y, pairs.batch_sizes)  # [N, 2H]
        v = net.infercomposition.pool(y, rows)  # [B, 8H]
        hidden, (activation, _), output = (cast(Any, layer) for layer in list(net.linear.mlp)[1:])
        return output(activation(int8.linear(hidden, v)))

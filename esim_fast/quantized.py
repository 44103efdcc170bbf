"""ESIM inference in int8 on CPUs with VNNI.

Both LSTMs, the projection and the classifier's hidden layer are quantized; everything else is fp32.
"""

import torch
from torch import Tensor

from . import direct
from .config import INFERENCE_PRECISIONS, check_precision
from .inputs import check_tokens
from .model import ESIM, is_as_made
from .ops import int8
from .ops.checks import without_autocast
from .packed import PackedPairs


def inference_precision(precision: str, device: torch.device, net: ESIM | None = None) -> str:
    """Return the precision that inference uses on a device: ``"auto"`` is int8 where supported, else fp32.

    Args:
        precision: as for ``esim_fast.Classifier``.
        device: the device.
        net: the network, if there is one already; not every network can be quantized.

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
    """Return the requirement of int8 that is not met, or None."""
    if device.type != "cpu":
        return f"a CPU, got {device}"
    if not int8.LANES:
        return "a CPU with AVX512-VNNI or AVX-VNNI"
    if net is None:
        return None
    parameters = [*net.encoder.parameters(), *net.infercomposition.parameters(), *net.linear.parameters()]
    if others := {parameter.dtype for parameter in parameters} - {torch.float32}:
        return f"parameters in float32, got {others.pop()}"
    if not is_as_made(net) or not direct.has_plain_layers(net):
        return "unmodified layers, because hooks and wrappers would not run"
    return None


@torch.no_grad()
def quantized_logits(net: ESIM, pairs: PackedPairs) -> Tensor:
    """Compute ``net(pairs)`` in int8 and without dropout: float32 ``[B, num_labels]``.

    Weights are quantized on the first call, and again after they change.

    Args:
        net: a network for which ``inference_precision`` returns int8.
        pairs: pairs on the CPU.

    Raises:
        ValueError: tokens are not below ``vocab_size``.
    """
    if len(pairs) == 0:
        return net(pairs)
    check_tokens("tokens", pairs.tokens, net.embedding)
    return quantized_comparison(net, quantized_encoding(net, pairs), pairs)


@torch.no_grad()
def quantized_encoding(net: ESIM, pairs: PackedPairs) -> Tensor:
    """Compute ``net.encode(pairs)`` in int8 and without dropout: float32 ``[N, 2H]``."""
    if pairs.batch_sizes is None:
        raise ValueError("int8 needs pairs without a capacity")
    with without_autocast(pairs.tokens.device):
        return direct.encoding(net, pairs, direct.INT8)


@torch.no_grad()
def quantized_comparison(net: ESIM, x: Tensor, pairs: PackedPairs) -> Tensor:
    """Compute the logits from the encoded rows ``x [N, 2H]`` of pairs: float32 ``[B, num_labels]``."""
    with without_autocast(pairs.tokens.device):
        return direct.comparison(net, x, pairs, direct.INT8)

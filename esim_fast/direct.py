"""ESIM's forward pass on a CPU without gradients: the operators alone, without the layers' calls and the ops' checks.

Results are equal to the bit, and single pairs are faster. ``net`` is always an ``ESIM``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .layers import ActivationAndDropout, Dropout, VariationalDropout, has_global_hooks, project, side_by_side
from .ops import int8, products
from .ops.bilstm import is_plain_fp32, packed_bilstm
from .ops.checks import autocast_dtype, transforming
from .ops.projection import projection
from .packed import PackedPairs

_CPU = torch.device("cpu")
_OPERATORS = torch.ops.esim_fast


class Arithmetic(NamedTuple):
    """How the layers with weights are computed."""

    bilstm: Callable[[nn.LSTM, Tensor, Tensor], Tensor]
    project: Callable[[nn.Linear, Tensor], Tensor]
    linear: Callable[[nn.Linear, Tensor], Tensor]
    difference: bool  # whether the projection takes a - ã


FP32 = Arithmetic(
    packed_bilstm,
    lambda layer, m: projection(m, layer.weight, layer.bias),
    lambda layer, x: products.linear(x, layer.weight, layer.bias),
    difference=False,
)
INT8 = Arithmetic(int8.bilstm, int8.linear, int8.linear, difference=True)


def has_plain_layers(net: Any) -> bool:
    """Whether the layers with weights are PyTorch's own and fit together, with LSTMs in fp32.

    Args:
        net: an ``ESIM`` for which ``esim_fast.model.is_as_made`` is True.
    """
    composition, classifier = net.infercomposition.composition, list(net.linear.mlp)
    F, first_lstm, second_lstm = composition.F, net.encoder.lstm, composition.lstm
    if len(classifier) != 4 or type(classifier[2]) is not ActivationAndDropout or len(classifier[2]) != 2:
        return False
    if any(type(layer) is not nn.Linear or layer.bias is None for layer in (F, classifier[1])):
        return False
    if not (is_plain_fp32(first_lstm) and is_plain_fp32(second_lstm)) or composition.activation is None:
        return False
    return F.in_features == 8 * first_lstm.hidden_size == 8 * second_lstm.hidden_size


def can_run_directly(net: Any) -> bool:
    """Whether ``FP32`` computes what the layers of a network compute without gradients.

    Args:
        net: an ``ESIM`` on a CPU for which ``esim_fast.model.is_as_made`` is True.
    """
    if not has_plain_layers(net) or net.embedding.weight.dtype != torch.float32:
        return False
    composition, (dropout, _, (_, last_dropout), _) = net.infercomposition.composition, net.linear.mlp
    dropouts = net.embedding_dropout, composition.dropout, dropout, last_dropout
    if any(layer.training or type(layer) not in (Dropout, VariationalDropout) for layer in dropouts):
        return False
    parts = net.encoder, net.inference, composition, net.infercomposition.pooling
    if any(part.backend not in (None, "cpp") for part in parts):
        return False
    return not (transforming() or has_global_hooks()) and autocast_dtype(_CPU) is None


def can_address(pairs: PackedPairs) -> bool:
    """Whether ``comparison`` can use the addresses of pairs; ``PackedPairs.rows`` explains what is wrong with them."""
    addresses, (p_longest, h_longest) = pairs.addresses, pairs.longest
    if addresses.dtype != torch.int64 or addresses.dim() != 1 or not addresses.is_contiguous():
        return False
    return p_longest >= 0 <= h_longest and max(p_longest, h_longest) <= len(addresses) - 4 * len(pairs)


def encoding(net: Any, pairs: PackedPairs, arithmetic: Arithmetic) -> Tensor:
    """Compute ``net.encode(pairs)`` without dropout: float32 ``[N, 2H]``."""
    return arithmetic.bilstm(net.encoder.lstm, net.embedding(pairs.tokens), cast(Tensor, pairs.batch_sizes))


def comparison(net: Any, x: Tensor, pairs: PackedPairs, arithmetic: Arithmetic) -> Tensor:
    """Compute the logits from the encoded rows ``x [N, 2H]`` of pairs, without dropout: float32 ``[B, num_labels]``."""
    composition, (_, hidden, (activation, _), output) = net.infercomposition.composition, net.linear.mlp
    # The addresses of PackedPairs.rows without its objects. Local inference and pooling read tensors of the same width.
    count, lengths, addresses = len(pairs), pairs.lengths, pairs.addresses * x.shape[1]
    start, step = addresses[: 2 * count], addresses[2 * count : 2 * count + max(pairs.longest)]
    premises, hypotheses = (start[:count], step, lengths[:count], None), (start[count:], step, lengths[count:], None)
    m = _OPERATORS.local_inference_packed(x, *premises, *hypotheses, *pairs.longest, True, arithmetic.difference)
    y = composition.activation(arithmetic.project(composition.F, m))  # [N, H]
    y = arithmetic.bilstm(composition.lstm, y, cast(Tensor, pairs.batch_sizes))  # [N, 2H]
    v = side_by_side(_OPERATORS.masked_pool(y, start, step, lengths, None)[0])  # [B, 8H]
    return project(output, activation(arithmetic.linear(hidden, v)))

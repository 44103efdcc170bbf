"""Initial weights."""

from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import init

from ..model import ESIM
from ..recipe import ModelOptions


@torch.no_grad()
def initialize(net: ESIM, *, forget_bias: float = 1.0, output_bias: float = 0.0) -> None:
    """Initialize all weights except the word vectors.

    Recurrent weights are orthogonal in each gate, so that states neither vanish nor explode over long sentences. Other
    weights are Xavier uniform. Biases are zero, except those of the LSTMs' forget gates.

    Args:
        net: the network, changed in place.
        forget_bias: bias of the forget gates.
        output_bias: bias of the last layer. For regression, pass the mean of the training scores. Starting at 0, the
            network may learn that mean and nothing else.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                gates = parameter.chunk(4)  # input, forget, cell, output
                if name.startswith("bias"):
                    init.zeros_(parameter)
                    if name.startswith("bias_ih"):  # the two biases are added to each other
                        init.constant_(gates[1], forget_bias)
                else:
                    for gate in gates:
                        (init.orthogonal_ if name.startswith("weight_hh") else init.xavier_uniform_)(gate)
    init.constant_(cast(nn.Linear, net.linear.mlp[-1]).bias, output_bias)


def new_network(
    options: ModelOptions,
    words: int,
    labels: int,
    *,
    vectors: Tensor | None = None,
    output_bias: float = 0.0,
    bilstm_backend: str | None = None,
) -> ESIM:
    """Create a network and initialize it with ``initialize``.

    Args:
        options: sizes, dropout and the forget gates' bias.
        words: size of the vocabulary.
        labels: number of labels, or 1 for regression.
        vectors: word vectors, float32 ``[words, dimension]``. None draws random ones of ``options.embedding_dim``.
        output_bias: as in ``initialize``.
        bilstm_backend: as for ``esim_fast.ESIM``.
    """
    sizes = asdict(options)
    forget_bias = sizes.pop("forget_bias")
    if vectors is not None:
        sizes["embedding_dim"] = vectors.shape[1]
    net = ESIM(**sizes, vocab_size=words, num_labels=labels, bilstm_backend=bilstm_backend)
    initialize(net, forget_bias=forget_bias, output_bias=output_bias)
    if vectors is not None:
        net.embedding.weight.data.copy_(vectors)
    return net

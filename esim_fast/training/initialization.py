"""Weights to begin with."""

from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import init

from ..model import ESIM
from ..recipe import ModelOptions


@torch.no_grad()
def initialize(net: ESIM, *, forget_bias: float = 1.0, output_bias: float = 0.0) -> None:
    """Gives everything but the word vectors weights that training does well from.

    Recurrent weights are orthogonal, gate by gate, so that a state neither fades nor grows over many words; all others
    are Xavier's (uniform); biases are zero, but for the forget gates of the LSTMs: they are open at first.

    Args:
        forget_bias: of the forget gates.
        output_bias: of the last layer. For regression take the mean of the training scores:
            from 0 on the network may learn it and nothing else.
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
    options: ModelOptions, words: int, labels: int, *, vectors: Tensor | None = None, output_bias: float = 0.0
) -> ESIM:
    """A network to train, with the weights that :func:`initialize` gives it.

    Args:
        words, labels: how many.
        vectors: of the words, float32 ``[words, dimension]``; None: random ones, as wide as the options say.
        output_bias: as for :func:`initialize`.
    """
    sizes = asdict(options)
    forget_bias = sizes.pop("forget_bias")
    if vectors is not None:
        sizes["embedding_dim"] = vectors.shape[1]
    net = ESIM(**sizes, vocab_size=words, num_labels=labels)
    initialize(net, forget_bias=forget_bias, output_bias=output_bias)
    if vectors is not None:
        net.embedding.weight.data.copy_(vectors)
    return net

"""Weights to begin with."""

from typing import cast

import torch
from torch import nn
from torch.nn import init

from ..model import ESIM


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

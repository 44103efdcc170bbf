"""The moving average of a network's weights."""

import copy

import torch
from torch import nn

_EVERY = 10  # steps: an average over a table of word vectors takes time, and loses nothing by skipping some


class MovingAverage:
    """Exponential moving average of the weights of ``net``, in the network ``MovingAverage.net``.

    It keeps ``decay`` of itself a step; less at the beginning, where there is little to average over.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, steps: int) -> None:
        """Takes in the weights of ``net`` after so many steps."""
        if steps % _EVERY == 0:
            kept = min(self.decay, (1 + steps) / (10 + steps)) ** _EVERY
            torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - kept)

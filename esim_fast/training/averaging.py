"""Moving average of a network's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)

_SELDOM = 10  # most steps between updates, which take time on a large table of word vectors
_OFTEN = 50  # fewest updates in an epoch, if it has as many steps


class MovingAverage(Generic[Net]):
    """Exponential moving average of a network's weights, in the network ``MovingAverage.net``.

    ``decay`` is the share that the average retains per step. It is lower in the first steps.
    """

    def __init__(self, net: Net, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # deepcopy scatters the weights, and cuDNN wants them contiguous
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, steps: int, steps_of_epoch: int) -> None:
        """Update the average after a step of the run; most calls do nothing."""
        every = max(1, min(_SELDOM, steps_of_epoch // _OFTEN))
        if steps % every == 0:
            kept = min(self.decay, (1 + steps) / (10 + steps)) ** every
            torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - kept)

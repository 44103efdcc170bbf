"""The moving average of a network's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)

_SELDOM = 10  # steps: an average over a table of word vectors takes time, and loses nothing by skipping some
_OFTEN = 50  # times in an epoch at least, where it has as many steps


class MovingAverage(Generic[Net]):
    """Exponential moving average of the weights of ``net``, in the network ``MovingAverage.net``.

    It keeps ``decay`` of itself a step; less at the beginning, where there is little to average over.
    """

    def __init__(self, net: Net, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # the copies of its weights lie apart, which cuDNN does not like
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, steps: int, steps_of_epoch: int) -> None:
        """Takes in the weights of ``net`` after so many steps of the run; now and then, not each time."""
        every = max(1, min(_SELDOM, steps_of_epoch // _OFTEN))
        if steps % every == 0:
            kept = min(self.decay, (1 + steps) / (10 + steps)) ** every
            torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - kept)

"""A task that a small model learns in seconds."""

from contextlib import nullcontext

import numpy as np
import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import EncodedPairs, Vocabulary
from esim_fast.graphs import CUDAGraphs
from esim_fast.training import Trainer

WORDS = ["<unk>", "<pad>", *"abcdefgh"]


def pairs(count, seed):
    """Pairs of the same two words; the label says whether the hypothesis swaps them."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(low, low + 4, (count,), generator=generator) for low in (2, 6))
    premises = torch.stack([first, second], 1).tolist()
    labels = torch.randint(2, (count,), generator=generator).tolist()
    return EncodedPairs(premises, [p[::-1] if label else p for p, label in zip(premises, labels, strict=True)], labels)


def new_model(seed=0, dropout=0.1, **options):
    torch.manual_seed(seed)
    net = esim_fast.ESIM(16, 12, len(WORDS), 2, dropout=dropout, **options)
    return Classifier(net, Vocabulary(WORDS), ["same", "swapped"])


def new_trainer(recipe, directory, model=None, train=None, dev=None, **options):
    train = pairs(160, 1) if train is None else train
    dev = pairs(80, 2) if dev is None else dev
    return Trainer(model or new_model(), train, dev, recipe, directory, **options)


def scored_pairs(count, seed):
    """The same sentences with scores: 1 or 3 by the label, plus up to 0.3 by the first word."""
    found = pairs(count, seed)
    first = np.array([int(found[[index]].pairs.tokens[0]) for index in range(count)])
    found.labels = (1 + 2 * found.labels + 0.1 * (first % 4)).astype(np.float32)
    return found


def new_regression(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    net = esim_fast.ESIM(16, 12, len(WORDS), 1, dropout=dropout)
    net.linear.mlp[-1].bias.data.fill_(2.1)  # the mean of the scores; from 0 on it would learn nothing
    return Classifier(net, Vocabulary(WORDS), ["score"])


def new_regression_trainer(recipe, directory, model=None, train=None, dev=None, **options):
    train = scored_pairs(160, 1) if train is None else train
    dev = scored_pairs(80, 2) if dev is None else dev
    return Trainer(model or new_regression(), train, dev, recipe, directory, **options)


class Event:
    """An event of a stream whose work is done at once."""

    def __init__(self):
        self.calls = []

    def record(self):
        self.calls.append("record")

    def synchronize(self):
        self.calls.append("synchronize")


class GraphsOnCPU(CUDAGraphs):
    """A graph is the captured function, which finds nothing new but what was copied to the memory that it reads."""

    device = "cpu"

    current = staticmethod(nullcontext)

    def __init__(self, device):
        pass

    def obstacle(self, net):
        return None

    def new_slot(self, size):
        return torch.zeros(size, dtype=torch.uint8), Event()

    def capture(self, work):
        return work


class PoisonedGraphs(CUDAGraphs):
    """Before each replay, the memory that graphs share is filled with NaN."""

    def capture(self, work):
        def poison():
            tensors = [torch.full((size,), torch.nan, device="cuda") for size in [2**16] * 64 + [2**21] * 16]
            assert len(tensors) == 80  # kept until all of them are made

        replays = super().capture(work), super().capture(poison)
        return lambda: [replay() for replay in reversed(replays)]

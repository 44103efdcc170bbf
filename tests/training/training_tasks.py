"""A task that a small model learns in seconds, for tests of training."""

import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import EncodedPairs, Vocabulary
from esim_fast.training import Trainer

WORDS = ["<unk>", "<pad>", *"abcdefgh"]


def pairs(count, seed):
    """Two words, then the same two in the same or in the other order: that is the label."""
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

"""Training steps and inference on a fake GPU: ``python -m tests.fake_gpu.steps TASK PRECISION``."""

import json
import sys

import torch
from torch.utils._pytree import tree_flatten

from tests.fake_gpu.process import FAKE, GPU, OnTheGPU

from esim_fast import ESIM, pack_pairs  # isort: skip
from esim_fast.data import Batch  # isort: skip
from esim_fast.recipe import Recipe  # isort: skip
from esim_fast.scoring import _logits  # isort: skip
from esim_fast.training.steps import training_step  # isort: skip

PAIRS, CAPACITY = 32, 700
SPOILERS = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x[0, 0]),
    "if": lambda x: bool(x[0, 0] > 0),
    "cpu": lambda x: x.cpu(),
    "cpu of a scalar": lambda x: x.sum().cpu(),
    "copy": lambda x: torch.empty(x.shape).copy_(x),
    "from the host": lambda x: x + torch.zeros(x.shape[1], device="cpu").to(x.device),
    "a scalar from the host": lambda x: x + torch.tensor(1.0, device="cpu").to(x.device),
    "shape": lambda x: x[x > 0],
    "lengths": lambda x: x.new_zeros(2, 4).repeat_interleave(x[0, :2].long(), 0),
}


def random_pairs(seed, longest, pairs):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, 1000, (pairs, length), generator=generator) for length in longest]
    lengths = [torch.randint(0, length + 1, (pairs,), generator=generator) for length in longest]
    lengths[0][0], lengths[1][0] = longest  # which fixes the tiles
    return pack_pairs(*ids, *lengths)


def random_batch(seed, rows=CAPACITY, pairs=PAIRS, longest=(16, 16)):
    """A batch with a capacity on the fake GPU."""
    roomy = random_pairs(seed, longest, pairs - seed % 3).with_capacity(rows, pairs)
    batch = Batch(roomy, torch.zeros(pairs).long(), torch.arange(pairs), pairs)
    with FAKE:
        return batch.to(GPU)


class Training:
    """A network with all that a training step takes."""

    def __init__(self, precision, **options):
        with FAKE, GPU:
            self.net = ESIM(300, 300, 36_988, 3, **options).train()
        parameters = self.net.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=4e-4, fused=True, capturable=True)
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
        self.recipe = Recipe(precision=precision)

    def step(self, batch):
        """The operators of a step."""
        with FAKE, OnTheGPU() as recorder:
            training_step(self.net, [batch], self.optimizer, self.scaler, self.recipe)
        return recorder.calls

    def infer(self, batch):
        """The operators of inference."""
        self.net.eval()
        with FAKE, OnTheGPU() as recorder, torch.no_grad():
            _logits(self.net, batch.pairs, self.recipe.precision)
        self.net.train()
        return recorder.calls


def nothing_is_read(precision):
    for options in ({}, {"variational_dropout": True}):
        training = Training(precision, **options)
        for seed in range(2):
            training.step(random_batch(seed))
            training.infer(random_batch(seed))
    names = {name.partition(".default")[0] for name, _ in training.step(random_batch(2))}
    print(*sorted(name for name in names if name.startswith("esim_fast.")))


def a_read_is_noticed(precision):
    for name, spoil in SPOILERS.items():
        training = Training(precision)
        training.step(random_batch(0))
        training.net.infercomposition.composition.F.register_forward_hook(lambda _, x, y, spoil=spoil: spoil(y) and None)
        try:
            training.step(random_batch(1))
        except Exception as error:
            print(f"{name}: {type(error).__name__}")
        else:
            print(f"{name}: not noticed")


def the_key_is_all(precision):
    """Prints how many batches have the same operators with the same arguments, then what differs with each part of the
    key: all pairs of different arguments.
    """
    training = Training(precision)
    training.step(random_batch(0))  # the first step makes the optimizer's state
    wanted = training.step(random_batch(0)), training.infer(random_batch(0))
    same = [(training.step(batch), training.infer(batch)) == wanted for batch in map(random_batch, range(1, 31))]
    print(json.dumps([len(wanted[0]), len(wanted[1]), sum(same)]))
    for key in ({"rows": 800}, {"pairs": 40}, {"longest": (32, 16)}):
        ours = training.step(random_batch(0, **key)), training.infer(random_batch(0, **key))
        (ours, structure), (theirs, expected) = tree_flatten(ours), tree_flatten(wanted)
        assert structure == expected
        print(json.dumps(sorted({pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]})))


if __name__ == "__main__":
    {"nothing": nothing_is_read, "noticed": a_read_is_noticed, "key": the_key_is_all}[sys.argv[1]](sys.argv[2])

"""Training steps and inference on a fake GPU: ``python -m tests.fake_gpu.steps TASK PRECISION DROPOUT``."""

import json
import sys

import torch
from torch.utils._pytree import tree_flatten

from tests.fake_gpu.process import FAKE, GPU, OnTheGPU

from esim_fast import ESIM, pack_pairs  # isort: skip
from esim_fast.data import Batch  # isort: skip
from esim_fast.layers import kept_gradient, keyed_dropout  # isort: skip
from esim_fast.ops.embedding import occurrences  # isort: skip
from esim_fast.recipe import Recipe  # isort: skip
from esim_fast.scoring import _logits  # isort: skip
from esim_fast.training.steps import training_step  # isort: skip

PAIRS, ROWS = 32, 1000
# What a layer may do with its result that a captured step may not.
MISTAKES = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x[0, 0]),
    "if": lambda x: bool(x[0, 0] > 0),
    "cpu": lambda x: x.cpu(),
    "cpu of a scalar": lambda x: x.sum().cpu(),
    "copy": lambda x: torch.empty(x.shape).copy_(x),
    "from the CPU": lambda x: x + torch.zeros(x.shape[1], device="cpu").to(x.device),
    "a scalar from the CPU": lambda x: x + torch.tensor(1.0, device="cpu").to(x.device),
    "a shape": lambda x: x[x > 0],
    "another shape": lambda x: x.new_zeros(2, 4).repeat_interleave(x[0, :2].long(), 0),
}


def random_batch(seed, rows=ROWS, pairs=PAIRS, longest=(16, 16)):
    """A batch on the fake GPU with 0 to 2 pairs fewer than its capacity, and where its words occur."""
    generator, count = torch.Generator().manual_seed(seed), pairs - seed % 3
    ids = [torch.randint(2, 1000, (count, length), generator=generator) for length in longest]
    lengths = [torch.randint(0, length + 1, (count,), generator=generator) for length in longest]
    lengths[0][0], lengths[1][0] = longest  # which fixes the tiles
    roomy = pack_pairs(*ids, *lengths).with_capacity(rows, pairs)
    batch = Batch(roomy, torch.zeros(pairs).long(), torch.arange(pairs), pairs)
    with FAKE:
        return batch.to(GPU), [places.to(GPU) for places in occurrences(roomy.tokens, 1)]


class Training:
    """A network with all that a training step takes, and the key of dropout."""

    def __init__(self, precision, dropout):
        with FAKE, GPU:
            self.key = torch.zeros(2, dtype=torch.int64)
            self.net = ESIM(300, 300, 36_988, 3, variational_dropout=dropout == "variational").train()
            self.table = torch.zeros(36_988, 300)
        parameters = self.net.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=4e-4, fused=True, capturable=True)
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
        self.recipe = Recipe(precision=precision)
        self.step(*random_batch(0))  # the first step also makes the optimizer's state

    def step(self, batch, places):
        """The operators of a step."""
        options = {"loss_backend": "triton", "fused_clipping": True}
        kept = kept_gradient(self.table, [(batch.pairs.tokens, *places)])
        with FAKE, OnTheGPU() as recorder, keyed_dropout(self.key), kept:
            training_step(self.net, [batch], self.optimizer, self.scaler, self.recipe, **options)
        return recorder.calls

    def both(self, batch, places):
        """The operators of a step, and those of inference."""
        step = self.step(batch, places)
        self.net.eval()
        with FAKE, OnTheGPU() as recorder, torch.no_grad():
            _logits(self.net, batch.pairs, self.recipe.precision)
        self.net.train()
        return step, recorder.calls


def compare(precision, dropout):
    """Print, line by line in JSON, the kernels of a step with the dtype of their first argument, how many of 30 other
    batches have the same operators with the same arguments, and which arguments differ with each part of a capacity.
    """
    training = Training(precision, dropout)
    wanted = training.both(*random_batch(0))
    kernels = {(name, arguments[0][0][2]) for name, arguments in wanted[0] if name.startswith("esim_fast")}
    print(json.dumps(sorted(kernels)))
    print(sum(training.both(*batch) == wanted for batch in map(random_batch, range(1, 31))))
    for capacity in ({"rows": 1100}, {"pairs": 40}, {"longest": (32, 16)}):
        ours = training.both(*random_batch(0, **capacity))
        (theirs, structure), (ours, same) = tree_flatten(wanted), tree_flatten(ours)
        assert structure == same
        print(json.dumps(sorted({pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]})))


def mistakes(precision, dropout):
    """Print what each mistake raises."""
    for name, mistake in MISTAKES.items():
        training = Training(precision, dropout)
        layer = training.net.infercomposition.composition.F
        layer.register_forward_hook(lambda _, x, y, mistake=mistake: mistake(y) and None)
        try:
            training.step(*random_batch(1))
        except Exception as error:
            print(f"{name}: {type(error).__name__}")
        else:
            print(f"{name}: nothing")


if __name__ == "__main__":
    {"compare": compare, "mistakes": mistakes}[sys.argv[1]](*sys.argv[2:])

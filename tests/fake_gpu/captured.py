"""Captured steps on a fake GPU: ``python -m tests.fake_gpu.captured PRECISION ACCUMULATE``."""

import json
import sys
from contextlib import nullcontext

import torch

from tests.fake_gpu.process import FAKE, GPU, OnTheGPU

from esim_fast import ESIM, graphs  # isort: skip
from esim_fast.data import EncodedPairs, batches  # isort: skip
from esim_fast.recipe import Recipe  # isort: skip
from esim_fast.training import CapturedStep, capture, plan_capacities, step_sizes  # isort: skip


class Event:
    def record(self):
        pass

    def synchronize(self):
        pass


class OnFakeGPU(graphs.CUDAGraphs):
    """A capture records operators, and refuses whatever needs the host."""

    current = staticmethod(nullcontext)

    def __init__(self, device):
        self.captures = []

    def new_slot(self, size):
        return torch.zeros(size, dtype=torch.uint8), Event()

    def capture(self, work):
        with OnTheGPU() as recorder:
            work()
        self.captures.append(recorder.calls)
        return lambda: None


graphs.CUDAGraphs = OnFakeGPU
# Fake tensors have no values to sort on the host.
capture.occurrences = lambda tokens, padding_idx: (torch.zeros_like(tokens), tokens.new_zeros(len(tokens) + 1))


@torch.library.register_fake("aten::_fused_adamw_.tensor_lr")
def _fused_adamw(*_, **__):
    pass


def steps(precision, accumulate):
    """Print, in JSON, counts of six steps of one capacity, and the operators of a captured one that update weights,
    scale gradients or add up the embedding's gradient.
    """
    recipe = Recipe(precision=precision, accumulate=int(accumulate))
    corpus = EncodedPairs([[2] * (8 + (index % 32 > 0)) for index in range(192)], [[3] * 7] * 192, [0] * 192)
    loader = batches(corpus, 32, shuffle=True, parts=recipe.accumulate)
    capacities = plan_capacities(step_sizes(loader, recipe.accumulate))
    made = list(loader)
    with FAKE:
        with GPU:
            net = ESIM(300, 300, 36_988, 3).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=4e-4, fused=True)
        step = CapturedStep(
            net, optimizer, torch.amp.GradScaler("cuda", enabled=precision == "fp16"), recipe, capacities
        )
        for parts in zip(*[iter(made)] * recipe.accumulate, strict=True):
            step(parts)
    (calls,) = step._graphs.captures
    found = {name for name, _ in calls if any(part in name for part in ("adam", "mul_", "embedding_"))}
    print(json.dumps([vars(step.statistics), sorted(found)]))


if __name__ == "__main__":
    steps(*sys.argv[1:])

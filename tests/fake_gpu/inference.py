"""Captured forward passes on a fake GPU: ``python -m tests.fake_gpu.inference PRECISION``."""

import json
import sys

import torch
from torch.utils._pytree import tree_flatten

from tests.fake_gpu.process import FAKE, GPU

from tests.fake_gpu.captured import OnFakeGPU  # isort: skip

from esim_fast import ESIM, graphs, pack_pairs  # isort: skip
from esim_fast.captured import CapturedForward  # isort: skip

graphs.CUDAGraphs = OnFakeGPU


def random_pairs(seed, capacity=32):
    """0 to 2 pairs fewer than the capacity, of 8 words each, except the first pair, which has 0 to 8."""
    generator, count = torch.Generator().manual_seed(seed), capacity - seed % 3
    ids = torch.randint(2, 1000, (2, count, 4), generator=generator)
    lengths = torch.full((2, count), 4)
    lengths[:, 0] = torch.randint(0, 5, (2,), generator=generator)
    return pack_pairs(*ids, *lengths)


def operators(forward, pairs):
    """The operators of a graph that is captured for these pairs."""
    with FAKE:
        forward._begin()
        for _ in range(3):
            forward(pairs)
    (calls,) = forward._graphs.captures
    return calls


def compare(precision):
    """Print, line by line in JSON, the kernels of a forward pass with the dtype of their first argument, how many of 30
    batches have the same operators with the same arguments, which arguments differ in another capacity, and counts.
    """
    with FAKE, GPU:
        forward = CapturedForward(ESIM(300, 300, 36_988, 3).eval(), precision)
    wanted = operators(forward, random_pairs(0))
    kernels = {(name, arguments[0][0][2]) for name, arguments in wanted if name.startswith("esim_fast")}
    print(json.dumps(sorted(kernels)))
    print(sum(operators(forward, random_pairs(seed)) == wanted for seed in range(1, 31)))
    (theirs, structure), (ours, same) = map(tree_flatten, (wanted, operators(forward, random_pairs(0, 64))))
    assert structure == same
    print(json.dumps(sorted({pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]})))
    print(json.dumps(vars(forward.statistics)))


if __name__ == "__main__":
    compare(*sys.argv[1:])

"""A data loader whose workers pack pairs and run the ops after their parent has run them.

``python -m tests.ops.ops_in_workers fork|spawn|forkserver`` prints "same bits". It is a separate program because it
might hang.
"""

import sys

import torch
from torch.utils.data import DataLoader

import esim_fast
from esim_fast.ops import bilstm, local_inference_packed, masked_pool

WIDTH, HIDDEN, WORDS = 24, 16, 40


def run_ops(premises, hypotheses, lengths):
    """Results and gradients of all ops on packed pairs."""
    generator = torch.Generator().manual_seed(0)
    pairs = esim_fast.pack_pairs(premises, hypotheses, *lengths)
    lstm = torch.nn.LSTM(WIDTH, HIDDEN, bidirectional=True)
    embedding = esim_fast.layers.Embedding(WORDS, WIDTH)
    parameters = [embedding.weight, *lstm.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    rows = pairs.rows(2 * HIDDEN)
    y = bilstm(lstm, embedding(pairs.tokens), pairs.batch_sizes)
    m = local_inference_packed(y, rows.premises, rows.hypotheses)
    v = masked_pool(m, rows=pairs.rows(8 * HIDDEN).all)
    return [pairs.tokens, y.detach(), m.detach(), v.detach(), *torch.autograd.grad(v.square().sum(), parameters)]


def examples(count):
    generator = torch.Generator().manual_seed(1)
    shape = {"size": (8, 9), "generator": generator}
    draw = [(torch.randint(1, WORDS, **shape), torch.randint(1, WORDS, **shape)) for _ in range(count)]
    lengths = torch.randint(1, 10, (count, 2, 8), generator=generator)
    return [(*ids, tuple(both)) for ids, both in zip(draw, lengths, strict=True)]


def collate(batch):
    return run_ops(*batch[0])


def main(method):
    data = examples(6)
    torch.set_num_threads(1)
    wanted = [run_ops(*example) for example in data]
    torch.set_num_threads(4)  # from now on the parent has threads, and forked workers do not
    for _ in range(2 if method == "fork" else 1):
        results = [run_ops(*example) for example in data]
        loader = DataLoader(data, 1, collate_fn=collate, num_workers=2, multiprocessing_context=method)
        for ours in (results, list(loader)):
            for mine, other in zip(ours, wanted, strict=True):
                assert all(torch.equal(one, another) for one, another in zip(mine, other, strict=True))
    print("same bits")


if __name__ == "__main__":
    main(sys.argv[1])

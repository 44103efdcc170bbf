"""The same arguments and the same seed give the same bits in ops, models, training runs and new processes."""

import random

import pytest
import torch
from torch import nn

from esim_fast import ESIM, Rows, data, training
from esim_fast.data import EncodedPairs
from esim_fast.ops import bilstm, local_inference_packed, masked_pool
from tests.cli.commands import succeeds
from tests.ops.layouts import packed_rows
from tests.ops.numerics import DTYPES
from tests.processes import output_of

REPETITIONS = {"cpu": 3, "cuda": 100}
THREADS = [1, 2, 3, 16]
WORDS = 50


def results_of(op, device, dtype=torch.float32):
    """Results and gradients of an op on a batch that is large enough to be split among threads."""
    torch.manual_seed(0)
    lengths, width = torch.randint(0, 30, (64,)).tolist(), 24
    if op == "bilstm":
        lstm = nn.LSTM(width, 20, bidirectional=True).to(device)
        batch_sizes = (torch.tensor(lengths)[:, None] > torch.arange(max(lengths))).sum(0)
        x = torch.randn(sum(lengths), width).to(device).requires_grad_()
        results, inputs = [bilstm(lstm, x, batch_sizes)], [x, *lstm.parameters()]
    elif op == "embedding":
        net = ESIM(8, width, WORDS, 3, device)
        inputs = [net.embedding.weight]
        results = [net.embedding(torch.randint(WORDS, (4000,)).to(device))]
    else:
        rows, tokens = packed_rows(lengths, width)
        x = torch.randn(tokens, width).to(device, dtype).requires_grad_()
        rows, inputs = rows.to(device), [x]
        if op == "masked_pool":
            results = [masked_pool(x, rows=rows)]
        else:
            halves = [
                Rows(rows.start[part], rows.step, rows.lengths[part], rows.max_length)
                for part in (slice(0, 32), slice(32, 64))
            ]
            results = [local_inference_packed(x, *halves)]
    gradients = torch.autograd.grad([result.square().sum() for result in results], inputs)
    return [tensor.detach().cpu() for tensor in (*results, *gradients)]


@pytest.mark.parametrize(
    ("op", "dtype"),
    [*((op, torch.float32) for op in ("bilstm", "embedding"))]
    + [(op, dtype) for op in ("local_inference", "masked_pool") for dtype in DTYPES],
)
def test_ops_repeat_themselves(op, dtype, device, poisoned):
    first = results_of(op, device, dtype)
    assert all(result.isfinite().all() for result in first)
    for _ in range(REPETITIONS[device]):
        assert all(torch.equal(x, y) for x, y in zip(results_of(op, device, dtype), first, strict=True))


def trained(device, steps=4):
    """Weights and losses of a model in training, with dropout and all parts of the recipe."""
    torch.manual_seed(1)
    generator = random.Random(1)
    sentences = [
        [[generator.randrange(2, WORDS) for _ in range(generator.randrange(20))] for _ in "ab"] for _ in "x" * 64
    ]
    pairs = EncodedPairs(*map(list, zip(*sentences, strict=True)), [generator.randrange(3) for _ in sentences])
    net = ESIM(37, 24, WORDS, 3, device, variational_dropout=True)
    training.initialize(net)
    recipe = training.Recipe(batch_size=16)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=False)
    losses = []
    for batch in data.batches(pairs, recipe.batch_size, shuffle=True, seed=1, epoch=1):
        losses.append(training.training_step(net, [batch.to(net.device)], optimizer, scaler, recipe).loss_sum)
    assert len(losses) == steps
    return [tensor.detach().cpu() for tensor in (torch.stack(losses), *net.parameters())]


def test_training_steps_repeat_themselves(device, poisoned):
    first = trained(device)
    assert all(torch.equal(x, y) for x, y in zip(trained(device), first, strict=True))
    assert all(tensor.isfinite().all() for tensor in first)


def test_training_steps_and_threads(threads):
    threads(THREADS[0])
    first = trained("cpu")
    for count in THREADS[1:]:
        threads(count)
        for x, y in zip(trained("cpu"), first, strict=True):
            # Adam turns even a gradient that is only rounding error into a full step of 4e-4.
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-3)
            assert float((x - y).abs().mean()) <= 1e-6 * max(1.0, float(y.abs().mean()))


def test_runs_repeat_themselves(tmp_path, monkeypatch):
    generator = random.Random(0)
    rows = ["label\tpremise\thypothesis"]
    for _ in range(80):
        premise, hypothesis = (" ".join(generator.choices("abcde", k=5)) for _ in "ph")
        rows.append(f"{generator.choice(['yes', 'no'])}\t{premise}\t{hypothesis}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    options = ["train", "--train", "pairs.tsv", "--dev", "pairs.tsv", "--epochs", "2", "--batch-size", "8"]
    options += ["--hidden-size", "8", "--embedding-dim", "8", "--no-cache", "--output"]
    succeeds(*options, "run-1", cwd=tmp_path)  # in this process, with another hash seed
    monkeypatch.chdir(tmp_path)
    run_2 = "import sys; from esim_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    output_of(run_2, *options, "run-2", PYTHONHASHSEED="2")
    names = ["model.safetensors", "config.json", "vocabulary.txt", "labels.json", "last/model.safetensors"]
    for name in names:
        assert (tmp_path / "run-1" / name).read_bytes() == (tmp_path / "run-2" / name).read_bytes(), name

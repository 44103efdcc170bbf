"""Pairs with a capacity: rows and pairs after the batch have no effect, and whatever kernels leave there is zero.

New memory is NaN here, so whatever a kernel does not write is seen.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from esim_fast import ESIM, Rows, pack_pairs
from esim_fast.layers import VariationalDropout
from esim_fast.ops import bilstm, local_inference_packed, masked_pool

TRITON = pytest.param("triton", marks=pytest.mark.interpreter)
WORDS, PADDING = 30, 1
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _poisoned(poisoned):
    pass


@pytest.fixture
def cuda_pooling(cuda, monkeypatch):
    """The CUDA kernels of pooling run where the C++ kernels would."""
    for name, operator in cuda.operators().items():
        monkeypatch.setattr(torch.ops.esim_fast, name, operator)


def some_pairs(generator, pairs, longest):
    """Packed pairs whose sentences have 0 to ``longest`` words."""
    ids = torch.randint(2, WORDS, (2, pairs, longest), generator=generator)
    lengths = torch.randint(0, longest + 1, (2, pairs), generator=generator)
    return pack_pairs(*ids, *lengths)


def random_case(seed, longest=3):
    """Random pairs, and the same ones with a random capacity."""
    generator = torch.Generator().manual_seed(seed)
    count, more_pairs, more_rows = (int(torch.randint(n, (), generator=generator)) for n in (2, 2, 20))
    pairs = some_pairs(generator, 1 + count, longest)
    return pairs, pairs.with_capacity(len(pairs.tokens) + more_rows, len(pairs) + more_pairs)


def behind(x, rows, value):
    """``x`` with more rows of a value: ``[rows, …]``."""
    return torch.cat([x, x.new_full((rows - len(x), *x.shape[1:]), value)])


def assert_zero_behind(x, count):
    assert torch.equal(x[count:], torch.zeros_like(x[count:]))


def assert_equal_up_to_rounding(ours, wanted):
    """The sums may be rounded in another order."""
    for mine, theirs in zip(ours, wanted, strict=True):
        assert (mine - theirs).abs().max() <= 20 * EPS * (1 + theirs.abs().max())


@pytest.mark.parametrize("backend", ["cpp", "reference", TRITON])
@pytest.mark.parametrize("seed", range(4))
def test_bilstm(seed, backend):
    pairs, roomy = random_case(seed, longest=4)
    count, rows = len(pairs.tokens), len(roomy.tokens)
    torch.manual_seed(seed)
    lstm, x, grad_y = nn.LSTM(5, 7, bidirectional=True), torch.randn(count, 5), torch.randn(count, 14)

    def results(x, grad_y, batch_sizes, **sizes):
        x = x.clone().requires_grad_()
        y = bilstm(lstm, x, batch_sizes, **sizes, backend=backend)
        return y.detach(), *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)

    wanted = results(x, grad_y, pairs.batch_sizes)
    sizes = {"first_row": roomy.first_row, "sentences": 2 * len(roomy)}
    y, grad_x, *gradients = results(behind(x, rows, 3.0), behind(grad_y, rows, math.nan), None, **sizes)
    assert_zero_behind(y, count)
    assert_zero_behind(grad_x, count)
    assert_equal_up_to_rounding([y[:count], grad_x[:count], *gradients], wanted)


def test_sizes_that_are_missing():
    lstm, x = nn.LSTM(5, 7, bidirectional=True), torch.zeros(4, 5)
    for sizes in ({}, {"first_row": torch.tensor([0, 4])}, {"sentences": 4}):
        with pytest.raises(TypeError, match=r"^without batch_sizes, bilstm needs first_row and sentences"):
            bilstm(lstm, x, None, **sizes)


@pytest.mark.interpreter
def test_first_rows_without_their_number():
    """As callers may give them after batch_sizes."""
    pairs = some_pairs(torch.Generator().manual_seed(0), 3, longest=4)
    lstm, x, T = nn.LSTM(5, 7, bidirectional=True), torch.randn(len(pairs.tokens), 5), len(pairs.batch_sizes)
    wanted, *ours = (
        bilstm(lstm, x, pairs.batch_sizes, first_row=first_row, backend="triton")
        for first_row in (None, pairs.first_row[:T], pairs.first_row)
    )
    assert all(torch.equal(y, wanted) for y in ours)


def test_variational_dropout():
    """The masks of sentences do not depend on the capacity."""
    layer, (pairs, _) = VariationalDropout(0.5), random_case(1, longest=5)
    roomy, x = pairs.with_capacity(len(pairs.tokens) + 9, len(pairs) + 2), torch.ones(len(pairs.tokens) + 9, 40)
    torch.manual_seed(0)
    wanted = layer(x[:-9], pairs)
    torch.manual_seed(0)
    assert torch.equal(layer(x, roomy)[:-9], wanted)
    assert wanted.any()
    assert not wanted.all()


@pytest.mark.parametrize("backend", ["cpp", "reference", TRITON])
@pytest.mark.parametrize("longest", [5, 70])  # one tile and many
def test_local_inference(longest, backend):
    generator = torch.Generator().manual_seed(longest)
    ids, lengths = torch.full((2, 2, longest), 2), torch.tensor([[longest, 0], [2, 3]])
    pairs = pack_pairs(*ids, *lengths)
    roomy = pairs.with_capacity(len(pairs.tokens) + 40, 3)
    count, rows = len(pairs.tokens), len(roomy.tokens)
    x, grad_m = (torch.randn(count, width, generator=generator) for width in (6, 24))

    def results(x, grad_m, pairs):
        x, rows = x.clone().requires_grad_(), pairs.rows(6)
        m = local_inference_packed(x, rows.premises, rows.hypotheses, filled=rows.all.filled, backend=backend)
        return m.detach(), torch.autograd.grad(m, x, grad_m)[0]

    wanted = results(x, grad_m, pairs)
    ours = results(behind(x, rows, math.nan), behind(grad_m, rows, math.nan), roomy)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert_zero_behind(mine, count)
        assert_equal_up_to_rounding([mine[:count]], [theirs])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [1, 8, 600])
@pytest.mark.parametrize("backend", ["cuda", "cpp", "reference"])
def test_masked_pool(backend, width, masked, request):
    if backend == "cuda":
        request.getfixturevalue("cuda_pooling")
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        pairs = some_pairs(generator, 1 + seed, longest=(3, 5, 70)[seed % 3])
        roomy = pairs.with_capacity(len(pairs.tokens) + 50 * seed, 6)
        count, rows = len(pairs.tokens), len(roomy.tokens)
        x, grad_v = (torch.randn(n, k, generator=generator) for n, k in ((count, width), (12, 2 * width)))
        mask = torch.rand(12, max(roomy.longest), generator=generator) < 0.7 if masked else None

        def results(x, pairs, grad_v, mask, width=width):
            x, rows = x.clone().requires_grad_(), pairs.rows(width).all
            given = None if mask is None else mask[:, : rows.max_length]
            v = masked_pool(x, rows=rows, mask=given, backend="reference" if backend == "reference" else "cpp")
            return v.detach(), torch.autograd.grad(v, x, grad_v)[0]

        # The sentences of the roomy pairs that are also in the others.
        same = torch.cat([torch.arange(len(pairs)), torch.arange(len(pairs)) + len(roomy)])
        wanted_v, wanted_grad = results(x, pairs, grad_v[same], mask if mask is None else mask[same])
        v, grad_x = results(behind(x, rows, math.nan), roomy, grad_v, mask)
        assert_zero_behind(grad_x, count)
        assert_equal_up_to_rounding([v[same], grad_x[:count]], [wanted_v, wanted_grad])


WRONG = [torch.tensor([3.0]), torch.tensor([3, 3]), torch.tensor(3)]
IMPOSSIBLE = [-(2**63), -1, 7, 2**63 - 1]


def test_a_wrong_number_of_filled_rows_when_pooling(cuda):
    """It is refused or, where it cannot be read, kept within the tensor."""
    operators, step = cuda.operators(), torch.arange(2) * 8
    x, addresses = torch.randn(6, 8), (torch.tensor([0]), step, torch.tensor([2]), None)
    results = operators["masked_pool"](x, *addresses)
    for wrong in WRONG:
        with pytest.raises(RuntimeError, match="filled must"):
            operators["masked_pool_backward"](*results, *addresses, 6, filled=wrong)
    for impossible in IMPOSSIBLE:
        operators["masked_pool_backward"](*results, *addresses, 6, filled=torch.tensor([impossible]))


@pytest.mark.interpreter
def test_a_wrong_number_of_filled_rows_in_local_inference():
    operators, (pairs, _) = torch.ops.esim_fast, random_case(0)
    a, b, _ = pairs.rows(4)
    x, addresses = torch.randn(len(pairs.tokens), 4), [(s.start, s.step, s.lengths, None) for s in (a, b)]
    arguments = x, *addresses[0], *addresses[1], a.max_length, b.max_length, False
    for wrong in WRONG:
        with pytest.raises(ValueError, match=r"^filled must be int64"):
            operators.local_inference_packed_triton(*arguments, filled=wrong)
    for impossible in IMPOSSIBLE:
        operators.local_inference_packed_triton(*arguments, filled=torch.tensor([impossible]))


@pytest.mark.parametrize(
    ("filled", "error", "message"),
    [
        (torch.tensor([3.0]), TypeError, r"^Rows\.filled must be an int64 tensor, got torch\.float32$"),
        (torch.tensor([3, 3]), ValueError, r"^Rows\.filled must have one entry, got 2$"),
        (torch.tensor(3), ValueError, r"^Rows\.filled must have one dimension, got shape \[\]$"),
        (torch.tensor([4]), ValueError, r"^rows\.filled = 4, but the lengths sum to 3$"),
        (torch.tensor([3]), ValueError, r"^rows\.filled = 3, but tokens lie after the first 3 rows$"),
    ],
)
def test_a_wrong_number_of_filled_rows_on_the_cpu(filled, error, message):
    rows = Rows.concatenated([2, 1], 4)
    assert masked_pool(torch.zeros(6, 4), rows=replace(rows, filled=torch.tensor([3]))).shape == (2, 8)
    with pytest.raises(error, match=message):
        masked_pool(torch.zeros(6, 4), rows=replace(rows, start=rows.start + 4, filled=filled))


def step(net, pairs, labels):
    """Logits, and the gradients of all parameters."""
    logits = net(pairs)
    loss = cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
    # Without words, not even the embedding has a part in the loss.
    return logits.detach(), *torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)


@pytest.mark.interpreter
@pytest.mark.usefixtures("cuda_pooling")
@pytest.mark.parametrize("part", range(25))
def test_steps_of_triton_and_cuda_kernels(part):
    """Steps of 200 random batches in random capacities equal those without."""
    torch.manual_seed(part)
    net = ESIM(5, 4, WORDS, 3, dropout=0.0, padding_idx=PADDING, backend="triton")
    with torch.no_grad():
        net.embedding.weight[PADDING] = 3.0  # the vector of padding has no effect
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if getattr(module, "backend", None) == "triton":
            module.backend = None
    for seed in range(8 * part, 8 * part + 8):
        pairs, roomy = random_case(seed)
        labels = torch.randint(3, (len(roomy),))
        labels[len(pairs) :] = -100
        wanted, *wanted_gradients = step(plain, pairs, labels[: len(pairs)])
        logits, *gradients = step(net, roomy, labels)
        assert_equal_up_to_rounding([logits[: len(pairs)], *gradients], [wanted, *wanted_gradients])

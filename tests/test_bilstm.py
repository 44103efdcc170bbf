"""The packed BiLSTM: the C++ kernel against torch.nn.LSTM, in fp64 and in the same dtype."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_as_exact_as_eager
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from esim_fast.ops import bilstm
from esim_fast.ops.bilstm import _in_training_mode

pytestmark = pytest.mark.promise("BiLSTM: as torch.nn.LSTM, forward and backward, on every kind of processor")


def batch_sizes_of(lengths):
    lengths = torch.tensor(lengths)
    return (lengths[:, None] > torch.arange(int(lengths.max()))).sum(0)


def make(lengths, input_size, hidden_size, seed=0, scale=1.0):
    """An LSTM, rows of packed sentences, batch sizes and the gradient of the states."""
    torch.manual_seed(seed)
    lstm = nn.LSTM(input_size, hidden_size, bidirectional=True)
    batch_sizes = batch_sizes_of(lengths)
    x = torch.randn(sum(lengths), input_size).mul_(scale).requires_grad_()
    return lstm, x, batch_sizes, torch.randn(sum(lengths), 2 * hidden_size)


def run(lstm, x, batch_sizes, grad_y, backend):
    """The states, and the gradients of x and of the parameters."""
    y = bilstm(lstm, x, batch_sizes, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y.to(y.dtype))]


def exactly(lstm, x, batch_sizes, grad_y):
    exact = copy.deepcopy(lstm).double()
    return run(exact, x.detach().double().requires_grad_(), batch_sizes, grad_y.double(), "reference")


def check(lstm, x, batch_sizes, grad_y):
    ours = run(lstm, x, batch_sizes, grad_y, "cpp")
    exact = exactly(lstm, x, batch_sizes, grad_y)
    for mine, wanted in zip(ours, exact, strict=True):
        # A sum of n products of magnitude s is off by about sqrt(n) eps s, and states pass that on: 100 is generous.
        assert float((mine - wanted).abs().max()) <= 100 * torch.finfo(torch.float32).eps * float(
            1 + wanted.abs().max()
        )
    return ours, exact


def test_cudnn_s_training_mode_changes_nothing_else():
    """How gradients are had in evaluation mode on a GPU, on the CPU, where PyTorch has them anyway."""
    lstm, x, batch_sizes, grad_y = make([9, 4, 4, 1], 5, 7)
    lstm.eval()
    y, expected = _in_training_mode(lstm, x, batch_sizes), lstm(PackedSequence(x, batch_sizes))[0].data
    assert torch.equal(y, expected)
    inputs = [x, *lstm.parameters()]
    gradients = (torch.autograd.grad(of, inputs, grad_y) for of in (y, expected))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients, strict=True))


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("training", [True, False])
    def test_as_torch_nn_lstm(self, training):
        lstm, x, batch_sizes, grad_y = make([30, 9, 4, 4, 1], 20, 24)
        exact = exactly(lstm, x, batch_sizes, grad_y)
        lstm.to("cuda").train(training)
        x = x.detach().cuda().requires_grad_()
        for mine, wanted in zip(run(lstm, x, batch_sizes, grad_y.cuda(), None), exact, strict=True):
            torch.testing.assert_close(mine.cpu().double(), wanted, rtol=1e-5, atol=1e-5)

    def test_gradients_do_not_underflow_in_bf16(self):
        """PyTorch's autocast runs cuDNN's LSTMs in fp16, where the least number is 6e-8."""
        lstm, x, batch_sizes, grad_y = make([30, 9, 4, 4, 1], 20, 24)
        grad_y *= 1e-9
        exact = exactly(lstm, x, batch_sizes, grad_y)
        lstm.to("cuda")
        x = x.detach().cuda().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            y = bilstm(lstm, x, batch_sizes)
        assert y.dtype == torch.bfloat16
        results = [y, *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y.cuda().bfloat16())]
        for mine, wanted in zip(results, exact, strict=True):
            assert (mine.cpu().double() - wanted).norm() < 0.02 * wanted.norm()


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=14)


def test_random_cases():
    families = [], [], []

    @settings(max_examples=100, deadline=None)
    @given(lengths, st.sampled_from([1, 5, 16, 33]), st.sampled_from([1, 3, 16, 17, 64, 70]), st.integers(0, 99))
    def collect(lengths, input_size, hidden_size, seed):
        case = make(lengths, input_size, hidden_size, seed, scale=1 + seed % 3)
        ours, exact = check(*case)
        for family, results in zip(families, (ours, run(*case, "reference"), exact), strict=True):
            family.extend(results)

    collect()
    assert_as_exact_as_eager(*families)


@pytest.mark.parametrize(
    ("lengths", "hidden_size"),
    [([82, 40, 3, 1], 300), ([14] * 64, 300), ([1], 300), ([1] * 13, 8), ([300], 5), (list(range(1, 40)), 128)],
    ids=str,
)
def test_shapes_of_real_batches(lengths, hidden_size):
    check(*make(lengths, 300, hidden_size))


def test_nothing_else_than_what_is_asked_for():
    lstm, x, batch_sizes, grad_y = make([5, 3], 6, 7)
    with torch.no_grad():
        assert not bilstm(lstm, x, batch_sizes).requires_grad
    lstm.requires_grad_(False)
    y = bilstm(lstm, x, batch_sizes)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    torch.testing.assert_close(grad_x, exactly(lstm.requires_grad_(), x, batch_sizes, grad_y)[1].float())
    lstm.weight_hh_l0.requires_grad_(False)
    bilstm(lstm, x.detach(), batch_sizes).backward(grad_y)
    assert lstm.weight_hh_l0.grad is None
    assert lstm.weight_ih_l0_reverse.grad is not None
    assert bilstm(lstm, x[:0], batch_sizes[:0]).shape == (0, 14)


def test_a_backward_pass_can_be_repeated():
    lstm, x, batch_sizes, grad_y = make([9, 4, 4], 6, 7)
    y = bilstm(lstm, x, batch_sizes)
    first = torch.autograd.grad(y, [x, *lstm.parameters()], grad_y, retain_graph=True)
    again = torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_bad_sentence_spoils_no_other():
    lstm, x, batch_sizes, _ = make([6, 4, 4, 1], 6, 20)
    clean = bilstm(lstm, x, batch_sizes).detach()
    first = batch_sizes.cumsum(0) - batch_sizes
    second = first[:4] + 1  # the second sentence's rows
    spoiled = x.detach().clone()
    spoiled[second[2], 0] = float("nan")
    y = bilstm(lstm, spoiled, batch_sizes).detach()
    others = torch.ones(len(x), dtype=torch.bool).index_fill(0, second, False)
    assert torch.equal(y[others], clean[others])
    assert y[second[2]].isnan().all()
    assert y[second[0], :20].isfinite().all()  # the forward direction has not met it yet


def test_the_number_of_threads_changes_nothing():
    lstm, x, batch_sizes, grad_y = make([12, 11, 9, 9, 9, 7, 7, 6, 5, 5, 5, 4, 4, 3, 2, 2, 1, 1, 1, 1], 10, 37)
    parts = [[], []]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            gates = [torch.randn(len(x), 4 * 37, generator=torch.Generator().manual_seed(d)) for d in (1, 2)]
            weights = [lstm.weight_hh_l0.detach(), lstm.weight_hh_l0_reverse.detach()]
            y, c = torch.ops.esim_fast.bilstm(*gates, *weights, batch_sizes)
            parts[0].append((y, c, *gates))
            parts[1].append(torch.ops.esim_fast.bilstm_backward(grad_y, y, c, *gates, *weights, batch_sizes))
    finally:
        torch.set_num_threads(before)
    for runs in parts:
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


# Prints the largest error of the gates' functions in units in the last place: a program of its own, because the
# processor is asked once.
ON_ONE_PROCESSOR = """
import torch, esim_fast
x = torch.cat([torch.linspace(-110, 110, 40_001), torch.logspace(-30, 0, 4_000), -torch.logspace(-30, 0, 4_000)])
gates = torch.stack([x, x, x, x], 1)
other = gates.clone()
wanted = torch.stack([x.double().sigmoid()] * 2 + [x.double().tanh(), x.double().sigmoid()], 1)
weight = torch.zeros(4, 1)
sizes = torch.tensor([len(x)])
y, c = torch.ops.esim_fast.bilstm(gates, other, weight, weight, sizes)
unit = torch.finfo(torch.float32).eps * wanted.abs() + 2.0**-149 / 2 + (wanted.abs() < 2.0**-125) * 2.0**-125
print(float(((gates - wanted).abs() / unit).max()))
special = torch.tensor([[float("nan")] * 4, [float("inf")] * 4, [-float("inf")] * 4])
y, c = torch.ops.esim_fast.bilstm(special, special.clone(), weight, weight, torch.tensor([3]))
print(special.tolist())
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_gate_functions_on_every_kind_of_processor(capability):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_PROCESSOR], capture_output=True, text=True, env=environment, check=True
    )
    worst, special = done.stdout.splitlines()
    assert float(worst) <= 4
    assert special == "[[nan, nan, nan, nan], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, -1.0, 0.0]]"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_kind_of_processor(capability):
    lines = "import test_bilstm as t; t.check(*t.make([9, 7, 7, 2, 2, 2, 1, 1], 12, 75)); print('right')"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, env=environment)
    assert done.stdout == "right\n", done.stderr


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype):
        lstm, x, batch_sizes, grad_y = make([20, 14, 9, 9, 3], 40, 32)
        exact = exactly(lstm, x, batch_sizes, grad_y)
        with torch.autocast("cpu", dtype):
            ours = run(lstm, x, batch_sizes, grad_y, "cpp")
        assert ours[0].dtype == dtype
        assert all(gradient.dtype == torch.float32 for gradient in ours[1:])
        for mine, wanted in zip(ours, exact, strict=True):
            assert float((mine - wanted).norm() / wanted.norm()) < 4 * torch.finfo(dtype).eps

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes_are_torchs_own(self, dtype):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        lstm, x = lstm.to(dtype), x.detach().to(dtype)
        wanted = lstm(PackedSequence(x, batch_sizes))[0].data
        assert torch.equal(bilstm(lstm, x, batch_sizes), wanted)
        with pytest.raises(ValueError, match=r"^backend='cpp' cannot run bilstm on cpu in torch\.\w+: possible here"):
            bilstm(lstm, x, batch_sizes, backend="cpp")


class TestIntegration:
    def test_opcheck(self):
        lstm, x, batch_sizes, grad_y = make([5, 3, 3], 6, 7)
        gates = [torch.randn(len(x), 28) for _ in range(2)]
        weights = [lstm.weight_hh_l0.detach(), lstm.weight_hh_l0_reverse.detach()]
        torch.library.opcheck(torch.ops.esim_fast.bilstm.default, (*gates, *weights, batch_sizes))
        y, c = torch.ops.esim_fast.bilstm(*gates, *weights, batch_sizes)
        arguments = (grad_y, y, c, *gates, *weights, batch_sizes)
        torch.library.opcheck(torch.ops.esim_fast.bilstm_backward.default, arguments)

    def test_compiled(self):
        lstm, x, batch_sizes, grad_y = make([5, 3, 3], 6, 7)
        compiled = torch.compile(bilstm, backend="aot_eager")  # a graph ends before an nn.LSTM, and another begins
        wanted = run(lstm, x, batch_sizes, grad_y, "cpp")
        y = compiled(lstm, x, batch_sizes)
        ours = [y.detach(), *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)]
        for mine, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(mine, other)

    def test_gradients_are_tensors_of_their_own(self):
        lstm, x, batch_sizes, grad_y = make([3, 2], 4, 5)
        gradients = torch.autograd.grad(bilstm(lstm, x, batch_sizes), [*lstm.parameters()], grad_y)
        before = [gradient.clone() for gradient in gradients]
        for gradient in gradients:
            gradient.mul_(2)
        assert all(torch.equal(after, 2 * old) for after, old in zip(gradients, before, strict=True))

    def test_forward_mode_is_refused_and_not_ignored(self):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        lstm.requires_grad_(False)
        x = x.detach()
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            torch.func.jvp(lambda x: bilstm(lstm, x, batch_sizes), (x,), (torch.ones_like(x),))

    def test_what_changes_an_lstm_is_kept(self):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        calls = []
        lstm.register_forward_hook(lambda *_: calls.append(1))
        bilstm(lstm, x, batch_sizes)
        assert calls
        with pytest.raises(ValueError, match="cannot run bilstm"):
            bilstm(lstm, x, batch_sizes, backend="cpp")

    def test_second_derivatives_raise(self):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        y = bilstm(lstm, x, batch_sizes)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            (gradient.square().sum() + y.sum()).backward()


class TestMistakes:
    def test_in_python(self):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        with pytest.raises(TypeError, match=r"^x must be a tensor, got list$"):
            bilstm(lstm, [1], batch_sizes)
        with pytest.raises(ValueError, match=r"^x must be \[N, 4\], got shape \[5, 3\]$"):
            bilstm(lstm, x[:, 1:], batch_sizes)
        with pytest.raises(ValueError, match="cannot run bilstm"):
            bilstm(nn.LSTM(4, 5, num_layers=2, bidirectional=True), x, batch_sizes, backend="cpp")
        with pytest.raises(ValueError, match=r"^batch_sizes sum up to 4, but x has 5 rows$"):
            bilstm(lstm, x, torch.tensor([2, 2]))

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ([2, 3], "never grow"),
            ([5, 0], "positive"),
            ([3, 1], "of the right shape"),
            ([], "T > 0"),
            ([-1, 6], "positive"),
        ],
        ids=str,
    )
    def test_in_direct_calls(self, sizes, message):
        lstm, *_ = make([3, 2], 4, 5)
        gates = [torch.randn(5, 20) for _ in range(2)]
        weights = [lstm.weight_hh_l0.detach(), lstm.weight_hh_l0_reverse.detach()]
        with pytest.raises(RuntimeError, match=message):
            torch.ops.esim_fast.bilstm(*gates, *weights, torch.tensor(sizes, dtype=torch.int64))

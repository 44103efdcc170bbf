"""The packed BiLSTM: the kernels against torch.nn.LSTM, in fp64 and in the same dtype."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from esim_fast.ops import bilstm
from esim_fast.ops.bilstm import _in_training_mode
from tests.ops.implementations import KERNELS
from tests.ops.numerics import assert_as_exact_as_eager
from tests.processes import output_of


def make(lengths, input_size, hidden_size, seed=0, scale=1.0):
    """An LSTM, rows of packed sentences, batch sizes and the gradient of the states."""
    torch.manual_seed(seed)
    lstm = nn.LSTM(input_size, hidden_size, bidirectional=True)
    batch_sizes = (torch.tensor(lengths)[:, None] > torch.arange(max(lengths))).sum(0)
    x = torch.randn(sum(lengths), input_size).mul_(scale).requires_grad_()
    return lstm, x, batch_sizes, torch.randn(sum(lengths), 2 * hidden_size)


def run(lstm, x, batch_sizes, grad_y, backend, device="cpu"):
    """The states, and the gradients of x and of the parameters, on the CPU."""
    if device != "cpu":
        lstm, x = copy.deepcopy(lstm).to(device), x.detach().to(device).requires_grad_()
    y = bilstm(lstm, x, batch_sizes, backend=backend)
    gradients = torch.autograd.grad(y, [x, *lstm.parameters()], grad_y.to(y.device, y.dtype))
    return [result.cpu() for result in (y.detach(), *gradients)]


def exactly(lstm, x, batch_sizes, grad_y):
    exact = copy.deepcopy(lstm).double()
    return run(exact, x.detach().double().requires_grad_(), batch_sizes, grad_y.double(), "reference")


def check(lstm, x, batch_sizes, grad_y, backend="cpp", device="cpu"):
    ours = run(lstm, x, batch_sizes, grad_y, backend, device)
    exact = exactly(lstm, x, batch_sizes, grad_y)
    for mine, wanted in zip(ours, exact, strict=True):
        # A sum of n products of magnitude s has an error of about sqrt(n) eps s. States propagate it; 100 is generous.
        allowed = 100 * torch.finfo(torch.float32).eps * (1 + wanted.abs().max())
        assert (mine - wanted).abs().max() <= allowed
    if backend == "cpp":  # without gradients, packed weights must be as exact
        with torch.no_grad():
            states = bilstm(lstm, x, batch_sizes, backend=backend)
        assert (states - exact[0]).abs().max() <= 200 * torch.finfo(torch.float32).eps
    return ours, exact


def test_cudnn_training_mode_changes_only_gradients():
    """The way to get gradients in evaluation mode on a GPU, tested on a CPU, where PyTorch supports them."""
    lstm, x, batch_sizes, grad_y = make([9, 4, 4, 1], 5, 7)
    lstm.eval()
    y, expected = _in_training_mode(lstm, x, batch_sizes), lstm(PackedSequence(x, batch_sizes))[0].data
    assert torch.equal(y, expected)
    inputs = [x, *lstm.parameters()]
    gradients = (torch.autograd.grad(states, inputs, grad_y) for states in (y, expected))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients, strict=True))


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("backend", ["triton", "cuda", "cudnn"])
    @pytest.mark.parametrize("training", [True, False])
    def test_same_as_nn_lstm(self, training, backend):
        lstm, x, batch_sizes, grad_y = make([30, 9, 4, 4, 1], 20, 24)
        exact = exactly(lstm, x, batch_sizes, grad_y)
        for mine, wanted in zip(run(lstm.train(training), x, batch_sizes, grad_y, backend, "cuda"), exact, strict=True):
            torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("backend", ["triton", "cuda", "cudnn"])
    def test_gradients_do_not_underflow_in_bf16(self, backend):
        """PyTorch's autocast runs cuDNN's LSTMs in fp16, whose smallest number is 6e-8."""
        lstm, x, batch_sizes, grad_y = make([30, 9, 4, 4, 1], 20, 24)
        grad_y *= 1e-9
        exact = exactly(lstm, x, batch_sizes, grad_y)
        with torch.autocast("cuda", torch.bfloat16):
            results = run(lstm, x, batch_sizes, grad_y, backend, "cuda")
        assert results[0].dtype == torch.bfloat16
        for mine, wanted in zip(results, exact, strict=True):
            assert (mine.double() - wanted).norm() < 0.02 * wanted.norm()

    @pytest.mark.parametrize("backend", ["triton", "cuda"])
    def test_the_same_bits_every_time(self, backend):
        """A step reads what all threads wrote in the previous one, which needs a barrier."""
        lstm, x, batch_sizes, grad_y = make(sorted([*range(1, 41)] * 20, reverse=True), 300, 300)
        first = run(lstm, x, batch_sizes, grad_y, backend, "cuda")
        for _ in range(30):
            again = run(lstm, x, batch_sizes, grad_y, backend, "cuda")
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

    @pytest.mark.parametrize("ours", ["triton", "cuda"])
    def test_tf32(self, ours):
        lstm, x, batch_sizes, grad_y = make([30, 9, 4, 4, 1], 20, 24)
        exact = exactly(lstm, x, batch_sizes, grad_y)
        torch.backends.cudnn.allow_tf32 = True
        try:
            results = [run(lstm, x, batch_sizes, grad_y, backend, "cuda") for backend in (ours, "cudnn")]
        finally:
            torch.backends.cudnn.allow_tf32 = False
        for mine, cudnn, wanted in zip(*results, exact, strict=True):
            assert (mine - wanted).norm() <= 2 * (cudnn - wanted).norm() + 1e-5 * wanted.norm()


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=40)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_random_cases(backend, device):
    families = [], [], []
    # The interpreter is a hundred times slower than C++, and a GPU compiles for each number of units.
    sizes = [1, 3, 16, 17, 64, 70] if device == "cpu" else [3, 16, 70]

    @settings(max_examples=100 if backend == "cpp" else 20 if device == "cuda" else 8)
    @given(lengths, st.sampled_from([1, 5, 16, 33]), st.sampled_from(sizes), st.integers(0, 99))
    def collect(lengths, input_size, hidden_size, seed):
        case = make(sorted(lengths, reverse=True), input_size, hidden_size, seed, scale=1 + seed % 3)
        ours, exact = check(*case, backend, device)
        for family, results in zip(families, (ours, run(*case, "reference"), exact), strict=True):
            family.extend(results)

    collect()
    assert_as_exact_as_eager(*families)


SHAPES = [([82, 40, 3, 1], 300), ([14] * 64, 300), ([1], 300), ([1] * 13, 8), ([300], 5), (list(range(1, 40)), 128)]
NAMES = ["ragged", "64 sentences", "one word", "words", "one sentence", "39 lengths"]


@pytest.mark.parametrize(("backend", "device"), [KERNELS[0], KERNELS[2]])
@pytest.mark.parametrize(("lengths", "hidden_size"), SHAPES, ids=NAMES)
def test_shapes_of_real_batches(lengths, hidden_size, backend, device):
    check(*make(lengths, 300, hidden_size), backend, device)


@pytest.mark.parametrize(("backend", "device"), KERNELS[1:])
@pytest.mark.parametrize(
    ("lengths", "hidden_size"),
    # A program handles 16 sentences (the last one the rest), 64 units at a time.
    [([4, 3, 1], 300), ([2] * 33, 130), ([1], 300), ([40, 35], 5), ([3, *[2] * 40, *[1] * 20], 8)],
    ids=["300 units", "33 sentences", "one word", "long", "61 sentences"],
)
def test_shapes_of_triton_s_programs(lengths, hidden_size, backend, device):
    check(*make(lengths, 30, hidden_size), backend, device)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_only_the_requested_results(backend, device):
    lstm, x, batch_sizes, grad_y = make([5, 3, 3], 6, 7)
    exact = exactly(lstm, x, batch_sizes, grad_y)
    lstm, x, grad_y = lstm.to(device), x.detach().to(device).requires_grad_(), grad_y.to(device)
    with torch.no_grad():
        assert not bilstm(lstm, x, batch_sizes, backend=backend).requires_grad
    lstm.requires_grad_(False)
    y = bilstm(lstm, x, batch_sizes, backend=backend)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    torch.testing.assert_close(grad_x.cpu(), exact[1].float())
    lstm.requires_grad_()
    y = bilstm(lstm, x, batch_sizes, backend=backend)
    first = torch.autograd.grad(y, [x, *lstm.parameters()], grad_y, retain_graph=True)
    again = torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)  # backward can be repeated
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    lstm.weight_hh_l0.requires_grad_(False)
    bilstm(lstm, x.detach(), batch_sizes, backend=backend).backward(grad_y)
    assert lstm.weight_hh_l0.grad is None
    assert lstm.weight_ih_l0_reverse.grad is not None
    assert bilstm(lstm, x[:0], batch_sizes[:0], backend=backend).shape == (0, 14)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_batched_gradients(backend, device):
    lstm, x, batch_sizes, grad_y = make([5, 3, 3], 6, 7)
    lstm, x, grad_y = lstm.to(device), x.detach().to(device).requires_grad_(), grad_y.to(device)
    y, inputs = bilstm(lstm, x, batch_sizes, backend=backend), [x, *lstm.parameters()]
    together = torch.autograd.grad(y, inputs, torch.stack([grad_y, -grad_y]), is_grads_batched=True, retain_graph=True)
    for both, one in zip(together, torch.autograd.grad(y, inputs, grad_y), strict=True):
        torch.testing.assert_close(both, torch.stack([one, -one]))


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_bad_sentence_affects_no_other(backend, device):
    lstm, x, batch_sizes, _ = make([6, 4, 4, 1], 6, 20)
    lstm, x = lstm.to(device), x.detach().to(device)
    clean = bilstm(lstm, x, batch_sizes, backend=backend).detach().cpu()
    second = (batch_sizes.cumsum(0) - batch_sizes)[:4] + 1  # rows of the second sentence
    x[second[2], 0] = float("nan")
    y = bilstm(lstm, x, batch_sizes, backend=backend).detach().cpu()
    others = torch.ones(len(x), dtype=torch.bool).index_fill(0, second, False)
    assert torch.equal(y[others], clean[others])
    assert y[second[2]].isnan().all()
    assert y[second[0], :20].isfinite().all()  # the forward direction has not reached it yet


@pytest.mark.parametrize("backend", ["cpp", "reference", pytest.param("triton", marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("sizes", [[2, 3], [1, 4], [0, 5], [5, 0], [6, -1]], ids=str)
def test_impossible_sizes(sizes, backend):
    lstm, x, _, _ = make([5], 6, 7)
    with pytest.raises(
        ValueError, match=f"^batch_sizes must be positive and non-increasing, got {re.escape(str(sizes))}$"
    ):
        bilstm(lstm, x, torch.tensor(sizes), backend=backend)


@pytest.mark.interpreter
@pytest.mark.parametrize("first_row", [[0, 1], [0, 0], [3, 1], [0, 7], [-5, 2**62]], ids=str)
def test_a_wrong_first_row_stays_in_bounds(first_row):
    """Whatever its values, nothing is written past the cells' gradients."""
    from esim_fast.ops.triton import bilstm

    rows, sentences, H = 8, 2, 3
    gates, weights = torch.randn(rows, 8 * H), torch.randn(2, 4 * H, 4)
    y, c, grad_y, previous = (torch.randn(rows, 2 * H) for _ in range(4))
    arguments = grad_y, y, c, gates, weights, torch.tensor(first_row), torch.empty_like(gates), previous
    planned = bilstm.plan_backward(*arguments, sentences, "tf32x3")
    at = planned.kernel.arg_names.index("grad_c")
    there = len(planned.arguments[at])
    memory = torch.full((there + 32, 2 * H), 7.0)
    planned._replace(arguments=(*planned.arguments[:at], memory[:there], *planned.arguments[at + 1 :])).start()
    assert (memory[there:] == 7.0).all()


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("input_size", "hidden_size"), [(1, 1), (7, 5), (600, 8), (30, 130)])
def test_weights_packed_by_the_kernel(input_size, hidden_size, dtype, device):
    """They have the bits that PyTorch's operators give."""
    lstm, *_ = make([1], input_size, hidden_size)
    weights = [weight.detach().to(device) for direction in lstm.all_weights for weight in direction]
    if device == "cpu" and dtype == torch.bfloat16:  # the interpreter does not round, so these are numbers in bf16
        weights = [weight.mul(64).round().div(64) for weight in weights]
    w_ih, w_hh, b_ih, b_hh = (torch.cat(both) for both in zip(weights[:4], weights[4:], strict=True))
    pitch = -(-hidden_size // 8) * 8
    padded = nn.functional.pad(w_hh, (0, pitch - hidden_size)).view(2, -1, pitch)
    wanted = [whole.to(dtype) for whole in (w_ih, b_ih + b_hh, padded)]
    results = [torch.full_like(whole, torch.nan) for whole in wanted]
    torch.ops.esim_fast.bilstm_triton_weights(*weights, *results)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results, wanted, strict=True))


@pytest.mark.interpreter
def test_weights_of_wrong_shapes():
    lstm, *_ = make([1], 6, 5)
    weights = [weight.detach() for direction in lstm.all_weights for weight in direction]
    results = torch.empty(40, 6), torch.empty(40), torch.empty(2, 20, 8)
    for index, wrong, message in (
        (
            4,
            torch.zeros(20, 7),
            r"^expected \[20, 6\] in torch\.float32 on cpu, got \[20, 7\] in torch\.float32 on cpu$",
        ),
        (1, weights[1].half(), r"^expected \[20, 5\] .* got \[20, 5\] in torch\.float16 on cpu$"),
        (
            9,
            torch.empty(40).bfloat16(),
            r"^expected \[40\] in torch\.float32 on cpu, got \[40\] in torch\.bfloat16 on cpu$",
        ),
        (10, torch.empty(2, 20, 4), r"rows of at least 5 for 5 units$"),
        (8, torch.empty(6, 40).t(), r"^expected contiguous results"),
    ):
        arguments = [*weights, *results]
        arguments[index] = wrong
        with pytest.raises(ValueError, match=message):
            torch.ops.esim_fast.bilstm_triton_weights(*arguments)


class Layer(nn.Module):
    """A function of an LSTM as a module with parameters."""

    def __init__(self, lstm, run):
        super().__init__()
        self.lstm, self.run = lstm, run

    def forward(self, x):
        return self.run(self.lstm, x)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["reference", None, "cuDNN's training mode"])
def test_replaced_parameters(backend, training, device):
    """As torch.func.functional_call replaces them."""
    lstm, x, batch_sizes, _ = make([5, 3, 3], 6, 7)
    lstm, x = lstm.train(training).to(device), x.detach().to(device)
    others = {f"lstm.{name}": torch.full_like(x, 0.1).requires_grad_() for name, x in lstm.named_parameters()}

    def ours(lstm, x):
        if backend == "cuDNN's training mode":
            return _in_training_mode(lstm, x, batch_sizes)
        return bilstm(lstm, x, batch_sizes, backend=backend)

    def theirs(lstm, x):
        return lstm.train()(PackedSequence(x, batch_sizes))[0].data  # cuDNN needs training mode for gradients

    results = []
    for run in (ours, theirs):
        y = torch.func.functional_call(Layer(lstm, run), others, (x,))
        results.append([y, *torch.autograd.grad(y.sum(), [*others.values()])])
    assert results[0][0].ne(ours(lstm, x)).any()
    torch.testing.assert_close(*results)


# Prints the largest error of the gates' functions in units in the last place. It is a separate program, because the
# processor is detected once per process.
ON_ONE_PROCESSOR = """
import torch, esim_fast.ops
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
    worst, special = output_of(ON_ONE_PROCESSOR, ATEN_CPU_CAPABILITY=capability).splitlines()
    assert float(worst) <= 4
    assert special == "[[nan, nan, nan, nan], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, -1.0, 0.0]]"


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_kind_of_processor(capability):
    lines = "from tests.ops import test_bilstm as t; t.check(*t.make([9, 7, 7, 2, 2, 2, 1, 1], 12, 75)); print('right')"
    assert output_of(lines, ATEN_CPU_CAPABILITY=capability) == "right\n"


ELSEWHERE = r"cannot run bilstm on cpu in torch\.float32; available here"


class TestPrecision:
    @pytest.mark.parametrize(("backend", "device"), KERNELS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype, backend, device):
        lstm, x, batch_sizes, grad_y = make([20, 14, 9, 9, 3], 40, 32)
        exact = exactly(lstm, x, batch_sizes, grad_y)
        with torch.autocast(device, dtype):
            ours = run(lstm, x, batch_sizes, grad_y, backend, device)
            nothing = bilstm(lstm.to(device), x[:0].to(device), batch_sizes[:0], backend=backend)
        assert ours[0].dtype == nothing.dtype == dtype
        assert all(gradient.dtype == torch.float32 for gradient in ours[1:])
        for mine, wanted in zip(ours, exact, strict=True):
            assert float((mine - wanted).norm() / wanted.norm()) < 4 * torch.finfo(dtype).eps

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_dtypes_are_torchs_own(self, dtype):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        lstm, x = lstm.to(dtype), x.detach().to(dtype)
        wanted = lstm(PackedSequence(x, batch_sizes))[0].data
        assert torch.equal(bilstm(lstm, x, batch_sizes), wanted)
        with pytest.raises(ValueError, match=r"^backend='cpp' cannot run bilstm on cpu in torch\.\w+; available here"):
            bilstm(lstm, x, batch_sizes, backend="cpp")


class TestIntegration:
    def test_opcheck(self):
        lstm, x, batch_sizes, grad_y = make([5, 3, 3], 6, 7)
        gates = [torch.randn(len(x), 28) for _ in range(2)]
        weights = [lstm.weight_hh_l0.detach(), lstm.weight_hh_l0_reverse.detach()]
        torch.library.opcheck(torch.ops.esim_fast.bilstm.default, (*gates, *weights, batch_sizes))
        y, c = torch.ops.esim_fast.bilstm(*gates, *weights, batch_sizes)
        packed = torch.ops.esim_fast.bilstm_pack(*weights)
        torch.library.opcheck(torch.ops.esim_fast.bilstm_pack.default, tuple(weights))
        torch.library.opcheck(torch.ops.esim_fast.bilstm_states.default, (torch.cat(gates, 1), packed, batch_sizes))
        arguments = (grad_y, y, c, *gates, *weights, batch_sizes)
        torch.library.opcheck(torch.ops.esim_fast.bilstm_backward.default, arguments)

    def test_compiled(self):
        lstm, x, batch_sizes, grad_y = make([5, 3, 3], 6, 7)
        compiled = torch.compile(bilstm)  # the graph breaks at an nn.LSTM
        wanted = run(lstm, x, batch_sizes, grad_y, "cpp")
        y = compiled(lstm, x, batch_sizes)
        torch.testing.assert_close([y, *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)], wanted)

    def test_compiled_as_one_graph(self):
        lstm, x, batch_sizes, _ = make([5, 3, 3], 6, 7)
        with torch._dynamo.config.patch(allow_rnn=True):
            compiled = torch.compile(bilstm, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(lstm, x, batch_sizes), bilstm(lstm, x, batch_sizes))

    def test_gradients(self):
        """They are separate tensors; other derivatives raise and are not ignored."""
        lstm, x, batch_sizes, grad_y = make([3, 2], 4, 5)
        y = bilstm(lstm, x, batch_sizes)
        gradients = torch.autograd.grad(y, [*lstm.parameters()], grad_y, retain_graph=True)
        before = [gradient.clone() for gradient in gradients]
        for gradient in gradients:
            gradient.mul_(2)
        assert all(torch.equal(after, 2 * old) for after, old in zip(gradients, before, strict=True))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            (gradient.square().sum() + y.sum()).backward()
        lstm.requires_grad_(False)
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            torch.func.jvp(lambda x: bilstm(lstm, x, batch_sizes), (x.detach(),), (torch.ones_like(x),))

    def test_customized_lstms(self):
        lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
        calls = []
        lstm.register_forward_hook(lambda *_: calls.append(1))
        bilstm(lstm, x, batch_sizes)
        assert calls
        with pytest.raises(ValueError, match="cannot run bilstm"):
            bilstm(lstm, x, batch_sizes, backend="cpp")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1]}, TypeError, r"^x must be a tensor, got list$"),
        ({"x": torch.zeros(5, 3)}, ValueError, r"^x must be \[N, 4\], got shape \[5, 3\]$"),
        ({"lstm": nn.LSTM(4, 5, 2, bidirectional=True), "backend": "cpp"}, ValueError, "cannot run bilstm"),
        ({"batch_sizes": torch.tensor([2, 2])}, ValueError, r"^batch_sizes must sum to the 5 rows of x, got 4$"),
        ({"backend": "cudnn"}, ValueError, f"^backend='cudnn' {ELSEWHERE}: 'cpp'.* 'reference'$"),
    ],
)
def test_mistakes(changes, error, message):
    lstm, x, batch_sizes, _ = make([3, 2], 4, 5)
    with pytest.raises(error, match=message):
        bilstm(**{"lstm": lstm, "x": x, "batch_sizes": batch_sizes, **changes})

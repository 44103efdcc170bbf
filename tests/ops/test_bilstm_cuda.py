"""The persistent CUDA kernels of the BiLSTM, compiled for the CPU: every step, and every schedule of their threads."""

import copy
import itertools
import math
import random
import sys
from dataclasses import dataclass, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esim_fast import ESIM, pack_pairs
from esim_fast.ops import backends, bilstm, bilstm_backends, persistent
from tests.ops import bilstm_steps, test_bilstm
from tests.ops.cuda_on_cpu import NAMESPACE, cuda_on_cpu
from tests.ops.numerics import assert_as_exact_as_eager

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
POLICIES, SEEDS = 7, 9  # of fake_cuda/scheduler.h
MANY = 10**6


@pytest.fixture(scope="session")
def cuda(once):
    return cuda_on_cpu(once, "bilstm_cuda")


@pytest.fixture(autouse=True)
def _gpu(cuda, poisoned):
    """A large GPU with clusters, on which unwritten results are NaN."""
    cuda.set(multiprocessors=MANY, capability=90, policy=0, seed=0)
    cuda.launches()


def blocks_of(units):
    """How many blocks share a layer: each takes up to 5 groups of 8 units, or 4 of a wide layer."""
    groups = math.ceil(units / 8)
    return math.ceil(groups / math.ceil(groups / math.ceil(groups / (5 if units <= 320 else 4))))


@dataclass(frozen=True)
class Case:
    """A batch and a GPU."""

    units: int
    precision: str
    sentences: int
    lengths: str
    spare: int  # rows and time steps that the tensors have beyond the batch
    exchange: str
    teams: int  # that the GPU has room for
    policy: int

    def __str__(self):
        return "-".join(map(str, vars(self).values()))

    def possible(self):
        """Larger layers in fp32, and fp32 on GPUs without clusters, do not fit the registers and shared memory."""
        fits = self.precision in ("bf16", "fp16") or (self.units <= 320 and self.exchange == "clusters")
        work = self.units**2 * self.sentences * max(self.all_lengths())
        return fits and work < 6e7  # a few seconds

    def all_lengths(self):
        draw = random.Random(self.sentences)
        kinds = {
            "equal": lambda _: 2,
            "one of 64": lambda number: draw.randint(1, 2) if number else 64,
            "ragged": lambda _: draw.choice([0, 0, 1, 2, 3, 5]),
            "words": lambda _: 1,
        }
        return [kinds[self.lengths](number) for number in range(self.sentences)]

    def set_up(self, cuda):
        room = self.teams * blocks_of(self.units) if self.teams < MANY else MANY
        capability = 90 if self.exchange == "clusters" else 80
        cuda.set(multiprocessors=room, capability=capability, policy=self.policy, seed=self.units)


CHOICES = {
    "units": [1, 7, 64, 77, 128, 200, 256, 300, 511, 512],
    "precision": [*DTYPES],
    "sentences": [1, 8, 13, 40, 64, 200],
    "lengths": ["equal", "one of 64", "ragged", "words"],
    "spare": [0, 5],
    "exchange": ["clusters", "grid"],
    "teams": [2, 5, MANY],
    "policy": [*range(POLICIES)],
}


def pairwise():
    """Cases in which every two possible values of two fields occur together."""
    draw = random.Random(0)
    names = [field.name for field in fields(Case)]

    def drawn():
        while not (case := Case(*(draw.choice(CHOICES[name]) for name in names))).possible():
            pass
        return case

    def pairs(case):
        values = [(name, getattr(case, name)) for name in names]
        return set(itertools.combinations(values, 2))

    pool = [drawn() for _ in range(3000)]
    missing = set().union(*map(pairs, pool))
    cases = []
    while missing:
        cases.append(max(pool, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(cases[-1])
    return cases


@dataclass
class Batch:
    """Random arguments of the operators. What lies beyond the batch is NaN, or no row."""

    rows: bilstm_steps.Rows
    inputs: torch.Tensor  # [N, 2, H, 4], products with the input
    weights: torch.Tensor  # [2, 4, H, H]
    grad_y: torch.Tensor  # [N, 2, H]
    precision: str
    spare: int
    sentences: int

    @classmethod
    def draw(cls, lengths, units, precision, spare=0, seed=0):
        generator, dtype = torch.Generator().manual_seed(seed), DTYPES[precision]
        rows = bilstm_steps.Rows(lengths)

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        inputs, grad_y = normal(rows.count, 2, units, 4).to(dtype), normal(rows.count, 2, units).to(dtype)
        weights = 1.5 * normal(2, 4, units, units) / units**0.5
        return cls(rows, inputs, weights, grad_y, precision, spare, sum(length > 0 for length in lengths))

    def padded(self, x):
        """``[N, 2, ...]`` as ``[N + spare, ...]``."""
        return torch.cat([x.flatten(1), x.new_full((self.spare, math.prod(x.shape[1:])), math.nan)])

    def layer(self):
        """The arguments that both operators have."""
        units = self.weights.shape[-1]
        first_row = torch.cat([self.rows.first, torch.full((self.spare,), -(2**40))])
        sizes = torch.tensor([self.rows.count, len(self.rows.first)]) if self.spare else None
        weights = self.weights.reshape(2, 4 * units, units)
        return weights[0].clone(), weights[1].clone(), first_row, sizes, self.sentences, self.precision == "tf32"

    def run(self, cuda):
        """The results of both operators: gates, y, c, previous and the gates' gradients."""
        forward, backward = cuda.operators()["bilstm_cuda"], cuda.operators()["bilstm_cuda_backward"]
        gates = self.padded(self.inputs)
        y, c, previous = forward(gates, *self.layer())
        grad_gates = backward(self.padded(self.grad_y), c, gates, *self.layer())
        return gates, y, c, previous, grad_gates


def assert_every_step(batch, results):
    count, units = batch.rows.count, batch.weights.shape[-1]
    for rest in (results[1], results[3], results[4]):
        assert (rest[count:] == 0).all(), "rows behind the batch are not clear"
    gates, y, c, previous, grad_gates = (
        result[:count].view(count, 2, units, *[4] * (result.shape[1] > 2 * units)) for result in results
    )
    exact = bilstm_steps.states(batch.rows, batch.inputs, batch.weights, y, c, batch.precision)
    exact_grad = bilstm_steps.gradients(batch.rows, batch.grad_y, gates, c, batch.weights, grad_gates, batch.precision)
    assert torch.equal(previous.double(), exact[3])
    # A tanh in bf16 has a relative error of 2^-11, and some gates are computed from two.
    function = 2.0**-10 if batch.precision == "bf16" else 2.0**-20
    rounding = 0.51 * torch.finfo(gates.dtype).eps
    for name, mine, wanted, eps in (
        ("gates", gates, exact[0], rounding),
        ("cells", c, exact[1], 0),
        ("states", y, exact[2], rounding),
        ("gradients", grad_gates, exact_grad, rounding),
    ):
        scale = function * (2 if name == "gradients" else 1)
        excess = (mine.double() - wanted).abs() - (eps * wanted.abs() + scale * (1 + wanted.abs()))
        assert (excess <= 0).all(), f"{name}: {excess.max():.1e} too far away"


@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_every_step(cuda, case):
    case.set_up(cuda)
    batch = Batch.draw(case.all_lengths(), case.units, case.precision, case.spare, seed=case.units)
    assert_every_step(batch, batch.run(cuda))
    together = "blocks in clusters" if case.exchange == "clusters" else "blocks together"
    assert all(together in launch for launch in cuda.launches())


@st.composite
def cases(draw):
    return Case(*(draw(st.sampled_from(CHOICES[field.name])) for field in fields(Case)))


def test_random_cases(cuda):
    """More of them in the profile ``nightly``."""

    @settings(max_examples=max(1, settings.default.max_examples // 10))
    @given(cases().filter(Case.possible), st.integers(0, 10**6))
    def holds(case, seed):
        case.set_up(cuda)
        cuda.set(seed=seed)
        batch = Batch.draw(case.all_lengths(), case.units, case.precision, case.spare, seed)
        assert_every_step(batch, batch.run(cuda))

    holds()


class TestSchedules:
    """The same bits, whoever goes on and whenever what blocks send to each other arrives."""

    @pytest.mark.parametrize(
        ("units", "precision", "lengths", "exchange", "teams"),
        [
            # Teams of two blocks: one that takes two groups of 8 sentences, in turn, of an even number of steps each,
            (77, "bf16", [*[4, 4, 3, 3, 2, 2, 2, 1], *[4, 4, 3, 2]], "clusters", MANY),
            # of 16 sentences, then of 64,
            (77, "fp16", [5, 4, 3, 3, 3, 2, 2, 2, 1, 1], "clusters", 2),
            (77, "bf16", [*[3] * 60, *[2] * 8], "clusters", 2),
            (77, "tf32", [*[4] * 16, *[3] * 16, 1], "clusters", 2),
            (60, "fp32", [3, 3, 2, 2, 1, 1], "clusters", MANY),
            # and the same in a grid.
            (77, "bf16", [5, 4, 3, 3, 2, 2, 2, 1, 1], "grid", MANY),
            (77, "fp16", [*[3] * 60, *[2] * 8], "grid", 2),
            # One block, three of them, and many small ones.
            (40, "bf16", [6, 5, 5, 2, 1], "clusters", 2),
            (100, "bf16", [6, 6, 5, 2, 1], "clusters", 2),
            (330, "fp16", [3, 3, 2], "clusters", 2),
        ],
    )
    def test_same_bits(self, cuda, units, precision, lengths, exchange, teams):
        case = Case(units, precision, len(lengths), "", 2, exchange, teams, 0)
        case.set_up(cuda)
        batch = Batch.draw(lengths, units, precision, spare=2)
        first = batch.run(cuda)
        assert_every_step(batch, first)
        few = units > 320 or len(lengths) > 20
        for policy, seed in itertools.product(range(POLICIES), range(2 if few else SEEDS)):
            cuda.set(policy=policy, seed=seed)
            for mine, wanted in zip(batch.run(cuda), first, strict=True):
                count = batch.rows.count
                assert torch.equal(mine[:count], wanted[:count]), f"policy {policy}, seed {seed}"


class TestNumbersInDeviceMemory:
    """They are not read back to be checked, so kernels keep within the tensors."""

    @pytest.mark.parametrize("exchange", ["clusters", "grid"])
    @pytest.mark.parametrize("first_row", [[0, 1], [3, 1], [0, 7], [-5, 2**62]], ids=str)
    @pytest.mark.parametrize("sizes", [None, [0, 0], [-1, -1], [2**40, 2**40], [8, 1], [3, 2]], ids=str)
    def test_impossible_ones(self, cuda, exchange, first_row, sizes):
        Case(9, "bf16", 8, "", 0, exchange, 2, 0).set_up(cuda)
        batch = Batch.draw([2, 2, 1, 1, 1, 1], 9, "bf16")
        weight, weight_reverse, _, _, sentences, tf32 = batch.layer()
        given = weight, weight_reverse, torch.tensor(first_row), sizes and torch.tensor(sizes), sentences, tf32
        gates = torch.full((24, 72), 7.0).bfloat16()
        gates[8:16] = batch.padded(batch.inputs)
        forward, backward = cuda.operators()["bilstm_cuda"], cuda.operators()["bilstm_cuda_backward"]
        _, c, _ = forward(gates[8:16], *given)
        backward(batch.padded(batch.grad_y), c, gates[8:16], *given)
        assert (gates[:8] == 7).all()
        assert (gates[16:] == 7).all()

    def test_nothing(self, cuda):
        for count in (0, 4):
            batch = Batch.draw([0, 0], 9, "bf16", spare=count)
            _, y, _, previous, grad_gates = batch.run(cuda)
            for result in (y, previous, grad_gates):
                assert result.shape[0] == count
                assert (result == 0).all()


class TestRoom:
    @pytest.mark.parametrize(
        ("units", "precision", "capability", "multiprocessors", "expected"),
        [
            (300, "bf16", 90, 16, "16 blocks in clusters of 8"),  # of 64 sentences
            (300, "bf16", 90, 132, "80 blocks in clusters of 8"),  # of 16
            (300, "bf16", 90, MANY, "160 blocks in clusters of 8"),  # of 8
            (300, "tf32", 90, 132, "80 blocks in clusters of 8"),
            (300, "bf16", 90, 8, "16 blocks in clusters of 8"),  # one after the other
            (512, "fp16", 90, 16, "32 blocks in clusters of 16"),
            (300, "bf16", 80, 108, "80 blocks together in clusters of 1"),
            (300, "bf16", 80, 16, "16 blocks together in clusters of 1"),
            (300, "fp32", 90, 7, None),
            (300, "bf16", 80, 15, None),
            (300, "fp32", 80, 108, None),
            (300, "bf16", 75, 72, None),
            (8, "bf16", 75, 72, None),
        ],
    )
    def test_what_is_launched(self, cuda, units, precision, capability, multiprocessors, expected):
        """Nothing that would wait for ever."""
        cuda.set(capability=capability, multiprocessors=multiprocessors)
        batch = Batch.draw([1] * 80, units, precision)
        if expected:
            batch.run(cuda)
            assert cuda.launches()[0] == expected
        else:
            with pytest.raises(RuntimeError, match=f"no room for the blocks of a layer of {units} units"):
                batch.run(cuda)
        half = precision in ("bf16", "fp16")
        assert cuda.operators()["bilstm_cuda_fits"](0, half, units) == (expected is not None)


ARGUMENTS = "gates", "weight", "weight_reverse", "first_row", "sizes", "sentences", "tf32"


@pytest.mark.parametrize("operator", ["bilstm_cuda", "bilstm_cuda_backward"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": lambda x: x[0]}, r"needs weights \[4H, H\]"),
        ({"weight": lambda x: x[1:]}, r"needs weights \[4H, H\]"),
        ({"weight": Tensor.double}, r"two contiguous fp32 weights \[36, 9\]"),
        ({"weight_reverse": lambda x: x[1:]}, r"two contiguous fp32 weights \[36, 9\]"),
        ({"weight_reverse": lambda x: x.t().contiguous().t()}, r"two contiguous fp32 weights \[36, 9\]"),
        ({"weight": lambda _: torch.zeros(2052, 513)}, "supports up to 512 units here, got 513"),
        ({"gates": Tensor.double}, "supports float32, float16 and bfloat16"),
        ({"gates": lambda x: x[:, :-1]}, r"contiguous gates \[N, 72\] that begin at 16 bytes"),
        ({"gates": lambda x: x.t().contiguous().t()}, r"contiguous gates \[N, 72\] that begin at 16 bytes"),
        (
            {"gates": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)},
            r"contiguous gates \[N, 72\] that begin at 16 bytes",
        ),
        ({"first_row": Tensor.int}, r"contiguous int64 first_row \[T\]"),
        ({"first_row": lambda x: x[:0]}, r"contiguous int64 first_row \[T\]"),
        ({"first_row": lambda x: x[None]}, r"contiguous int64 first_row \[T\]"),
        ({"sizes": lambda _: torch.tensor([3])}, r"contiguous int64 sizes \[2\]"),
        ({"sizes": lambda _: torch.tensor([3, 3], dtype=torch.int32)}, r"contiguous int64 sizes \[2\]"),
        ({"sentences": lambda _: 9}, "has room for 8 rows, got 9 sentences"),
        ({"sentences": lambda _: -1}, "has room for 8 rows, got -1 sentences"),
    ],
)
def test_wrong_arguments(cuda, operator, changes, message):
    batch = Batch.draw([2, 2, 1, 1, 1, 1], 9, "bf16")
    given = dict(zip(ARGUMENTS, (batch.padded(batch.inputs), *batch.layer()), strict=True))
    for name, change in changes.items():
        given[name] = change(given[name])
    if operator == "bilstm_cuda_backward":
        states = {"grad_y": torch.zeros(8, 18).bfloat16(), "c": torch.zeros(8, 18)}
        given = states | given
    with pytest.raises(RuntimeError, match=message):
        cuda.operators()[operator](*given.values())


@pytest.mark.parametrize("name", ["grad_y", "c"])
@pytest.mark.parametrize("change", [lambda x: x[1:], lambda x: x[:, 1:], Tensor.double, lambda x: x[None]])
def test_wrong_arguments_of_the_gradient(cuda, name, change):
    batch = Batch.draw([2, 2, 1, 1, 1, 1], 9, "bf16")
    states = {"grad_y": torch.zeros(8, 18).bfloat16(), "c": torch.zeros(8, 18)}
    states[name] = change(states[name])
    with pytest.raises(RuntimeError, match="needs grad_y like gates and fp32 c"):
        cuda.operators()["bilstm_cuda_backward"](*states.values(), batch.padded(batch.inputs), *batch.layer())


class Tf32Product(torch.autograd.Function):
    """``a @ b.t()``, with operands rounded to TF32 as in cuDNN's LSTMs, forward and backward."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (bilstm_steps.rounded(a, "tf32") @ bilstm_steps.rounded(b, "tf32").t()).float()

    @staticmethod
    def backward(ctx, grad):
        a, b, grad = (bilstm_steps.rounded(x, "tf32") for x in (*ctx.saved_tensors, grad))
        return (grad @ b).float(), (grad.t() @ a).float()


def in_tf32(lstm, x, batch_sizes):
    """An LSTM step by step, because no CPU has TF32."""
    results = []
    for direction, (w_ih, w_hh, b_ih, b_hh) in enumerate(lstm.all_weights):
        gates = Tf32Product.apply(x, w_ih) + b_ih + b_hh
        steps = list(gates.split(batch_sizes.tolist()))
        h = c = x.new_zeros(0, lstm.hidden_size)
        states = [None] * len(steps)
        for t in reversed(range(len(steps))) if direction else range(len(steps)):
            size = len(steps[t])
            h, c = (torch.cat([old, old.new_zeros(max(size - len(old), 0), old.shape[1])])[:size] for old in (h, c))
            i, f, g, o = (steps[t] + Tf32Product.apply(h, w_hh)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            states[t] = h = o.sigmoid() * c.tanh()
        results.append(torch.cat(states))
    return torch.cat(results, 1)


@pytest.fixture
def _on_cpu(cuda, monkeypatch):
    """The op may be asked for the CUDA kernels on the CPU."""
    runs_on = backends.runs_on
    for module in (backends, persistent, sys.modules["esim_fast.ops.bilstm"]):
        monkeypatch.setattr(module, "runs_on", lambda backend, device: backend == "cuda" or runs_on(backend, device))
    for name, operator in cuda.operators().items():
        monkeypatch.setattr(torch.ops.esim_fast, name, operator)


@pytest.mark.usefixtures("_on_cpu")
class TestOp:
    @pytest.mark.parametrize("precision", DTYPES)
    def test_as_exact_as_torch(self, precision, monkeypatch):
        """Over layers of all sizes, the states and the gradients of the inputs and parameters."""
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision == "tf32")
        families, dtype = ([], [], []), DTYPES[precision]
        for units in CHOICES["units"]:
            if units > 320 and dtype == torch.float32:
                continue
            case = lstm, x, batch_sizes, grad_y = test_bilstm.make([6, 4, 3, 3, 1], 20, units, seed=units)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                ours = test_bilstm.run(*case, "cuda")
            if precision == "tf32":
                y = in_tf32(lstm, x, batch_sizes)
                theirs = [y.detach(), *torch.autograd.grad(y, [x, *lstm.parameters()], grad_y)]
            else:
                rounded = copy.deepcopy(lstm).to(dtype), x.detach().to(dtype).requires_grad_()
                theirs = test_bilstm.run(*rounded, batch_sizes, grad_y, "reference")
            exact = test_bilstm.exactly(*case)
            for family, results in zip(families, (ours, theirs, exact), strict=True):
                family.append(results)
        for number in range(len(exact)):  # each kind of result by itself
            assert_as_exact_as_eager(*([results[number] for results in family] for family in families))

    def test_padding(self):
        lstm, x, batch_sizes, grad_y = test_bilstm.make([4, 4, 4], 5, 9)
        padding = torch.tensor([0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1]).bool()
        results = []
        for backend in ("cuda", "cpp"):
            y = bilstm(lstm, x.masked_fill(padding[:, None], math.nan), batch_sizes, padding=padding, backend=backend)
            gradients = torch.autograd.grad(y[~padding], [*lstm.parameters()], grad_y[~padding])
            results.append([y[~padding].detach(), *gradients])
        torch.testing.assert_close(*results)

    def test_only_on_request(self):
        lstm, x, batch_sizes, _ = test_bilstm.make([4, 2], 5, 9)
        assert "cuda" in bilstm_backends(lstm, x, batch_sizes)
        assert bilstm_backends(lstm, x, batch_sizes)[0] == "cpp"

    @pytest.mark.parametrize(("units", "room"), [(321, MANY), (9, 0)], ids=["too many units", "no room"])
    def test_where_it_cannot_run(self, cuda, units, room):
        cuda.set(multiprocessors=room)
        lstm, x, batch_sizes, _ = test_bilstm.make([4, 2], 5, units)
        assert "cuda" not in bilstm_backends(lstm, x, batch_sizes)
        with pytest.raises(ValueError, match="backend='cuda' cannot run bilstm on cpu"):
            bilstm(lstm, x, batch_sizes, backend="cuda")

    def test_gradients(self):
        """They are separate tensors, backward can be repeated, and second derivatives raise."""
        lstm, x, batch_sizes, grad_y = test_bilstm.make([3, 2], 4, 5)
        y = bilstm(lstm, x, batch_sizes, backend="cuda")
        gradients = torch.autograd.grad(y, [*lstm.parameters()], grad_y, retain_graph=True)
        before = [gradient.clone() for gradient in gradients]
        for gradient in gradients:
            gradient.mul_(2)
        assert all(torch.equal(after, 2 * old) for after, old in zip(gradients, before, strict=True))
        again = torch.autograd.grad(y, [*lstm.parameters()], grad_y, retain_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(again, before, strict=True))
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            (gradient.square().sum() + y.sum()).backward()
        lstm.requires_grad_(False)
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            torch.func.jvp(lambda x: bilstm(lstm, x, batch_sizes, backend="cuda"), (x.detach(),), (x.detach(),))

    def test_esim_takes_the_same_steps(self, cuda):
        tokens = torch.randint(2, 9, (2, 3, 5), generator=torch.Generator().manual_seed(0))
        pairs = pack_pairs(*tokens, [4, 1, 3], [2, 5, 0])
        labels = torch.tensor([0, 2, 1])
        histories = []
        for backend in ("reference", "cuda"):
            torch.manual_seed(0)
            net = ESIM(10, 12, 9, 3, bilstm_backend=backend).train()
            optimizer = torch.optim.AdamW(net.parameters(), 0.01)
            losses = []
            for step in range(3):
                torch.manual_seed(step)  # dropout
                loss = nn.functional.cross_entropy(net(pairs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            histories.append([*losses, *(parameter.detach() for parameter in net.parameters())])
        assert len(cuda.launches()) == 3 * 4  # two layers, forward and backward
        torch.testing.assert_close(*histories, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fakes(cuda):
    """The operators for the CPU know the shapes of their results."""
    with torch.library._scoped_library(NAMESPACE, "FRAGMENT") as library:
        for name, fake in (("bilstm_cuda", persistent._fake), ("bilstm_cuda_backward", persistent._backward_fake)):
            torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        yield cuda.operators()


def test_opcheck(fakes):
    batch = Batch.draw([3, 2, 2, 1], 9, "bf16")
    gates = batch.padded(batch.inputs)
    torch.library.opcheck(fakes["bilstm_cuda"].default, (gates, *batch.layer()))
    _, c, _ = fakes["bilstm_cuda"](gates, *batch.layer())
    given = batch.padded(batch.grad_y), c, gates, *batch.layer()
    torch.library.opcheck(fakes["bilstm_cuda_backward"].default, given)


@pytest.mark.usefixtures("_on_cpu", "fakes")
@pytest.mark.parametrize("training", [True, False])
def test_compiled_as_one_graph(training):
    lstm, x, batch_sizes, grad_y = test_bilstm.make([5, 3, 3], 6, 7)
    first_row = batch_sizes.cumsum(0) - batch_sizes

    def op(x):
        return bilstm(lstm, x, batch_sizes, first_row=first_row, backend="cuda")

    wanted = [op(x)]
    with torch._dynamo.config.patch(allow_rnn=True), torch.set_grad_enabled(training):
        results = [torch.compile(op, fullgraph=True, backend="aot_eager")(x)]
    if training:
        for y in (wanted, results):
            y += torch.autograd.grad(y[0], [x, *lstm.parameters()], grad_y)
    assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))

"""The persistent CUDA kernels of the BiLSTM, compiled for the CPU: every step, and every schedule of their threads."""

import itertools
import math
import random
from dataclasses import dataclass, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.bilstm_steps import DTYPES, Batch, assert_every_step

POLICIES, SEEDS = 7, 9  # of fake_cuda/scheduler.h
MANY = 10**6


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
        return fits and self.work() < 6  # seconds

    def work(self):
        """About how many seconds it takes."""
        return self.units**2 * self.sentences * max(self.all_lengths()) / 1e7

    def all_lengths(self):
        draw = random.Random(self.sentences)
        kinds = {
            "equal": lambda _: 2,
            "one of 64": lambda number: draw.randint(1, 2) if number else 64,
            "ragged": lambda _: draw.choice([0, 0, 1, 2, 3, 5]),
            "words": lambda _: 1,
        }
        return [kinds[self.lengths](number) for number in range(self.sentences)]

    def set_up(self, gpu):
        room = self.teams * blocks_of(self.units) if self.teams < MANY else MANY
        capability = 90 if self.exchange == "clusters" else 80
        gpu.set(multiprocessors=room, capability=capability, policy=self.policy, seed=self.units)


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

    pool = {case: pairs(case) for case in (drawn() for _ in range(2000))}
    missing, cases = set().union(*pool.values()), []
    while missing:
        # A second is worth four pairs.
        cases.append(max(pool, key=lambda case: len(pool[case]) - 4 * case.work()))
        missing -= pool[cases[-1]]
        pool = {case: left for case, of_case in pool.items() if (left := of_case & missing)}
    return cases


@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_every_step(bilstm_cuda, case):
    case.set_up(bilstm_cuda)
    batch = Batch.draw(case.all_lengths(), case.units, case.precision, case.spare, seed=case.units)
    assert_every_step(batch, batch.run(bilstm_cuda.operators()))
    together = "blocks in clusters" if case.exchange == "clusters" else "blocks together"
    assert all(together in launch for launch in bilstm_cuda.launches())


@st.composite
def cases(draw):
    return Case(*(draw(st.sampled_from(CHOICES[field.name])) for field in fields(Case)))


def test_random_cases(bilstm_cuda):
    """More of them in the profile ``nightly``."""

    @settings(max_examples=max(1, settings.default.max_examples // 10))
    @given(cases().filter(lambda case: case.possible() and case.work() < 1), st.integers(0, 10**6))
    def holds(case, seed):
        case.set_up(bilstm_cuda)
        bilstm_cuda.set(seed=seed)
        batch = Batch.draw(case.all_lengths(), case.units, case.precision, case.spare, seed)
        assert_every_step(batch, batch.run(bilstm_cuda.operators()))

    holds()


class TestSchedules:
    """The same bits, whoever goes on and whenever what blocks send to each other arrives."""

    @pytest.mark.parametrize(
        ("units", "precision", "lengths", "exchange", "teams"),
        [
            # Teams of two blocks, each for 8 sentences,
            (77, "bf16", [*[4, 4, 3, 3, 2, 2, 2, 1], *[4, 4, 3, 2]], "clusters", MANY),
            # for 16, and for 64 after 64, of an even number of steps: the next ones begin with the buffer just read.
            (77, "fp16", [5, 4, 3, 3, 3, 2, 2, 2, 1, 1], "clusters", 2),
            (77, "bf16", [2] * 70, "clusters", 2),
            (77, "tf32", [*[4] * 16, *[3] * 16, 1], "clusters", 2),
            (60, "fp32", [3, 3, 2, 2, 1, 1], "clusters", MANY),
            # The same in a grid.
            (77, "bf16", [5, 4, 3, 3, 2, 2, 2, 1, 1], "grid", MANY),
            (77, "fp16", [2] * 70, "grid", 2),
            # One block; three, of which the last has idle warps; and many small ones.
            (40, "bf16", [6, 5, 5, 2, 1], "clusters", 2),
            (100, "bf16", [6, 6, 5, 2, 1], "clusters", 2),
            (330, "fp16", [3, 3, 2], "clusters", 2),
        ],
    )
    def test_same_bits(self, bilstm_cuda, units, precision, lengths, exchange, teams):
        case = Case(units, precision, len(lengths), "", 2, exchange, teams, 0)
        case.set_up(bilstm_cuda)
        batch = Batch.draw(lengths, units, precision, spare=2)
        first = batch.run(bilstm_cuda.operators())
        assert_every_step(batch, first)
        few = units > 320 or len(lengths) > 20
        for policy, seed in itertools.product(range(POLICIES), range(2 if few else SEEDS)):
            bilstm_cuda.set(policy=policy, seed=seed)
            for mine, wanted in zip(batch.run(bilstm_cuda.operators()), first, strict=True):
                count = batch.rows.count
                assert torch.equal(mine[:count], wanted[:count]), f"policy {policy}, seed {seed}"


class TestNumbersInDeviceMemory:
    """They are not read back to be checked, so kernels keep within the tensors."""

    @pytest.mark.parametrize("exchange", ["clusters", "grid"])
    @pytest.mark.parametrize("first_row", [[0, 1], [3, 1], [0, 7], [-5, 2**62]], ids=str)
    @pytest.mark.parametrize("rows", [0, -1, 2**40, 8, 3])
    def test_impossible_ones(self, bilstm_cuda, exchange, first_row, rows):
        Case(9, "bf16", 8, "", 0, exchange, 2, 0).set_up(bilstm_cuda)
        batch = Batch.draw([2, 2, 1, 1, 1, 1], 9, "bf16")
        weight, weight_reverse, _, sentences, tf32 = batch.layer()
        given = weight, weight_reverse, torch.tensor([*first_row, rows]), sentences, tf32
        gates = torch.full((24, 72), 7.0).bfloat16()
        gates[8:16] = batch.padded(batch.inputs)
        forward, backward = bilstm_cuda.operators()["bilstm_cuda"], bilstm_cuda.operators()["bilstm_cuda_backward"]
        _, c, _ = forward(gates[8:16], *given)
        backward(batch.padded(batch.grad_y), c, gates[8:16], *given)
        assert (gates[:8] == 7).all()
        assert (gates[16:] == 7).all()

    def test_nothing(self, bilstm_cuda):
        for count in (0, 4):
            batch = Batch.draw([0, 0], 9, "bf16", spare=count)
            _, y, _, previous, grad_gates = batch.run(bilstm_cuda.operators())
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
    def test_what_is_launched(self, bilstm_cuda, units, precision, capability, multiprocessors, expected):
        """Nothing that would wait for ever."""
        bilstm_cuda.set(capability=capability, multiprocessors=multiprocessors)
        batch = Batch.draw([1] * 80, units, precision)
        if expected:
            batch.run(bilstm_cuda.operators())
            assert bilstm_cuda.launches()[0] == expected
        else:
            with pytest.raises(RuntimeError, match=f"no room for the blocks of a layer of {units} units"):
                batch.run(bilstm_cuda.operators())
        half = precision in ("bf16", "fp16")
        assert bilstm_cuda.operators()["bilstm_cuda_fits"](0, half, units) == (expected is not None)


ARGUMENTS = "gates", "weight", "weight_reverse", "first_row", "sentences", "tf32"


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
        ({"gates": lambda x: x[:, :-1]}, r"contiguous gates \[N, 72\] aligned to 16 bytes"),
        ({"gates": lambda x: x.t().contiguous().t()}, r"contiguous gates \[N, 72\] aligned to 16 bytes"),
        (
            {"gates": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)},
            r"contiguous gates \[N, 72\] aligned to 16 bytes",
        ),
        ({"first_row": Tensor.int}, r"contiguous int64 first_row \[T \+ 1\]"),
        ({"first_row": lambda x: x[:0]}, r"contiguous int64 first_row \[T \+ 1\]"),
        ({"first_row": lambda x: x[None]}, r"contiguous int64 first_row \[T \+ 1\]"),
        ({"sentences": lambda _: -1}, "got -1 sentences"),
    ],
)
def test_wrong_arguments(bilstm_cuda, operator, changes, message):
    batch = Batch.draw([2, 2, 1, 1, 1, 1], 9, "bf16")
    given = dict(zip(ARGUMENTS, (batch.padded(batch.inputs), *batch.layer()), strict=True))
    for name, change in changes.items():
        given[name] = change(given[name])
    if operator == "bilstm_cuda_backward":
        states = {"grad_y": torch.zeros(8, 18).bfloat16(), "c": torch.zeros(8, 18)}
        given = states | given
    with pytest.raises(RuntimeError, match=message):
        bilstm_cuda.operators()[operator](*given.values())


@pytest.mark.parametrize("name", ["grad_y", "c"])
@pytest.mark.parametrize("change", [lambda x: x[1:], lambda x: x[:, 1:], Tensor.double, lambda x: x[None]])
def test_wrong_arguments_of_the_gradient(bilstm_cuda, name, change):
    batch = Batch.draw([2, 2, 1, 1, 1, 1], 9, "bf16")
    states = {"grad_y": torch.zeros(8, 18).bfloat16(), "c": torch.zeros(8, 18)}
    states[name] = change(states[name])
    with pytest.raises(RuntimeError, match="needs grad_y like gates and fp32 c"):
        bilstm_cuda.operators()["bilstm_cuda_backward"](*states.values(), batch.padded(batch.inputs), *batch.layer())


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", ["ragged", "one of 64", "equal"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("units", CHOICES["units"])
def test_on_a_gpu(units, precision, lengths):
    """Every step of the real kernels, and the same bits each time."""
    if not torch.ops.esim_fast.bilstm_cuda_fits(0, precision in ("bf16", "fp16"), units):
        pytest.skip("this GPU has no room for it")
    case = Case(units, precision, 40, lengths, 5, "clusters", MANY, 0)
    batch = Batch.draw(case.all_lengths(), units, precision, case.spare)
    operators = {name: getattr(torch.ops.esim_fast, name) for name in ("bilstm_cuda", "bilstm_cuda_backward")}
    first = batch.run(operators, "cuda")
    assert_every_step(batch, first, error=2.0**-14)  # tensor cores cut off what they add
    for _ in range(10):
        for mine, wanted in zip(batch.run(operators, "cuda"), first, strict=True):
            assert torch.equal(mine[: batch.rows.count], wanted[: batch.rows.count])

"""Dropout from a key: the same masks on every backend, from a generator whose numbers are published."""

import functools
import importlib
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.ops import dropout
from tests.ops.implementations import IMPLEMENTATIONS
from tests.ops.numerics import DTYPES

BACKENDS = [case for case in IMPLEMENTATIONS if case.values[0] != "cpp"]
_philox = importlib.import_module("esim_fast.ops.dropout")._philox
KEY = [2**40 + 5, 3]  # a seed of more than 32 bits, and a step
ACTIVATIONS = {None: lambda x: x, "relu": torch.relu, "tanh": torch.tanh}
# The first three of Random123's published answers for Philox 4x32-10: counter, key, and the four numbers.
ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


def signed(low, high):
    """The int64 with these 32-bit halves."""
    number = high << 32 | low
    return number - (number >> 63 << 64)


@pytest.mark.parametrize("line", ANSWERS.strip().splitlines())
def test_published_answers(line):
    numbers = [int(number, 16) for number in line.split()]
    found = _philox(tuple(torch.tensor(number) for number in numbers[:4]), torch.tensor(signed(*numbers[4:6])))
    assert [int(number) for number in found] == numbers[6:]


def philox(counter, key):
    """Philox 4x32-10 in Python's integers."""
    for _ in range(10):
        (high_a, low_a), (high_b, low_b) = (
            divmod(factor * c, 2**32) for factor, c in ((0xD2511F53, counter[0]), (0xCD9E8D57, counter[2]))
        )
        counter = high_b ^ counter[1] ^ key[0], low_b, high_a ^ counter[3] ^ key[1], low_a
        key = [(k + increment) % 2**32 for k, increment in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
    return counter


@functools.cache
def words(rows, width, layer):
    """The number of each element of ``KEY``."""
    seed = [KEY[0] % 2**32, KEY[0] >> 32]
    drawn = [[philox((d // 4, row, layer, KEY[1]), seed)[d % 4] for d in range(width)] for row in rows]
    return torch.tensor(drawn).view(len(rows), width)


def exact(x, grad, p, layer, activation, rows):
    """The result and the gradient of x in fp64."""
    x = x.detach().double().requires_grad_()
    kept = words(rows, x.shape[1], layer) >= round(p * 2**32)
    y = ACTIVATIONS[activation](x) * kept / (1 - p)
    return y.detach(), torch.autograd.grad(y, x, grad.double())[0]


def run(x, grad, *arguments, **options):
    """The result and the gradient of x, on the CPU."""
    x = x.detach().requires_grad_()
    y = dropout(x, *arguments, **options)
    return y.detach().cpu(), torch.autograd.grad(y, x, grad.to(y.dtype))[0].cpu()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(5, 3), (35, 70), (1, 1), (0, 4), (4, 0)])
@pytest.mark.usefixtures("poisoned")
def test_equals_its_definition(rows, width, dtype, activation, backend, device):
    x, grad = (torch.randn(rows, width, device=device).to(dtype) for _ in range(2))
    x[x.abs() < 0.2] = 0  # where ReLU's gradient is a matter of convention
    sentence = torch.arange(rows) * 123_456_789 % 2**31
    for p, rows_of, layer in ((0.5, None, 0), (0.1, sentence, 7)):
        given = None if rows_of is None else rows_of.to(device)
        options = {"activation": activation, "sentence": given, "backend": backend}
        found = run(x, grad, p, torch.tensor(KEY, device=device), layer, **options)
        numbers = tuple(range(rows) if rows_of is None else rows_of.tolist())
        for mine, wanted in zip(found, exact(x.cpu(), grad.cpu(), p, layer, activation, numbers), strict=True):
            assert mine.dtype == dtype
            assert torch.equal(mine == 0, wanted == 0)
            # The interpreter rounds bf16 down.
            torch.testing.assert_close(mine.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.interpreter
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1), st.floats(0, 0.999))
def test_backends_draw_the_same(seed, step, layer, p):
    x, key = torch.randn(7, 9), torch.tensor([seed, step])
    reference, triton = (dropout(x, p, key, layer, backend=backend) for backend in ("reference", "triton"))
    assert torch.equal(reference, triton)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_an_element_is_dropped_if_its_number_is_below_p(backend, device):
    number, key = int(words((0,), 1, 0)), torch.tensor(KEY, device=device)
    for drop, kept in ((number, True), (number + 1, False)):
        y = dropout(torch.ones(1, 1, device=device), drop / 2**32, key, 0, backend=backend)
        assert bool(y) == kept


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_later_rows_change_nothing(backend, device):
    x, key = torch.randn(40, 10, device=device), torch.tensor(KEY, device=device)
    wanted = dropout(x[:25], 0.5, key, 1, backend=backend)
    assert torch.equal(dropout(x, 0.5, key, 1, backend=backend)[:25], wanted)


def kept(key, layer=0, p=0.5, shape=(200, 201)):
    return dropout(torch.ones(shape), p, torch.tensor(key), layer) != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_independence(p):
    first = kept([1, 1], p=p)
    # By rows, by columns, steps, layers and both halves of the seed.
    others = [kept([1, 2], p=p), kept([2, 1], p=p), kept([1 + 2**32, 1], p=p), kept([1, 1], 1, p)]
    others += [first.roll(by, dim) for by in (1, 2, 3, 4) for dim in (0, 1)]
    tolerance = 6 * (p * (1 - p) / first.numel()) ** 0.5
    assert abs(float(first.float().mean()) - (1 - p)) < tolerance
    for other in others:
        assert abs(float((first & other).float().mean()) - (1 - p) ** 2) < 2 * tolerance
    assert torch.equal(first, kept([1, 1], p=p))


def test_no_probability_and_huge_values():
    x = torch.tensor([[3.0, -torch.inf, torch.nan, 0.0]])
    key = torch.tensor(KEY)
    torch.testing.assert_close(dropout(x, 0.0, key, 0), x, rtol=0, atol=0, equal_nan=True)
    assert not dropout(torch.ones(9, 9), 1 - 2**-53, key, 0).any()


def test_autocast():
    x = torch.randn(9, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = dropout(x, 0.5, torch.tensor(KEY), 0)
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.sum(), x)[0].dtype == torch.float32


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives(activation):
    x, key = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.tensor(KEY)
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.3, key, 1, activation=activation), x)


@pytest.mark.interpreter
class TestOperator:
    def test_opcheck(self):
        x, key = torch.randn(6, 5), torch.tensor(KEY)
        for before, sentence, activation in ((None, torch.arange(6), None), (x, None, "tanh")):
            arguments = x, before, key, sentence, 2, 2**31, activation, torch.bfloat16
            torch.library.opcheck(torch.ops.esim_fast.dropout_triton.default, arguments)

    def test_second_derivative(self):
        x = torch.randn(3, 4, requires_grad=True)
        y = dropout(x, 0.5, torch.tensor(KEY), 0, activation="tanh", backend="triton")
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.sum().backward()

    def test_a_changed_key_is_noticed(self):
        x, key = torch.randn(3, 4, requires_grad=True), torch.tensor(KEY)
        y = dropout(x, 0.5, key, 0, backend="triton")
        key[1] += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"values": torch.ones(3)}, "must be [N, D]"),
            ({"x": torch.ones(3, 5)}, "must be [N, D]"),
            ({"key": torch.ones(2)}, "int64 [2]"),
            ({"key": torch.ones(4).long()[::2]}, "contiguous"),
            ({"sentence": torch.arange(2)}, "int64 [3]"),
            ({"drop": 2**32}, "drop < 2**32"),
            ({"activation": "gelu"}, "'gelu'"),
        ],
    )
    def test_direct_calls(self, changes, message):
        given = {"values": torch.ones(3, 4), "x": None, "key": torch.tensor(KEY), "sentence": None, "layer": 0}
        given |= {"drop": 1, "activation": None, "dtype": torch.float32}
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.esim_fast.dropout_triton(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a float32, float16, bfloat16 or float64 tensor, got list"),
        ({"x": torch.ones(3, 4).long()}, TypeError, "got torch.int64"),
        ({"x": torch.ones(3, 4, 5)}, ValueError, "x must be [N, D], got shape [3, 4, 5]"),
        ({"p": 1.0}, ValueError, "p must be at least 0 and below 1, got 1.0"),
        ({"p": float("nan")}, ValueError, "got nan"),
        ({"layer": -1}, ValueError, "layer must be at least 0 and below 2**31, got -1"),
        ({"key": torch.ones(2)}, TypeError, "key must be int64, got torch.float32"),
        ({"key": torch.tensor(3)}, ValueError, "key must have shape [2] and be on cpu, got [] on cpu"),
        ({"sentence": torch.arange(4)}, ValueError, "sentence must have shape [3] and be on cpu, got [4] on cpu"),
        ({"activation": "gelu"}, ValueError, "activation must be None, 'relu' or 'tanh', got 'gelu'"),
        ({"backend": "cpp"}, ValueError, "backend='cpp' cannot run dropout on cpu in torch.float32"),
    ],
)
def test_wrong_input(changes, error, message):
    given = {"x": torch.ones(3, 4), "p": 0.5, "key": torch.tensor(KEY), "layer": 0}
    with pytest.raises(error, match=re.escape(message)):
        dropout(**{**given, **changes})

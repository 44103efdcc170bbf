"""Inference in int8: the kernels against equivalent quantization in PyTorch, and both against fp64."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from esim_fast.ops import int8, reference
from tests.ops.test_bilstm import make
from tests.processes import output_of

pytestmark = pytest.mark.skipif(not int8.LANES, reason="this processor has no VNNI")
OPERATORS = torch.ops.esim_fast
LENGTHS = st.lists(st.integers(1, 12), min_size=4, max_size=20).map(lambda lengths: sorted(lengths, reverse=True))
SIZES = st.sampled_from([1, 3, 16, 17, 63, 300])


def quantize_rows(x):
    """The integers and scales of the kernel, which stores integers plus 128."""
    q, scales = OPERATORS.quantize_rows(x)
    return q.int() - 128, scales


def rounding_of(x):
    """The largest quantization error of each element of ``x [N, K]``."""
    return x.abs().amax(1, keepdim=True) * (0.5 / 127)


@given(
    rows=st.integers(0, 9), width=st.integers(1, 70), scale=st.sampled_from([1e-30, 1.0, 1e38]), seed=st.integers(0, 99)
)
def test_rows_are_rounded_to_the_nearest(rows, width, scale, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3) * scale
    q, scales = quantize_rows(x)
    wanted, wanted_scales = reference.quantized_rows(x)
    assert torch.equal(scales, wanted_scales)
    assert ((x.double() - q * scales[:, None].double()).abs() <= rounding_of(x).double() * (1 + 1e-5)).all()
    assert (q - wanted).abs().sum() <= 1  # a tie


def test_rows_of_zeros_and_rows_that_are_not_finite():
    x = torch.tensor([[0.0, -0.0], [1e-38, -1e-39], [1.0, torch.nan], [-torch.inf, 1.0], [3.4e38, -1.7e38]])
    for quantize in (quantize_rows, reference.quantized_rows):
        q, scale = quantize(x)
        assert q.tolist() in [[[0, 0], [0, 0], [0, 0], [0, 0], [127, last]] for last in (-63, -64)]
        assert scale.isnan().tolist() == [False, False, True, True, False]


@pytest.fixture(params=["our product", "oneDNN's"])
def product(request, monkeypatch):
    monkeypatch.setattr(int8, "_FEW_ROWS", 10**6 if request.param == "our product" else 0)


# The fixture's value is the same in all examples.
WITH_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@WITH_FIXTURE
@given(rows=st.integers(0, 40), inputs=SIZES, outputs=SIZES, seed=st.integers(0, 99))
def test_linear(product, rows, inputs, outputs, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(inputs, outputs).requires_grad_(False), torch.randn(rows, inputs)
    y = int8.linear(layer, x)
    torch.testing.assert_close(
        y, reference.int8_linear(x, layer.weight, layer.bias), rtol=1e-4, atol=2 * inputs / 127**2
    )
    exact = nn.functional.linear(*(value.double() for value in (x, layer.weight, layer.bias)))
    off_x, off_w = rounding_of(x).expand_as(x), rounding_of(layer.weight).expand_as(layer.weight)
    bound = off_x @ layer.weight.abs().t() + x.abs() @ off_w.t() + off_x @ off_w.t()
    assert ((y - exact).abs() <= 1.001 * bound + 1e-6).all()


@given(rows=st.integers(0, 70), inputs=SIZES, outputs=SIZES, seed=st.integers(0, 99))
def test_both_products_are_exact(rows, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(size, inputs, generator=generator) for size in (rows, outputs))
    (q_x, scale), (q_w, scale_w) = quantize_rows(x), reference.quantized_rows(weight)
    wanted = (q_x.double() @ q_w.double().t()).float() * scale_w
    quantized = int8._quantized_linear(weight)
    for most in (0, 10**6):
        with patch.object(int8, "_FEW_ROWS", most):
            y, scales = quantized.product(x)
        assert torch.equal(scales, scale)
        torch.testing.assert_close(y, wanted, rtol=0 if most else 1e-6, atol=0)


def assert_quantized_alike(lstm, x, batch_sizes):
    """A state halfway between two integers may round differently, which changes the following gates by a step.

    Such states are few, and affect a small part of the sentences.
    """
    y, wanted = int8.bilstm(lstm, x, batch_sizes), reference.int8_bilstm(lstm, x, batch_sizes)
    exact = lstm.double()(nn.utils.rnn.PackedSequence(x.double(), batch_sizes))[0].data
    lstm.float()
    quantization, off = (wanted - exact).norm(), (y - wanted).norm()
    assert off <= 0.5 * quantization + 1e-6 * y.numel() ** 0.5, (off, quantization)
    assert quantization <= 0.02 * y.numel() ** 0.5


@WITH_FIXTURE
@given(lengths=LENGTHS, inputs=SIZES, hidden=st.sampled_from([16, 17, 63, 300]), seed=st.integers(0, 99))
def test_bilstm(product, lengths, inputs, hidden, seed):
    lstm, x, batch_sizes, _ = make(lengths, inputs, hidden, seed)
    assert_quantized_alike(lstm.requires_grad_(False), x.detach(), batch_sizes)


@pytest.mark.parametrize("hidden", [1, 3])
def test_few_units(product, hidden):
    lstm, x, batch_sizes, _ = make([7, 3, 3, 1], 4, hidden)
    assert_quantized_alike(lstm.requires_grad_(False), x.detach(), batch_sizes)


def test_long_rows():
    """Sums of more products may not fit into 32 bits, so oneDNN multiplies them."""
    for inputs in (int8._MOST_TERMS, int8._MOST_TERMS + 1):
        layer, x = nn.Linear(inputs, 2).requires_grad_(False), torch.randn(3, inputs)
        wanted = reference.int8_linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(int8.linear(layer, x), wanted, rtol=1e-4, atol=0.1)


def test_empty_batches():
    lstm = nn.LSTM(5, 7, bidirectional=True)
    assert int8.bilstm(lstm, torch.empty(0, 5), torch.empty(0, dtype=torch.int64)).shape == (0, 14)
    assert int8.linear(nn.Linear(5, 7), torch.empty(0, 5)).shape == (0, 7)


@torch.no_grad()
def test_huge_numbers_saturate_and_infinities_stay_in_their_sentence(product):
    lstm, x, batch_sizes, _ = make([5, 4, 4, 1], 20, 33)
    y = int8.bilstm(lstm, x, batch_sizes)
    second = [1, 5, 8, 11]  # rows of the second sentence
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = x.clone()
        broken[second[2], 3] = value
        states = int8.bilstm(lstm, broken, batch_sizes)
        isolated = states.isnan().any(1)
        assert isolated[second].all()
        assert torch.equal(states[~isolated], y[[row for row in range(len(x)) if row not in second]])
    for scale in (1e30, 1e37, -1e37):
        states = int8.bilstm(lstm, x * scale, batch_sizes)
        assert (states.abs() <= 1).all()
    lstm.weight_hh_l0.zero_()
    assert_quantized_alike(lstm, x.detach(), batch_sizes)


ON_ONE_PROCESSOR = """
import torch; from esim_fast.ops import int8; from tests.ops import test_int8 as t
print(int8.LANES)
for int8._FEW_ROWS in (0, 10**6) if int8.LANES else ():
    lstm, x, batch_sizes, _ = t.make([9, 7, 7, 2, 2, 2, 1, 1], 12, 75)
    t.assert_quantized_alike(lstm.requires_grad_(False), x.detach(), batch_sizes)
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_kind_of_processor(capability):
    flags = Path("/proc/cpuinfo").read_text().split("flags", 2)[1].split()
    expected = 8 if capability != "default" and "avx_vnni" in flags else 0
    if capability == "avx512" and "avx512_vnni" in flags:
        expected = 16
    assert int(output_of(ON_ONE_PROCESSOR, ATEN_CPU_CAPABILITY=capability)) == expected


ONE_PRODUCT = """
import torch; from esim_fast.ops import int8
int8.linear(torch.nn.Linear(300, 1200).requires_grad_(False), torch.randn(100, 300))
"""


@pytest.mark.parametrize("instructions", ["ALL", "AVX512_CORE_VNNI"])  # at most; only some Intel processors have AMX
def test_products_are_vectorized(instructions):
    """oneDNN multiplies on any processor, but at a thousandth of the speed if it has no code for the data types."""
    lines = output_of(ONE_PRODUCT, ONEDNN_VERBOSE="1", ONEDNN_MAX_CPU_ISA=instructions).splitlines()
    products = [line for line in lines if ",exec,cpu,matmul," in line]
    assert products
    assert not [line for line in products if ",ref" in line]

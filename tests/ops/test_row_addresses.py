"""Rows that skip parts of their tensor, tensors with both sides, and padding beside NaN words."""

import math

import pytest
import torch

from esim_fast import Rows
from esim_fast.ops import local_inference, local_inference_packed
from tests.ops.layouts import packed_rows


def rows_of(lengths, width, before=0):
    """Contiguous rows, starting at the given row."""
    rows = Rows.concatenated(lengths, width)
    return Rows(rows.start + before * width, rows.step, rows.lengths, rows.max_length, rows.tokens)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_one_side_leaves_rows_out(side, backend, poisoned):
    width, lengths = 8, {"a": [2, 3], "b": [4, 0]}
    counts = {name: sum(lengths[name]) + 3 * (side in (name, "both")) for name in "ab"}
    if side == "a":
        lengths["b"] = [counts["a"] - 1, 1]  # the number of rows of the other tensor
        counts["b"] = sum(lengths["b"])
    tensors = [torch.randn(counts[name], width, requires_grad=True) for name in "ab"]
    a_rows, b_rows = (rows_of(lengths[name], width, before=counts[name] - sum(lengths[name])) for name in "ab")
    results = local_inference(*tensors, a_rows=a_rows, b_rows=b_rows, backend=backend)
    gradients = torch.autograd.grad([m.sum() for m in results], tensors)
    for name, *both in zip("ab", results, gradients, strict=True):
        left_out = counts[name] - sum(lengths[name])
        for x in both:
            assert not x[:left_out].any()
            assert x[left_out:].isfinite().all()


@pytest.mark.parametrize("longest", [5, 70])
@pytest.mark.parametrize("backend", ["cpp", "reference", pytest.param("triton", marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_padding_beside_nan(bad, backend, longest):
    a, b = torch.randn(2, longest, 16), torch.randn(2, longest - 1, 16)
    a_lengths, b_lengths = [longest - 2, 2], [2, longest - 3]
    a[0, 0], b[1, 1] = bad, bad
    results = local_inference(a.requires_grad_(), b.requires_grad_(), a_lengths, b_lengths, backend=backend)
    gradients = torch.autograd.grad([m.sum() for m in results], [a, b])
    assert not results[0][0].isfinite().all()
    for lengths, *tensors in ((a_lengths, results[0], gradients[0]), (b_lengths, results[1], gradients[1])):
        for x in tensors:
            for sentence, n in zip(x, lengths, strict=True):
                assert torch.equal(sentence[n:], torch.zeros_like(sentence[n:]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_one_tensor_for_both_sides(backend):
    """Passed twice, it gives two results, each zero in the other side's rows; autocast is respected."""
    rows, count = packed_rows([3, 1, 2, 4], 8)
    halves = [Rows(rows.start[part], rows.step, rows.lengths[part], 4) for part in (slice(2), slice(2, 4))]
    x = torch.randn(count, 8, requires_grad=True)
    m_a, m_b = local_inference(x, x, a_rows=halves[0], b_rows=halves[1], backend=backend)
    m = local_inference_packed(x, *halves, backend=backend)
    assert torch.equal(m_a + m_b, m)
    assert not (m_a * m_b).any()
    grads = [torch.autograd.grad(result.square().sum(), x)[0] for result in (m_a + m_b, m)]
    torch.testing.assert_close(*grads)
    with torch.autocast("cpu", torch.bfloat16):
        m = local_inference_packed(x, *halves, backend=backend)
    assert torch.equal(m, local_inference_packed(x.detach().bfloat16(), *halves, backend=backend))
    m.float().sum().backward()
    assert x.grad.dtype == torch.float32

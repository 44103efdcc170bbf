"""Without the difference, the projection gives what it gives with it, and so do its gradients."""

import pytest
import torch
from torch.nn import functional

from esim_fast.ops.projection import projection, without_difference
from esim_fast.ops.reference import enhance


def case(rows, units=20, width=24, dtype=torch.float32):
    torch.manual_seed(0)
    x, aligned, weight = torch.randn(rows, width), torch.randn(rows, width), torch.randn(units, 4 * width)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, aligned, weight, torch.randn(units))]


def shortened(x, aligned):
    return torch.cat([x, aligned, x * aligned], 1)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 100])
def test_equals_the_projection_of_the_whole_enhancement(rows):
    results = []
    cases = (shortened, projection, torch.float32), (enhance, functional.linear, torch.float64)
    for combine, project, dtype in cases:
        x, aligned, weight, bias = case(rows, dtype=dtype)
        y = project(combine(x, aligned), weight, bias)
        grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        results.append([y, *torch.autograd.grad(y, (x, aligned, weight, bias), grad_y)])
    for got, expected in zip(*results, strict=True):
        assert (got.double() - expected).norm() <= 4 * torch.finfo(torch.float32).eps * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 100])
def test_packed_weights_follow_changes(rows):
    x, aligned, weight, bias = case(rows)
    for change in (lambda: None, lambda: weight.mul_(2), lambda: bias.add_(1), lambda: weight.data.neg_()):
        change()
        expected = functional.linear(enhance(x, aligned), weight, bias)
        torch.testing.assert_close(projection(shortened(x, aligned), weight, bias), expected, rtol=1e-5, atol=1e-4)


def test_second_derivatives():
    weight = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    m = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda m, weight: functional.linear(m, without_difference(weight)), (m, weight))

"""The projection of [a; ã; a-ã; a⊙ã] with four blocks of weights, and folded into three, with the gradients of both.

    W [a; ã; a-ã; a⊙ã] = (W1 + W3) a + (W2 - W3) ã + W4 (a⊙ã)

This saves a quarter of the products and adds sums of weights. The fold gets its three blocks for free here, as if local
inference wrote no fourth.
"""

import pytest
import torch
from corpus import make_batches
from equality import TOLERANCE, difference
from models import precision_set
from timing import DEVICE, interleaved
from torch import Tensor

from esim_fast.layers import Linear
from esim_fast.ops.products import linear

SIZES = [32, *(pytest.param(size, marks=pytest.mark.full) for size in (512,))]
HIDDEN = 300


def folded(x: Tensor, layer: Linear) -> Tensor:
    """``x [N, 6H]``, the enhancement without the difference, to ``[N, H]``."""
    of_a, of_aligned, of_difference, of_product = layer.weight.chunk(4, dim=1)
    weight = torch.cat([of_a + of_difference, of_aligned - of_difference, of_product], dim=1)
    return linear(x, weight, layer.bias)


@pytest.mark.parametrize("size", SIZES)
def test_folding(size, report):
    torch.manual_seed(0)
    tokens = max(make_batches("SNLI", size, 4), key=lambda batch: batch.tokens).tokens
    layer = Linear(8 * HIDDEN, HIDDEN, device=DEVICE)
    a, aligned = (torch.randn(tokens, 2 * HIDDEN, device=DEVICE).mul_(0.5) for _ in range(2))
    four = torch.cat([a, aligned, a - aligned, a * aligned], 1).requires_grad_()
    three = torch.cat([a, aligned, a * aligned], 1).requires_grad_()
    grad = torch.randn(tokens, HIDDEN, device=DEVICE)
    variants = {"four blocks": (four, lambda: layer(four)), "folded into three": (three, lambda: folded(three, layer))}

    def both(x, project):
        return torch.autograd.grad(project(), (x, layer.weight), grad)

    with precision_set("fp32"):
        exact = layer.double()(four.double())
        exact = {"y": exact, "weight": torch.autograd.grad(exact, layer.weight, grad.double())[0]}
        layer.float()
        for name, (x, project) in variants.items():
            results = {"y": project(), "weight": both(x, project)[1]}
            assert difference(results, exact, TOLERANCE["fp32"]) is None, name
        title = f"projection, {tokens} tokens (SNLI at batch {size}), fp32 on {DEVICE.type}"
        parameters = {"lengths": "SNLI", "batch": size, "precision": "fp32", "device": DEVICE.type}
        calls = {name: lambda x=x, project=project: both(x, project) for name, (x, project) in variants.items()}
        comparison = interleaved(f"{title}: forward + backward", calls, seconds=2.0)
        report(comparison.of("projection", **parameters, **{"pass": "forward + backward"}))

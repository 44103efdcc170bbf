"""How cost grows: a token's forward and backward pass with the batch, local inference with the sentences' lengths.

Nothing is asserted of time: these are the series that a report plots.
"""

from collections.abc import Callable

import pytest
import torch
from baselines import EAGER, eager_local_inference
from corpus import make_batches
from equality import TOLERANCE, difference
from models import all_variants, loss_of, precision_set, right_ones, set_dropout
from timing import DEVICE, Comparison, interleaved
from torch import Tensor

from esim_fast.ops import local_inference

PRECISIONS = ["fp32", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("tf32", "bf16"))]
OURS = "esim_fast, packed batches"
PAIRS, WIDTH = 8, 600
LENGTHS = [16, 32, 64, 128, 256, *(pytest.param(length, marks=pytest.mark.full) for length in (512, 1024))]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cost_of_a_token(precision, full, report):
    """Batches of all sizes take turns, so that the machine's drift does not tell them apart.

    The optimizer is left out: it goes through the whole vocabulary whatever the batch.
    """
    sizes = [8, 32, 128, 512, 2048] if full else [8, 32, 128]
    variant = all_variants(DEVICE, precision, full)[OURS]
    batches = {size: make_batches("SNLI", size, 1)[0].to(DEVICE) for size in sizes}
    with precision_set(precision):
        set_dropout({OURS: variant}, on=False)
        for batch in batches.values():
            right_ones({OURS: variant}, batch, precision, gradients=True)
        set_dropout({OURS: variant}, on=True)

    def step(batch):
        variant.net.zero_grad()
        loss_of(variant, batch, precision).backward()

    calls = {str(size): lambda batch=batch: step(batch) for size, batch in batches.items()}
    with precision_set(precision):
        measured = interleaved("", calls)
    variant.net.zero_grad()
    for size, batch in batches.items():
        parameters = {"lengths": "SNLI", "batch": size, "precision": precision, "device": DEVICE.type}
        what = f"SNLI at batch {size} ({batch.tokens} tokens), {precision} on {DEVICE.type}"
        title = f"forward + backward, {what}: a token"
        per_token = {OURS: measured.values[str(size)] / batch.tokens}
        comparison = Comparison(title, per_token, measured.rounds, unit="s/token")
        report(comparison.of("growth with the batch", **parameters, tokens=batch.tokens))


@pytest.mark.parametrize("length", LENGTHS)
def test_cost_of_length(length, report):
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(PAIRS, length, width, generator=generator, device=DEVICE).mul_(0.5)

    a, b, grad = draw(WIDTH).requires_grad_(), draw(WIDTH).requires_grad_(), draw(4 * WIDTH)
    mask = torch.ones(PAIRS, length, dtype=torch.bool, device=DEVICE)
    variants = {EAGER: eager_local_inference, "esim_fast, mask": masked_local_inference}

    def both(variant: Callable, a: Tensor, b: Tensor, grad: Tensor) -> dict[str, Tensor]:
        m = variant(a, b, mask, mask)
        return dict(zip(("m_a", "m_b", "a", "b"), (*m, *torch.autograd.grad(m, (a, b), (grad, grad))), strict=True))

    with precision_set("fp32"):
        exact = both(eager_local_inference, *(x.detach().double().requires_grad_() for x in (a, b)), grad.double())
        for name, variant in variants.items():
            wrong = difference(both(variant, a, b, grad), exact, TOLERANCE["fp32"])
            assert wrong is None, f"{name}: {wrong}"
        calls = {name: lambda v=variant: both(v, a, b, grad) for name, variant in variants.items()}
        title = f"local_inference, {PAIRS} pairs of {length} and {length} tokens, fp32 on {DEVICE.type}"
        comparison = interleaved(f"{title}: forward + backward", calls, seconds=1.5)
    parameters = {"length": length, "batch": PAIRS, "precision": "fp32", "device": DEVICE.type}
    report(comparison.of("growth with the length", **parameters))


def masked_local_inference(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> tuple[Tensor, Tensor]:
    return local_inference(a, b, a_mask=a_mask, b_mask=b_mask)

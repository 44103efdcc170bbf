"""masked_pool against the notebook's eager pooling, torch.compile of it, and torch.segment_reduce."""

import pytest
import torch

from benchmarks.baselines import EAGER, eager_pool, segment_pool
from benchmarks.measure import DEVICE, FULL_SIZE, ON_GPU, PRECISIONS, Variant, saved_bytes
from esim_fast import Rows
from esim_fast.ops import masked_pool

# Pairs, tokens, features: a batch with SNLI's longest premises, and one that fills a GPU.
SHAPES = [(32, 36, 600), *([(1024, 64, 600)] if FULL_SIZE else [])]
PASSES = ["forward", "forward + backward", *(["forward, on the device"] if ON_GPU else [])]
SEGMENT = "torch.segment_reduce (concatenated)"
VARIANTS = [EAGER, "torch.compile of it", SEGMENT, "esim_fast, lengths", "esim_fast, mask", "esim_fast, rows"]


def variants(shape, precision, which):
    batch, length, width = shape
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    lengths = torch.randint(length // 4, length + 1, (batch,))
    mask = (torch.arange(length) < lengths[:, None]).to(DEVICE)
    x = torch.randn(shape).to(DEVICE, dtype).requires_grad_()
    flat = x.detach()[mask].requires_grad_()  # without padding
    grad = torch.randn(batch, 2 * width).to(DEVICE, dtype)
    rows, lengths = Rows.concatenated(lengths, width).to(DEVICE), lengths.to(DEVICE)
    integer_mask, compiled = mask.long(), torch.compile(eager_pool)
    exact = eager_pool(x.double(), integer_mask)
    exact_grad = torch.autograd.grad(exact, x, grad.double())[0]

    def variant(leaf, pool):
        def check():
            tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
            v = pool()
            torch.testing.assert_close(v.double(), exact, **tolerance)
            wanted = exact_grad if leaf is x else exact_grad[mask]
            torch.testing.assert_close(torch.autograd.grad(v, leaf, grad)[0].double(), wanted.double(), **tolerance)

        if which == "forward + backward":
            return Variant(lambda: torch.autograd.grad(pool(), leaf, grad), check, saves=lambda: saved_bytes(pool))
        read = int(lengths.sum()) * width * x.element_size()
        written = grad.numel() * x.element_size() + batch * width * 4  # v, and the maxima's int32 indices
        return Variant(torch.no_grad()(pool), check, moves=read + written)

    ties = "splits the gradient among equal maxima, which are frequent in bf16"
    return {
        EAGER: variant(x, lambda: eager_pool(x, integer_mask)),
        "torch.compile of it": variant(x, lambda: compiled(x, integer_mask)),
        SEGMENT: ties if precision == "bf16" else variant(flat, lambda: segment_pool(flat, lengths)),
        "esim_fast, lengths": variant(x, lambda: masked_pool(x, lengths)),
        "esim_fast, mask": variant(x, lambda: masked_pool(x, mask=mask)),
        "esim_fast, rows": variant(flat, lambda: masked_pool(flat, rows=rows)),
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "tf32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_pool(variant, which, precision, shape, race):
    race(variant, lambda: variants(shape, precision, which), on_device=which.endswith("on the device"))

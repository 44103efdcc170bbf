"""local_inference against the notebook's eager co-attention, torch.compile of it, and two calls of SDPA."""

from contextlib import nullcontext

import pytest
import torch

from benchmarks.baselines import EAGER, eager_local_inference, sdpa_local_inference
from benchmarks.corpus import make_batches
from benchmarks.measure import DEVICE, FULL_SIZE, ON_GPU, PRECISIONS, Variant, saved_bytes
from benchmarks.models import assert_equal
from esim_fast import Rows
from esim_fast.ops import local_inference, local_inference_packed

WIDTH = 600
# Kind of lengths and pairs in a batch.
SHAPES = [("SNLI", 32), *([("SNLI", 256), ("SNLI", 1024), ("128 tokens", 64), ("512 tokens", 16)] if FULL_SIZE else [])]
PASSES = ["forward", "forward + backward"]
PASSES += [f"{which}, on the device" for which in PASSES] if ON_GPU else []
PACKED = "esim_fast, packed rows"
compiled = torch.compile(eager_local_inference, dynamic=True)
BATCHES = 4  # called in turns, so that the larger ones do not stay in the cache


class Batch:
    """One batch, padded and as packed rows, with the gradients of the results."""

    def __init__(self, sides: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> None:
        def draw(*shape):
            # This scale gives scores of about ten, like a trained encoder's.
            return torch.randn(*shape, device=DEVICE).mul(0.5).to(dtype)

        self.masks = [(torch.arange(int(side.max())) < side[:, None]).to(DEVICE) for side in sides]
        self.padded = tuple(draw(*mask.shape, WIDTH).requires_grad_() for mask in self.masks)
        self.grads = tuple(draw(*mask.shape, 4 * WIDTH) * mask[:, :, None] for mask in self.masks)
        self.packed, self.packed_grad = self.tokens(self.padded).requires_grad_(), self.tokens(self.grads)
        rows, pairs = Rows.concatenated(torch.cat(sides), WIDTH).to(DEVICE), len(sides[0])
        halves = rows.start.split(pairs), rows.lengths.split(pairs), sides
        self.rows = [
            Rows(start, rows.step, on_device, int(side.max()), int(side.sum()))
            for start, on_device, side in zip(*halves, strict=True)
        ]

    def tokens(self, sides):
        """The rows of all tokens, concatenated, from two padded sides or from packed rows."""
        if len(sides) == 1:
            return sides[0]
        return torch.cat([side.detach()[mask] for side, mask in zip(sides, self.masks, strict=True)])

    def gradients(self, m):
        leaves, grads = ((self.packed,), (self.packed_grad,)) if len(m) == 1 else (self.padded, self.grads)
        return torch.autograd.grad(m, leaves, grads)


# From a batch to m_a and m_b, or to one m for packed rows.
CALLS = {
    EAGER: lambda x: eager_local_inference(*x.padded, *x.masks),
    "torch.compile of it": lambda x: compiled(*x.padded, *x.masks),
    "two SDPA calls": lambda x: sdpa_local_inference(*x.padded, *x.masks),
    "esim_fast, mask": lambda x: local_inference(*x.padded, a_mask=x.masks[0], b_mask=x.masks[1]),
    PACKED: lambda x: (local_inference_packed(x.packed, *x.rows),),
}


def variants(kind, pairs, precision, which):
    torch.compiler.reset()  # earlier compilations count towards torch.compile's limit
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if kind == "SNLI":
        lengths = [(x.p_lengths, x.h_lengths) for x in make_batches(pairs, BATCHES)]
    else:
        longest = int(kind.split()[0])
        lengths = [torch.randint(longest // 2, longest + 1, (2, pairs)).unbind() for _ in range(BATCHES)]
    batches = [Batch(sides, dtype) for sides in lengths]
    last = batches[-1]
    padded = tuple(side.detach().double().requires_grad_() for side in last.padded)
    m = eager_local_inference(*padded, *last.masks)
    grads = torch.autograd.grad(m, padded, tuple(grad.double() for grad in last.grads))
    exact = {"m": last.tokens(m), "gradient": last.tokens(grads)}
    backward = which.startswith("forward + backward")

    def variant(name):
        def check():
            m = CALLS[name](last)
            results = {"m": last.tokens(m), "gradient": last.tokens(last.gradients(m))}
            # Eager bf16 rounds scores of about ten to bf16 before the softmax.
            assert_equal(results, exact, 40 * torch.finfo(dtype).eps)

        def call():
            with nullcontext() if backward else torch.no_grad():
                for x in batches:
                    m = CALLS[name](x)
                    if backward:
                        x.gradients(m)

        # Forward: encodings and enhancements (1 + 4). Backward: encodings and both gradients (1 + 4 + 1).
        elements = sum(x.packed.numel() if name == PACKED else sum(side.numel() for side in x.padded) for x in batches)
        moves = (5 + 6 * backward) * elements * dtype.itemsize
        saves = (lambda: saved_bytes(lambda: CALLS[name](last))) if backward else None
        return Variant(call, check, moves, saves=saves)

    return {name: variant(name) for name in CALLS}


@pytest.mark.parametrize("variant", CALLS)
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "tf32"])
@pytest.mark.parametrize(("kind", "pairs"), SHAPES)
def test_local_inference(variant, kind, pairs, precision, which, race):
    race(variant, lambda: variants(kind, pairs, precision, which), on_device=which.endswith("on the device"))

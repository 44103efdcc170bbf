"""Sentence pairs, and their local inference from the equations and from the op."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from esim_fast import Rows
from esim_fast.ops import local_inference, local_inference_packed
from tests.ops.layouts import Layout
from tests.ops.numerics import local_inference_bounds


def written_out(a, b):
    """Equations 11-15 for one pair without padding: [La, D] and [Lb, D]."""
    e = a @ b.T
    a_aligned = e.softmax(1) @ b if len(b) else torch.zeros_like(a)
    b_aligned = e.softmax(0).T @ a if len(a) else torch.zeros_like(b)
    m_a = torch.cat([a, a_aligned, a - a_aligned, a * a_aligned], 1)
    m_b = torch.cat([b, b_aligned, b - b_aligned, b * b_aligned], 1)
    return m_a, m_b


@dataclass
class Pairs:
    """Sentence pairs ``[n, D]`` and gradients of their enhancements ``[n, 4D]``."""

    a: list[Tensor]
    b: list[Tensor]
    grad_m_a: list[Tensor]
    grad_m_b: list[Tensor]

    @classmethod
    def draw(cls, lengths, width, seed=0, score=1.0, dtype=torch.float64):
        """Random pairs of ``lengths [(of a, of b), ...]`` with scores of about ``score``."""
        generator = torch.Generator().manual_seed(seed)
        scale = (score / max(width, 1) ** 0.5) ** 0.5
        if dtype == torch.float16:
            scale = min(scale, 40.0)  # so that squares do not overflow

        def sentences(side, width, scale):
            of_a_kind = {"generator": generator, "dtype": torch.float64}
            return [(torch.randn(pair[side], width, **of_a_kind) * scale).to(dtype) for pair in lengths]

        # Products of gradients must not overflow in fp16.
        sides = [sentences(side, width, scale) for side in (0, 1)]
        return cls(*sides, *(sentences(side, 4 * width, min(1.0, 0.1 / scale)) for side in (0, 1)))

    def __iter__(self):
        return zip(self.a, self.b, self.grad_m_a, self.grad_m_b, strict=True)

    def expected(self, dtype=torch.float64):
        """m_a, m_b and the gradients of a and b, pair by pair, from the equations in ``dtype``."""
        results = []
        for a, b, *grad_m in self:
            a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
            m = written_out(a, b)
            gradients = torch.autograd.grad(m, (a, b), [grad.to(dtype) for grad in grad_m])
            results.append((*(side.detach() for side in m), *gradients))
        return results

    def bounds(self, product):
        """Error bounds of the results in the dtype of the pairs, see ``local_inference_bounds``."""
        return [local_inference_bounds(*(x.detach().double() for x in pair), pair[0].dtype, product) for pair in self]

    def through_the_op(self, layout, device="cpu", backend=None, seed=0, elsewhere=math.nan, padding=2):
        """The same from ``local_inference``, in one of LAYOUTS or in "one tensor" for both packed sides.

        ``elsewhere`` fills the space outside the sentences, and ``padding`` is added to the longest sentence.
        """
        lengths_a, lengths_b = ([len(x) for x in side] for side in (self.a, self.b))
        width = self.a[0].shape[1]
        if layout == "one tensor":
            both = Layout.make("packed", lengths_a + lengths_b, width)
            half, rows = len(lengths_a), both.given_as["rows"].to(device)
            x = both.fill(self.a + self.b, elsewhere).to(device).requires_grad_()
            grad_m = both.fill(self.grad_m_a + self.grad_m_b, elsewhere).to(device)
            m = local_inference_packed(
                x,
                Rows(rows.start[:half], rows.step, rows.lengths[:half], max(lengths_a), sum(lengths_a)),
                Rows(rows.start[half:], rows.step, rows.lengths[half:], max(lengths_b), sum(lengths_b)),
                backend=backend,
            )
            of_m, of_x = both.sentences(m), both.sentences(torch.autograd.grad(m, x, grad_m)[0])
            return list(zip(of_m[:half], of_m[half:], of_x[:half], of_x[half:], strict=True))

        sides = [Layout.make(layout, lengths, width, seed, padding) for lengths in (lengths_a, lengths_b)]
        a, b = (
            side.fill(x, elsewhere).to(device).requires_grad_() for side, x in zip(sides, (self.a, self.b), strict=True)
        )
        options = {
            # Lengths may be on the CPU, where they also determine the tile.
            f"{name}_{key}": value if key == "lengths" and seed % 2 == 0 else value.to(device)
            for name, side in zip("ab", sides, strict=True)
            for key, value in side.given_as.items()
        }
        m = local_inference(a, b, backend=backend, **options)
        grad_m = [
            side.fill(x, elsewhere).to(device) for side, x in zip(sides, (self.grad_m_a, self.grad_m_b), strict=True)
        ]
        results = (*m, *torch.autograd.grad(m, (a, b), grad_m))
        return list(zip(*(side.sentences(x) for side, x in zip(sides * 2, results, strict=True)), strict=True))

"""The one rule by which results in low precision are judged.

Over a family of cases the error against an fp64 reference (norms taken over all of them) is at most twice that of
eager PyTorch in the same dtype. Single cases are no measure: an equally good variant loses many of them by chance.
Elements are bounded by what the arithmetic allows, in the test that knows the arithmetic.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def error_norm(results: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Euclidean norm of the difference over all tensors, in fp64."""
    return sum(float((r.double() - e.double()).square().sum()) for r, e in zip(results, exact, strict=True)) ** 0.5


def assert_as_exact_as_eager(ours: list[Tensor], eager: list[Tensor], exact: list[Tensor]) -> None:
    our_error, eager_error = error_norm(ours, exact), error_norm(eager, exact)
    assert our_error <= 2 * eager_error, f"error {our_error:.3e}, eager PyTorch's {eager_error:.3e}"

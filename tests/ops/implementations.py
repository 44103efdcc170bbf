"""The implementations of local inference, and their operators."""

import pytest
import torch

from tests.ops.layouts import packed_rows

KERNELS = [
    pytest.param("cpp", "cpu", id="cpp"),
    pytest.param("triton", "cpu", marks=pytest.mark.interpreter, id="triton-interpreted"),
    pytest.param("triton", "cuda", marks=pytest.mark.gpu, id="triton"),
]
IMPLEMENTATIONS = [
    pytest.param("reference", "cpu", id="reference"),
    pytest.param("reference", "cuda", marks=pytest.mark.gpu, id="reference-cuda"),
    *KERNELS,
]


def operators(backend, layout):
    """The forward and backward operators, with the same signatures on all backends."""
    name = "local_inference" + "_packed" * (layout == "one tensor") + "_triton" * (backend == "triton")
    return getattr(torch.ops.esim_fast, name), getattr(torch.ops.esim_fast, f"{name}_backward")


def as_list(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


def case(device, layout, longest=9):
    """Arguments of the operators for three pairs."""
    lengths = [3, longest, 0], [2, 0, 7]
    width = 12
    if layout == "one tensor":
        rows, count = packed_rows(lengths[0] + lengths[1], width)
        rows, x = rows.to(device), torch.randn(count, width, device=device)
        sides = [(rows.start[half], rows.step, rows.lengths[half], None) for half in (slice(3), slice(3, 6))]
        return x, *sides[0], *sides[1], longest, 7, True
    a, b = torch.randn(3, longest, width, device=device), torch.randn(3, 7, width, device=device)
    if layout == "mask":
        masks = [torch.rand(3, n, device=device) < 0.5 for n in (longest, 7)]
        return a, b, None, None, None, masks[0], None, None, None, masks[1], longest, 7, False
    lengths = [torch.tensor(n, device=device) for n in lengths]
    return a, b, None, None, lengths[0], None, None, None, lengths[1], None, longest, 7, False

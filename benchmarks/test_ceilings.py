"""What the device can do at most, measured in the same run as what is held against it: memory's copy, matrix products.

`parameters` has each ceiling as a rate, in bytes or operations a second.
"""

import pytest
import timing
import torch
from timing import DEVICE, FULL_SIZE, ON_GPU, Comparison, copy_bandwidth, interleaved, product_rate

PRECISIONS = ["fp32", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("tf32", "bf16"))]


def test_copy(report):
    """Bytes read and written by a copy that no cache holds."""
    size = 2**24 if timing.once else 2**29 if FULL_SIZE else 2**28
    title = f"copy of {size / 1e6:,.0f} MB on {DEVICE.type}"
    if ON_GPU:
        comparison = Comparison(title, {"copy_": 2 * size / copy_bandwidth((size,))}, 30)
    else:
        source, copy = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        comparison = interleaved(title, {"copy_": lambda: copy.copy_(source)}, seconds=1.0)
        assert bool(copy.all())
    rate = 2 * size / comparison.values["copy_"]
    report(comparison.of("ceilings", what="copy", device=DEVICE.type, per_second=int(rate)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_matrix_product(precision, report):
    size = 256 if timing.once else 8192 if FULL_SIZE else 1536
    title = f"product of [{size}, {size}] matrices, {precision} on {DEVICE.type}"
    if ON_GPU:
        comparison = Comparison(title, {"torch.mm": 2 * size**3 / product_rate(precision, size)}, 10)
    else:
        a, b = torch.randn(2, size, size)
        comparison = interleaved(title, {"torch.mm": lambda: torch.mm(a, b)}, seconds=1.0)
    rate = 2 * size**3 / comparison.values["torch.mm"]
    parameters = {"what": "matrix product", "precision": precision, "device": DEVICE.type, "per_second": int(rate)}
    report(comparison.of("ceilings", **parameters))

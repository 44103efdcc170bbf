"""masked_pool against the notebook's eager pooling, the same compiled, and torch.segment_reduce.

`pytest benchmarks/test_masked_pool.py` prints the table; nothing is asserted of speed, everything of results.
"""

from dataclasses import replace

import pytest
import torch
from baselines import EAGER, eager_pool, segment_pool
from timing import DEVICE, FULL_SIZE, ON_GPU, device_times, interleaved

from esim_fast import Rows
from esim_fast.ops import masked_pool

# A batch of SNLI's longest premises, and what fills a GPU.
SHAPES = [(32, 36, 600), (1024, 64, 600)] if FULL_SIZE else [(32, 36, 600)]
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, dtype, report):
    batch, length, width = shape
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 4, length + 1, (batch,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).to(DEVICE)
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()
    # The peer without padding gets its input without padding: concatenated.
    flat = x.detach()[mask].requires_grad_()
    grad = torch.randn(batch, 2 * width, generator=generator).to(DEVICE, dtype)
    rows, on_device = Rows.concatenated(lengths, width).to(DEVICE), lengths.to(DEVICE)
    integer_mask, compiled = mask.long(), torch.compile(eager_pool)

    pools = {
        EAGER: (x, lambda: eager_pool(x, integer_mask)),
        "torch.compile of it": (x, lambda: compiled(x, integer_mask)),
        "torch.segment_reduce (concatenated)": (flat, lambda: segment_pool(flat, on_device)),
        "esim_fast, lengths": (x, lambda: masked_pool(x, on_device)),
        "esim_fast, mask": (x, lambda: masked_pool(x, mask=mask)),
        "esim_fast, rows (concatenated)": (flat, lambda: masked_pool(flat, rows=rows)),
    }
    expected = eager_pool(x.double(), integer_mask)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    expected_gradient = torch.autograd.grad(expected, x, grad.double())[0]
    notes = []
    for name, (leaf, pool) in list(pools.items()):
        try:
            v = pool()
            gradient = torch.autograd.grad(v, leaf, grad)[0]
            torch.testing.assert_close(v.double(), expected, **tolerance)
            wanted = expected_gradient if leaf is x else expected_gradient[mask]
            torch.testing.assert_close(gradient.double(), wanted.double(), **tolerance)
        except (AssertionError, RuntimeError) as error:
            if name == EAGER or name.startswith("esim_fast"):
                raise
            # segment_reduce shares the gradient out among equal maxima, of which bf16 has many.
            notes.append(f"{name}: left out ({str(error).strip().splitlines()[0][:100]})")
            del pools[name]

    title = f"masked_pool {list(shape)} {str(dtype).removeprefix('torch.')} on {DEVICE.type}"
    parameters = {
        "lengths": f"{length // 4} to {length} tokens",
        "batch": batch,
        "precision": "fp32" if dtype == torch.float32 else "bf16",
        "device": DEVICE.type,
    }
    forward = {name: pool for name, (_, pool) in pools.items()}
    with torch.no_grad():
        comparison = replace(interleaved(f"{title}: forward", forward), notes=tuple(notes))
        report(comparison.of("masked_pool", **parameters, **{"pass": "forward"}))
    both = {
        name: lambda leaf=leaf, pool=pool: torch.autograd.grad(pool(), leaf, grad)
        for name, (leaf, pool) in pools.items()
    }
    comparison = replace(interleaved(f"{title}: forward + backward", both), notes=tuple(notes))
    report(comparison.of("masked_pool", **parameters, **{"pass": "forward + backward"}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_share_of_the_copy_bandwidth(dtype, report):
    """Bytes per second that the forward kernel moves, over those of a device-to-device copy in the same run."""
    if not ON_GPU:
        pytest.skip("needs an NVIDIA GPU: on a CPU the input lies in the cache")
    shape = SHAPES[-1]
    # Inputs take turns, so that they do not come from the cache.
    inputs = [torch.randn(shape, device=DEVICE).to(dtype) for _ in range(4)]
    copies = [torch.empty_like(x) for x in inputs]
    turn = iter(range(1_000_000_000))

    def pool():
        for _ in range(4):
            masked_pool(inputs[next(turn) % 4])

    def copy():
        for _ in range(4):
            i = next(turn) % 4
            copies[i].copy_(inputs[i])

    comparison = device_times(
        f"masked_pool {list(shape)} {str(dtype).removeprefix('torch.')}: forward against a copy, four inputs each",
        {"device-to-device copy": copy, "esim_fast": pool},
    )
    batch, _, width = shape
    read = inputs[0].numel() * inputs[0].element_size()
    written = batch * 2 * width * inputs[0].element_size() + batch * width * 4  # v and argmax
    rates = {"esim_fast": 4 * (read + written), "device-to-device copy": 4 * 2 * read}
    rates = {name: moved / comparison.values[name] for name, moved in rates.items()}
    share = rates["esim_fast"] / rates["device-to-device copy"]
    note = (
        f"{rates['esim_fast'] / 1e12:.2f} TB/s of the copy's {rates['device-to-device copy'] / 1e12:.2f}: {share:.0%}"
    )
    parameters = {"batch": batch, "precision": "fp32" if dtype == torch.float32 else "bf16", "device": DEVICE.type}
    floor = 4 * (read + written) / rates["device-to-device copy"]
    report(replace(comparison, notes=(note,), floor=floor).of("masked_pool against a copy", **parameters))

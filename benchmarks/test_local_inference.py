"""local_inference against the notebook's eager co-attention, the same compiled, SDPA and FlexAttention.

`pytest benchmarks/test_local_inference.py` prints the tables, `--json FILE` writes them; nothing is asserted of speed,
everything of results. On a GPU there are more shapes, bf16, device time, peak memory and the share of the copy's rate.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from baselines import EAGER, compiled, eager_local_inference, flex_local_inference, sdpa_local_inference
from corpus import bucketed_lengths
from equality import relative_error
from timing import (
    DEVICE,
    FULL_SIZE,
    ON_GPU,
    Comparison,
    cache_bytes,
    copy_bandwidth,
    device_times,
    interleaved,
    peak_memory,
)
from torch import Tensor

from esim_fast import Rows
from esim_fast.ops import local_inference, local_inference_packed

WIDTH = 600
# Kind of lengths and pairs in a batch; on a GPU those with an aim (targets.py) come first.
SHAPES = [("SNLI", 256), ("SNLI", 1024), ("SNLI", 32), ("128 tokens", 64), ("512 tokens", 16)]
DTYPES = [torch.bfloat16, torch.float32]
if not FULL_SIZE:
    SHAPES = [("SNLI", 32)]
if not ON_GPU:
    DTYPES = [torch.float32]
# Variants that did not run, and why: to compile them again for each shape would take minutes.
_FAILED: dict[tuple[str, torch.dtype], str] = {}
BATCHES = 4  # that take turns: together the larger ones do not fit a cache


@dataclass
class Batch:
    """One batch, padded and as packed rows, with the gradients of the results."""

    a: Tensor
    b: Tensor
    a_mask: Tensor
    b_mask: Tensor
    packed: Tensor
    a_rows: Rows
    b_rows: Rows
    grad_m_a: Tensor
    grad_m_b: Tensor
    grad_m: Tensor


def lengths_of(kind: str, pairs: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Lengths ``[pairs, 2]`` of BATCHES batches, as a bucketing loader makes them: pairs of like lengths together."""
    if kind == "SNLI":
        return bucketed_lengths(kind, pairs, BATCHES, generator)
    longest = int(kind.split()[0])
    return [generator.integers(longest // 2, longest + 1, (pairs, 2)) for _ in range(BATCHES)]


def make_batch(lengths: np.ndarray, dtype: torch.dtype, seed: int) -> Batch:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    a_lengths, b_lengths = torch.from_numpy(lengths).unbind(1)
    masks = [(torch.arange(int(n.max())) < n[:, None]).to(DEVICE) for n in (a_lengths, b_lengths)]

    def draw(*shape):
        # Scores of a trained encoder are of the order of ten.
        return torch.randn(*shape, generator=generator, device=DEVICE).mul(0.5).to(dtype)

    a, b = (draw(*mask.shape, WIDTH).requires_grad_() for mask in masks)
    pairs, words = len(lengths), int(a_lengths.sum())
    rows = Rows.concatenated(torch.cat([a_lengths, b_lengths]), WIDTH).to(DEVICE)

    def side(these: slice, side_lengths: Tensor) -> Rows:
        return Rows(rows.start[these], rows.step, rows.lengths[these], int(side_lengths.max()), int(side_lengths.sum()))

    packed = torch.cat([a.detach()[masks[0]], b.detach()[masks[1]]]).requires_grad_()
    grads = [draw(*mask.shape, 4 * WIDTH) * mask[:, :, None] for mask in masks]
    grad_m = torch.cat([grads[0][masks[0]], grads[1][masks[1]]])
    assert words == int(masks[0].sum())
    sides = side(slice(None, pairs), a_lengths), side(slice(pairs, None), b_lengths)
    return Batch(a, b, *masks, packed, *sides, *grads, grad_m)


# From a batch to m_a and m_b, or one m for packed rows. The first is what the others are compared with.
VARIANTS: dict[str, Callable[[Batch], tuple[Tensor, ...]]] = {
    EAGER: lambda x: eager_local_inference(x.a, x.b, x.a_mask, x.b_mask),
    "torch.compile of it": lambda x: compiled(eager_local_inference)(x.a, x.b, x.a_mask, x.b_mask),
    "two SDPA calls": lambda x: sdpa_local_inference(x.a, x.b, x.a_mask, x.b_mask),
    "esim_fast, mask": lambda x: local_inference(x.a, x.b, a_mask=x.a_mask, b_mask=x.b_mask),
    "esim_fast, packed rows": lambda x: (local_inference_packed(x.packed, x.a_rows, x.b_rows),),
    "FlexAttention": lambda x: flex_local_inference(x.a, x.b, x.a_mask, x.b_mask),
}


def gradients(name: str, batch: Batch, m: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if "packed" in name:
        return torch.autograd.grad(m, batch.packed, batch.grad_m)
    return torch.autograd.grad(m, (batch.a, batch.b), (batch.grad_m_a, batch.grad_m_b))


def valid(name: str, batch: Batch, results: tuple[Tensor, ...]) -> Tensor:
    """Results of the tokens alone, one behind the other."""
    if "packed" in name:
        return results[0].detach()
    return torch.cat(
        [result.detach()[mask] for result, mask in zip(results, (batch.a_mask, batch.b_mask), strict=True)]
    )


def running_variants(batches: list[Batch], dtype: torch.dtype) -> tuple[dict[str, Callable], list[str]]:
    """The variants that run here, each found to be right, and why the others do not."""
    batch = batches[-1]
    exact_batch = replace(
        batch, a=batch.a.detach().double().requires_grad_(), b=batch.b.detach().double().requires_grad_()
    )
    m = eager_local_inference(exact_batch.a, exact_batch.b, exact_batch.a_mask, exact_batch.b_mask)
    grad_m = (batch.grad_m_a.double(), batch.grad_m_b.double())
    exact = [valid("", batch, m), valid("", batch, torch.autograd.grad(m, (exact_batch.a, exact_batch.b), grad_m))]
    running, notes = {}, []
    for name, variant in VARIANTS.items():
        if (name, dtype) in _FAILED:
            notes.append(_FAILED[name, dtype])
            continue
        peer = name not in (EAGER, "esim_fast, mask", "esim_fast, packed rows")
        try:
            m = variant(batch)
            results = [valid(name, batch, m), valid(name, batch, gradients(name, batch, m))]
        except Exception as error:
            if not peer:
                raise
            notes.append(f"{name}: does not run here ({(str(error).strip() or repr(error)).splitlines()[0][:100]})")
            if FULL_SIZE and not isinstance(error, torch.OutOfMemoryError):  # which another shape may not run into
                _FAILED[name, dtype] = notes[-1]
            continue
        errors = [relative_error(result, value) for result, value in zip(results, exact, strict=True)]
        # Eager bf16 rounds scores of about ten to its dtype before it takes their exponentials.
        right = max(errors) < 40 * torch.finfo(dtype).eps
        assert right or peer, f"{name}: relative errors {errors}"
        if right:
            running[name] = variant
        else:
            notes.append(f"{name}: wrong, relative errors {errors}")
    return running, notes


@pytest.mark.parametrize(("kind", "pairs"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward(kind, pairs, dtype, report):
    torch.compiler.reset()  # what was compiled for other shapes counts towards a limit
    random = np.random.default_rng(0)
    batches = [make_batch(lengths, dtype, seed) for seed, lengths in enumerate(lengths_of(kind, pairs, random))]
    running, notes = running_variants(batches, dtype)
    shapes = " ".join(f"{x.a.shape[1]}x{x.b.shape[1]}" for x in batches)
    title = f"local_inference, {kind} at batch {pairs} ({shapes}), {str(dtype).removeprefix('torch.')} on {DEVICE.type}"

    parameters = {
        "lengths": kind,
        "batch": pairs,
        "precision": "fp32" if dtype == torch.float32 else "bf16",
        "device": DEVICE.type,
        "batches": BATCHES,
    }

    def forward(variant):
        for batch in batches:
            variant(batch)

    def both(name, variant):
        for batch in batches:
            gradients(name, batch, variant(batch))

    passes = {
        "forward": {name: lambda v=v: forward(v) for name, v in running.items()},
        "forward + backward": {name: lambda n=name, v=v: both(n, v) for name, v in running.items()},
    }
    for which, calls in passes.items():
        with torch.no_grad() if which == "forward" else nullcontext():
            comparison = interleaved(f"{title}: {which}, {BATCHES} batches", calls)
            report(replace(comparison, notes=tuple(notes)).of("local_inference", **parameters, **{"pass": which}))
            if ON_GPU:
                on_device = device_times(f"{title}: {which}, {BATCHES} batches, device time", calls)
                if on_device.values:
                    on_device = against_the_floor(on_device, batches, which)
                    report(on_device.of("local_inference", **parameters, **{"pass": f"{which}, device time"}))
                peak = peak_memory(f"{title}: {which}, peak memory", calls)
                report(peak.of("memory of local_inference", **parameters, **{"pass": which}))


def against_the_floor(comparison: Comparison, batches: list[Batch], which: str) -> Comparison:
    """Adds the time that the least bytes take at the copy's rate, unless a cache could hold them.

    Those are a and b and their enhancements, once each; backward, those again and the gradients of a and b. The floor
    is that of packed rows: padded input has its padding to write besides, of which a note tells.
    """
    copied, cache = copy_bandwidth(), cache_bytes()
    times = 5 if which == "forward" else 5 + 6
    sizes = {
        "esim_fast, mask": sum(x.a.numel() + x.b.numel() for x in batches),
        "esim_fast, packed rows": sum(x.packed.numel() for x in batches),
    }
    moved = {name: times * size * batches[0].a.element_size() for name, size in sizes.items()}
    if min(moved.values()) < 3 * cache:
        note = f"{min(moved.values()) / 1e6:.0f} MB lie in the cache of {cache / 1e6:.0f} MB: no share of the copy's"
        return replace(comparison, notes=(*comparison.notes, note))
    rates = {name: moved[name] / comparison.values[name] for name in moved if name in comparison.values}
    notes = [
        f"{name}: {rate / 1e12:.2f} TB/s of the copy's {copied / 1e12:.2f}: {rate / copied:.0%}"
        for name, rate in rates.items()
    ]
    return replace(comparison, notes=(*comparison.notes, *notes), floor=moved["esim_fast, packed rows"] / copied)

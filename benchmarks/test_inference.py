"""Whole ESIM, evaluation without gradients: esim_fast against the notebook's and coetaur0's, eager and compiled.

300 units, SNLI's vocabulary, batches of bucketed length. Ids are on the device already; what a batch needs beside
them is counted where a variant computes it, and packed batches are packed by the data loader (`benchmarks.epoch`).
"""

from dataclasses import replace

import pytest
import torch
from corpus import make_batches
from models import all_variants, logits_of, precision_set, right_ones
from timing import DEVICE, ON_GPU, interleaved

# Kind of lengths and pairs in a batch.
SHAPES = [("SNLI", 1), ("SNLI", 32), ("SNLI", 128)]
LARGER = [("SNLI", 512), ("SNLI", 1024), ("MultiNLI", 32)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.full) for shape in LARGER]
PRECISIONS = ["fp32", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("tf32", "bf16"))]
BATCHES = 4


@pytest.mark.parametrize(("kind", "size"), SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_inference(kind, size, precision, full, report):
    variants = all_variants(DEVICE, precision, full)
    batches = [batch.to(DEVICE) for batch in make_batches(kind, size, BATCHES)]
    for variant in variants.values():
        variant.net.eval()
    with precision_set(precision), torch.no_grad():
        running, notes = right_ones(variants, batches[-1], precision, gradients=False)
        calls = {
            name: lambda v=variant: [logits_of(v, batch, precision) for batch in batches]
            for name, variant in running.items()
        }
        shapes = " ".join(batch.shape for batch in batches)
        title = f"inference, {kind} at batch {size} ({shapes}), {precision} on {DEVICE.type}: {BATCHES} batches"
        comparison = interleaved(title, calls, seconds=3.0 if ON_GPU else 5.0)
    parameters = {"lengths": kind, "batch": size, "precision": precision, "device": DEVICE.type, "batches": BATCHES}
    report(replace(comparison, notes=tuple(notes)).of("inference", **parameters))

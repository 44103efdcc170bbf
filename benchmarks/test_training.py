"""A training step of the whole ESIM: esim_fast against the notebook's and coetaur0's, eager and compiled.

300 units, SNLI's vocabulary with its dense embedding gradient, dropout, the same fused Adam for all; batches of
bucketed length. A step is zero_grad, forward, cross entropy, backward, and the optimizer's.
"""

import time
from dataclasses import replace
from statistics import median

import pytest
import torch
from corpus import PairBatch, make_batches
from models import all_variants, fused_adam, loss_of, passed_over, precision_set, right_ones, set_dropout
from timing import DEVICE, ON_GPU, interleaved, peak_memory, saved_memory

import esim_fast

SHAPES = [("SNLI", 32), ("SNLI", 128)]
LARGER = [("SNLI", 512), ("SNLI", 1024), ("MultiNLI", 32)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.full) for shape in LARGER]
PRECISIONS = ["fp32", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("tf32", "bf16"))]
BATCHES = 4
# Variants that know a batch's lengths from the CPU.
UNWAITED = ["esim_fast, with lengths", "esim_fast, packed batches"]


@pytest.mark.parametrize(("kind", "size"), SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training(kind, size, precision, full, report):
    variants = all_variants(DEVICE, precision, full)
    batches = [batch.to(DEVICE) for batch in make_batches(kind, size, BATCHES)]
    shapes = " ".join(batch.shape for batch in batches)
    title = f"training, {kind} at batch {size} ({shapes}), {precision} on {DEVICE.type}"
    parameters = {"lengths": kind, "batch": size, "precision": precision, "device": DEVICE.type}
    with precision_set(precision):
        set_dropout(variants, on=False)
        running, notes = right_ones(variants, batches[-1], precision, gradients=True)
        set_dropout(variants, on=True)
        for name, variant in list(running.items()):
            try:
                loss_of(variant, batches[0], precision).backward()  # with dropout, compiled ones are compiled anew
            except Exception as error:
                notes.append(passed_over(name, variant, error))
                del running[name]
        # Variants of one network share its weights and its optimizer.
        optimizers = {variant.net: fused_adam(variant.net) for variant in running.values()}

        def both(variant):
            for batch in batches:
                variant.net.zero_grad()
                loss_of(variant, batch, precision).backward()

        def step(variant):
            for batch in batches:
                optimizers[variant.net].zero_grad()
                loss_of(variant, batch, precision).backward()
                optimizers[variant.net].step()

        notes.append(f"packed batches are packed by the data loader, in {packing(batches):,.0f} µs for {BATCHES}")
        for which, run in (("training step", step), ("forward + backward", both)):
            calls = {name: lambda v=v, run=run: run(v) for name, v in running.items()}
            seconds = 3.0 if ON_GPU else 5.0
            comparison = interleaved(f"{title}: {which}, {BATCHES} batches", calls, seconds=seconds)
            comparison = replace(comparison, notes=tuple(notes))
            report(comparison.of("training", **parameters, **{"pass": which, "batches": BATCHES}))

        if ON_GPU:
            # Without gradients at the beginning and the end, so that they count.
            calls = {name: lambda v=v: (step(v), v.net.zero_grad()) for name, v in running.items()}
            for net in optimizers:
                net.zero_grad()
            memory = peak_memory(f"{title}: peak memory of a step", calls)
        else:
            largest = max(batches, key=lambda batch: batch.tokens)
            calls = {name: lambda v=v: loss_of(v, largest, precision) for name, v in running.items()}
            own = [parameter for net in optimizers for parameter in net.parameters()]
            memory = saved_memory(f"{title}: kept for the backward pass, largest batch", calls, own)
        report(memory.of("memory", **parameters))
    for net in optimizers:
        net.zero_grad()


def packing(batches: list[PairBatch]) -> float:
    """Microseconds that the data loader takes to pack all batches, on the CPU."""
    parts = [(x.p.cpu(), x.h.cpu(), x.p_lengths, x.h_lengths) for x in batches]
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        for part in parts:
            esim_fast.pack_pairs(*part)
        times.append(time.perf_counter() - begin)
    return 1e6 * median(times)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU here")
@pytest.mark.parametrize("name", UNWAITED)
def test_a_step_does_not_wait_for_the_gpu(name):
    variants = all_variants(DEVICE, "fp32", False)
    set_dropout(variants, on=True)
    variant = variants[name]
    optimizer = fused_adam(variant.net)
    batch = make_batches("SNLI", 32, 1)[0].to(DEVICE)

    def step():
        optimizer.zero_grad()
        loss_of(variant, batch, "fp32").backward()
        optimizer.step()

    step()  # the first one initializes libraries and the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""An epoch of SNLI's size through the real data loader and the real training step: pairs a second, and what takes them.

    python -m benchmarks.epoch [--pairs N] [--batch-size 32] [--device auto] [--precision fp32] [--json FILE]

run in the repository's root. Sentences are made up (corpus.py), their lengths, the vocabulary and the work are SNLI's.
On a CPU a part of the epoch is run, and the whole one's time worked out from it. On a GPU the phases of a step are
timed by events in its stream, so that no step is waited for.
"""

import sys
import time

import numpy as np
import torch

from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.corpus import VOCABULARY, draw_pairs
from benchmarks.timing import environment
from esim_fast import ESIM
from esim_fast.data import batches
from esim_fast.training import PRECISIONS, Recipe, training_step

SNLI_PAIRS = 549_367  # labelled ones of its training set
CPU_PAIRS = 6_400
WARM_UP = 5  # steps that are not counted: they initialise libraries, and choose and compile kernels
# The moments of a step, by the phase that ends there. What is not the network or the optimiser's step comes between.
PHASES = ("forward", "loss, backward, clipping", "optimiser", "loader, copies, metrics")


class Stopwatch:
    """Takes the moments of each step, by hooks, so that the training step is the one that trains."""

    def __init__(self, net: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.on_gpu = net.device.type == "cuda"
        self.moments: list[list] = []  # of each step: its begin, and the ends of its phases but the last
        self._hooks = [
            net.register_forward_pre_hook(lambda *_: self.moments.append([self._now()])),
            net.register_forward_hook(lambda *_: self._take()),
            optimiser.register_step_pre_hook(lambda *_: self._take()),
            optimiser.register_step_post_hook(lambda *_: self._take()),
        ]

    def _now(self) -> float | torch.cuda.Event:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _take(self) -> None:
        self.moments[-1].append(self._now())

    def stop(self) -> dict[str, float]:
        """Seconds of each phase over all steps."""
        for hook in self._hooks:
            hook.remove()
        end = self._now()
        if self.on_gpu:
            torch.cuda.synchronize()
        nexts = [moments[0] for moments in self.moments[1:]] + [end]
        seconds = dict.fromkeys(PHASES, 0.0)
        for moments, following in zip(self.moments, nexts, strict=True):
            marks = [*moments, following]
            for phase, begin, finish in zip(PHASES, marks[:-1], marks[1:], strict=True):
                seconds[phase] += begin.elapsed_time(finish) / 1e3 if self.on_gpu else finish - begin
        return seconds


def run(pairs: int, batch_size: int, device: torch.device, precision: str) -> dict[str, object]:
    """Trains on ``pairs`` made-up pairs, once; returns what it took."""
    corpus = draw_pairs("SNLI", pairs, np.random.default_rng(0))
    recipe = Recipe(epochs=1, batch_size=batch_size, precision=precision)
    torch.manual_seed(recipe.seed)
    net = ESIM(300, 300, VOCABULARY, 3, device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    waits = []  # of the host for the loader, a batch each

    def train(steps: int | None = None) -> int:
        loader = iter(batches(corpus, batch_size, shuffle=True, epoch=1, pin_memory=device.type == "cuda"))
        correct, seen = torch.zeros((), device=device), 0
        while steps is None or seen < steps * batch_size:
            begin = time.perf_counter()
            batch = next(loader, None)
            if batch is None:
                break
            waits.append(time.perf_counter() - begin)
            batch = batch.to(device)
            correct += training_step(net, [batch], optimiser, scaler, recipe).correct
            seen += len(batch)
        float(correct)  # waits for a GPU
        return seen

    train(WARM_UP)
    waits.clear()
    begin = time.perf_counter()
    stopwatch = Stopwatch(net, optimiser)
    seen = train()
    seconds = time.perf_counter() - begin
    phases = stopwatch.stop()
    return {"pairs": seen, "seconds": seconds, "phases": phases, "loader_wait": sum(waits)}


def page(result: dict, device: torch.device) -> str:
    """The figures as a small table."""
    pairs, seconds, phases = result["pairs"], result["seconds"], result["phases"]
    whole = f"{seconds * SNLI_PAIRS / pairs:,.1f} s for SNLI's {SNLI_PAIRS:,}"
    if pairs != SNLI_PAIRS:
        whole += ", extrapolated"
    lines = [f"{pairs:,} pairs in {seconds:,.1f} s: {pairs / seconds:,.0f} pairs a second, {whole}"]
    total = sum(phases.values())
    lines += [f"  {phase:<36} {value:>9.2f} s {value / total:>6.1%}" for phase, value in phases.items()]
    lines.append(f"  the host waited {result['loader_wait']:.2f} s for the loader")
    if device.type == "cuda":
        lines.append("  phases are times in the GPU's stream, in which it may be waiting for launches")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.epoch", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=positive, help=f"default: {SNLI_PAIRS:,}, on a CPU {CPU_PAIRS:,}")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    add_json(parser)
    options = parser.parse_args(arguments)
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        parser.error("--device cuda: there is no NVIDIA GPU here")
    device = torch.device("cuda" if available and options.device != "cpu" else "cpu")
    pairs = options.pairs or (SNLI_PAIRS if device.type == "cuda" else CPU_PAIRS)
    print(environment(), flush=True)
    result = run(pairs, options.batch_size, device, options.precision)
    print(page(result, device))
    settings = {"batch_size": options.batch_size, "device": device.type, "precision": options.precision}
    write_json(parser, options.json, {**settings, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An epoch of SNLI's size through the trainer and its data loader: pairs a second, and where the time goes.

    python -m benchmarks.epoch [--pairs N] [--batch-size 32] [--precision fp32] [--json FILE]

run in the repository's root. Sentences are made up (corpus.py), their lengths, the vocabulary and the work are SNLI's:
the trainer is `esim-fast train`'s, with its evaluation on as many pairs as SNLI's dev set has, and its files. On a CPU
a part of the epoch runs, and the time of a whole one is extrapolated. On a GPU the parts are timed by events in its
stream, so that nothing waits for a step.
"""

import sys
import tempfile
import time

import numpy as np
import torch

from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.corpus import VOCABULARY, draw_pairs
from benchmarks.timing import DEVICE, FULL_SIZE, ON_GPU, Stopwatch, environment, synchronize
from esim_fast import ESIM, Classifier
from esim_fast.data import Vocabulary
from esim_fast.training import PRECISIONS, Recipe, Trainer

SNLI_PAIRS = 549_367  # labeled ones of its training set
DEV_PAIRS = 9_842  # and of its dev set
CPU_PAIRS = 6_400
# Pairs that do not count: they initialize libraries, and on a GPU compile a kernel for each size of tile, the rarest of
# which comes after hundreds of batches. Triton keeps compiled kernels on disk, so this happens once on a machine.
WARM_UP = 16_000 if FULL_SIZE else 160
LABELS = ["entailment", "neutral", "contradiction"]
FIRST, LAST = "order of the pairs, first checkpoint", "model and checkpoint written"  # once a run


class Run:
    """A run of the real trainer on made-up pairs, timed by hooks."""

    def __init__(self, net: ESIM, recipe: Recipe, pairs: int, directory: str) -> None:
        random = np.random.default_rng(0)
        self.net = net
        words = Vocabulary.build({f"word-{rank}": 1 for rank in range(VOCABULARY - 2)})
        model = Classifier(net, words, LABELS)
        dev = draw_pairs("SNLI", max(1, pairs * DEV_PAIRS // SNLI_PAIRS), random)
        self.trainer = Trainer(model, draw_pairs("SNLI", pairs, random), dev, recipe, directory)

    def time(self) -> tuple[float, dict[str, float]]:
        """Seconds from end to end, and of each part of it."""
        net, optimizer = self.net, self.trainer.optimizer
        before = FIRST
        begin = time.perf_counter()
        stopwatch = Stopwatch()

        def network_begins(*_: object) -> None:
            nonlocal before
            stopwatch.end(before if net.training else "evaluation")
            before = "loader, copies, metrics"

        hooks = [
            net.register_forward_pre_hook(network_begins),
            net.register_forward_hook(lambda *_: stopwatch.end("forward" if net.training else "evaluation")),
            optimizer.register_step_pre_hook(lambda *_: stopwatch.end("loss, backward, clipping")),
            optimizer.register_step_post_hook(lambda *_: stopwatch.end("optimizer")),
        ]
        self.trainer.run()
        stopwatch.end(LAST)
        synchronize()
        seconds = time.perf_counter() - begin
        for hook in hooks:
            hook.remove()
        return seconds, stopwatch.seconds()


def measure(pairs: int, batch_size: int, precision: str) -> dict[str, object]:
    """Trains on ``pairs`` made-up pairs, once; returns what it took."""
    recipe = Recipe(epochs=1, batch_size=batch_size, precision=precision)
    torch.manual_seed(recipe.seed)
    net = ESIM(300, 300, VOCABULARY, len(LABELS), DEVICE)
    with tempfile.TemporaryDirectory() as directory:
        Run(net, recipe, WARM_UP, directory).trainer.run()
    with tempfile.TemporaryDirectory() as directory:
        seconds, parts = Run(net, recipe, pairs, directory).time()
    return {"pairs": pairs, "seconds": seconds, "parts": parts}


def page(result: dict) -> str:
    """The figures as a small table."""
    pairs, seconds, parts = result["pairs"], result["seconds"], result["parts"]
    once = parts.get(FIRST, 0.0) + parts.get(LAST, 0.0)
    whole = f"{once + (seconds - once) * SNLI_PAIRS / pairs:,.1f} s for SNLI's {SNLI_PAIRS:,}"
    if pairs != SNLI_PAIRS:
        whole += ", extrapolated"
    lines = [f"{pairs:,} pairs in {seconds:,.1f} s: {pairs / seconds:,.0f} pairs a second, {whole}"]
    total = sum(parts.values())
    lines += [f"  {part:<36} {value:>9.2f} s {value / total:>6.1%}" for part, value in parts.items()]
    if ON_GPU:
        lines.append("  parts are times in the GPU's stream, in which it may be waiting for launches")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.epoch", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=positive, help=f"default: {SNLI_PAIRS:,}, on a CPU {CPU_PAIRS:,}")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    add_json(parser)
    options = parser.parse_args(arguments)
    pairs = options.pairs or (SNLI_PAIRS if FULL_SIZE else CPU_PAIRS)
    print(environment(), flush=True)
    result = measure(pairs, options.batch_size, options.precision)
    print(page(result))
    settings = {"batch_size": options.batch_size, "device": DEVICE.type, "precision": options.precision}
    settings["lstms_in_tf32"] = torch.backends.cudnn.allow_tf32
    write_json(parser, options.json, {**settings, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())

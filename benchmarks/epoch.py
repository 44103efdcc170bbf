"""An epoch of SNLI's size with ``esim_fast.training.Trainer``, on made-up pairs: captured steps and eager ones.

    python -m benchmarks.epoch [--json FILE] [--dry-run]

549,367 pairs of SNLI's lengths, in batches of 32, in bf16. Each way to train first takes some steps that are not timed,
in which kernels are compiled. A run that takes too long is stopped, and the time of its training steps is extrapolated
to an epoch; then the evaluation on dev is not counted. If one of them fails, the others are measured all the same, and
the exit code is 1. --dry-run trains on a few pairs without a GPU, where a graph is the captured function.
"""

import sys
import time
import traceback
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.captured_steps import BACKENDS, CAPTURED, CAPTURED_CUDA, OURS, watched_graphs
from benchmarks.corpus import VOCABULARY, draw_pairs
from benchmarks.measure import DEVICE, FULL_SIZE, gpu_options, machine
from benchmarks.models import LABELS, SIZES
from esim_fast import ESIM, Classifier
from esim_fast.cli.options import Parser
from esim_fast.data import EncodedPairs, Vocabulary
from esim_fast.files import write_json
from esim_fast.training import Recipe, Trainer, initialize

TRAIN, DEV, FIRST = (549_367, 9_842, 200 * 32) if FULL_SIZE else (96, 8, 32)  # pairs; FIRST: not timed
# Seconds of each way to train. The CUDA BiLSTM has never run on a GPU: it comes last.
LIMITS = {CAPTURED: 12.0, OURS: 4.0, CAPTURED_CUDA: 15.0}
WORDS = Vocabulary.build(dict.fromkeys(map(str, range(VOCABULARY - 2)), 1))


def epoch_of(name: str, train: EncodedPairs, dev: EncodedPairs) -> dict[str, object]:
    """How long an epoch takes, how many of its steps were done, and which share of these was replayed."""
    torch.manual_seed(0)
    net = ESIM(*SIZES, bilstm_backend=BACKENDS[name]).to(DEVICE)
    initialize(net)
    model, recipe = Classifier(net, WORDS, list(map(str, range(LABELS)))), Recipe(epochs=1, precision="bf16")
    end = float("inf")
    with TemporaryDirectory() as folder, watched_graphs():
        graphs = "off" if name == OURS else "on"
        trainer = Trainer(model, train, dev, recipe, folder, cuda_graphs=graphs, should_stop=lambda: time.time() > end)
        end = time.time() + LIMITS[name]
        try:
            trainer.run()
        except KeyboardInterrupt:
            if time.time() < end:
                raise
    progress = trainer.progress
    if progress.history:
        (metrics,) = progress.history
        replayed, seconds, done = metrics.replayed_steps, metrics.seconds, trainer.steps_of_epoch
    else:
        replayed, done = progress.replayed, progress.batch
        seconds = progress.seconds / done * trainer.steps_of_epoch
    found = {"seconds": seconds, "steps": trainer.steps_of_epoch, "steps_done": done}
    return {**found, "extrapolated": done < trainer.steps_of_epoch, "replayed": (replayed or 0) / done}


def main() -> int:
    parser = Parser(prog="python -m benchmarks.epoch", description=__doc__.splitlines()[0])
    options = gpu_options(parser)
    train, dev = (draw_pairs(size, np.random.default_rng(size)) for size in (TRAIN, DEV))
    found, failed = {}, False
    for name in LIMITS:
        if DEVICE.type == "cpu" and BACKENDS[name]:
            continue
        try:
            epoch_of(name, draw_pairs(FIRST, np.random.default_rng(1)), dev)
            found[name] = epoch_of(name, train, dev)
        except Exception:
            failed = True
            print(f"{name}: {traceback.format_exc()}", flush=True)
            continue
        print(f"{name}: {found[name]}", flush=True)
        if options.json:
            write_json(options.json, {**machine(), "pairs": TRAIN, "epochs": found})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

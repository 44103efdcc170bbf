"""The program of each process in test_distributed.py."""

import json
import os
from dataclasses import replace

import numpy as np
import torch

from esim_fast import graphs
from esim_fast.data import EncodedPairs
from esim_fast.training import Recipe, evaluate
from esim_fast.training.distributed import joined, this_worker
from tests.training.training_tasks import (
    GraphsOnCPU,
    new_model,
    new_regression,
    new_regression_trainer,
    new_trainer,
    pairs,
    scored_pairs,
)

SIZES = [1, 2, 3, 5, 256, 257, 1023]
STEPS = Recipe(epochs=3, batch_size=8, learning_rate=1e-2, ema_decay=0.9)


def uneven_pairs():
    """76 pairs, so that the last batch of 8 has 4. The first pair has no words, others have words in one sentence."""
    return EncodedPairs([[], *[[2, 6], [], [4]] * 25], [[], *[[6, 2], [5], []] * 25], [0] + [0, 1, 1] * 25)


def steps(directory, accumulate, **options):
    """A network without dropout, whose random numbers would differ."""
    recipe = replace(STEPS, accumulate=accumulate)
    trainer = new_trainer(recipe, directory, new_model(dropout=0.0), uneven_pairs(), pairs(41, 2), **options)
    return [[m.train_loss, m.train_accuracy, m.dev_loss, m.dev_accuracy] for m in trainer.run()]


def captured_steps(directory):
    """The same steps, with a stand-in for CUDA graphs."""
    before, graphs.CUDAGraphs = graphs.CUDAGraphs, GraphsOnCPU
    try:
        return steps(directory, 1, cuda_graphs="on")
    finally:
        graphs.CUDAGraphs = before


def scores():
    """Evaluates data sets that do not divide evenly."""
    net = new_model(seed=3).net
    return [list(evaluate(net, pairs(size, size), worker=this_worker())) for size in SIZES]


def uneven_scores():
    """The same pairs with scores."""
    found = uneven_pairs()
    found.labels = (found.labels * 2 + np.arange(len(found)) % 3).astype(np.float32)
    return found


def other_figures(directory):
    """Figures that need the predictions of all processes, for scores and for weighted labels."""
    train, dev = uneven_scores(), scored_pairs(41, 2)
    model = new_regression(dropout=0.0)
    history = new_regression_trainer(STEPS, directory / "scores", model, train, dev).run()
    values = [[m.train_loss, m.dev_loss, m.dev_pearson, m.dev_spearman] for m in history]
    recipe = replace(STEPS, class_weights="balanced", best_by="auc")
    history = new_trainer(recipe, directory / "auc", new_model(dropout=0.0), uneven_pairs(), pairs(41, 2)).run()
    return [*values, *([m.train_loss, m.dev_loss, m.dev_accuracy, m.dev_auc] for m in history)]


def interrupted(directory):
    """How much weights and metrics differ between a run with two parts and one with a single part, with dropout."""
    recipe = Recipe(epochs=2, batch_size=16)
    whole = new_trainer(recipe, directory / "whole", checkpoint_steps=3)
    whole.run()
    calls = iter(range(100))
    parts = new_trainer(recipe, directory / "parts", should_stop=lambda: next(calls) == 12)
    try:
        parts.run()
        raise AssertionError("nobody interrupted it")
    except KeyboardInterrupt:
        parts = new_trainer(recipe, directory / "parts", new_model(seed=7), resume=True)
        assert (parts.progress.epoch, parts.progress.batch) == (2, 3)
        parts.run()
    values = []
    for trainer in (whole, parts):
        metrics = [[m.train_loss, m.train_accuracy, m.dev_loss] for m in trainer.progress.history]
        values.append(torch.cat([*(x.flatten() for x in trainer.net.parameters()), torch.tensor(metrics).flatten()]))
    return float((values[0] - values[1]).abs().max())


def main(folder, place):
    """Runs the worker; ``place`` has torchrun's environment variables."""
    os.environ.update(place)
    with joined(torch.device("cpu")):
        result = {
            "workers": this_worker().count,
            "scores": scores(),
            "steps": {parts: steps(folder / f"steps-{parts}", parts) for parts in (1, 2)},
            "captured": captured_steps(folder / "captured"),
            "interrupted": interrupted(folder),
            "figures": other_figures(folder / "figures"),
        }
        (folder / f"result-{this_worker().rank}.json").write_text(json.dumps(result))

"""Training on scores: squared error and correlations, otherwise like training on labels."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from esim_fast import Classifier
from esim_fast.data import EncodedPairs, batches
from esim_fast.training import Recipe, evaluate, initialize, training_step
from esim_fast.training.losses import no_target, summed_loss
from tests.training.training_tasks import new_model, new_regression, new_regression_trainer, new_trainer, scored_pairs

RECIPE = Recipe(epochs=4, patience=None, learning_rate=1e-2, batch_size=16, seed=1)


def measured(history):
    return [replace(metrics, seconds=0) for metrics in history]


def weights(path):
    return (path / "model.safetensors").read_bytes()


def correlations(model, pairs):
    """SciPy's correlations of the predictions, in the batches of the run's evaluation."""
    stats = pytest.importorskip("scipy.stats")
    logits = torch.zeros(len(pairs), 1)
    evaluate(model.net, pairs, batch_size=4 * RECIPE.batch_size, logits=logits)
    scores = logits[:, 0].double().numpy()
    gold = pairs.labels.astype(np.float64)
    return stats.pearsonr(scores, gold).statistic, stats.spearmanr(scores, gold).statistic


def test_it_learns_and_keeps_the_best(tmp_path):
    trainer = new_regression_trainer(RECIPE, tmp_path)
    history = trainer.run()
    found = [metrics.dev_spearman for metrics in history]
    assert max(found) > 0.8
    assert trainer.best.dev_spearman == max(found)
    assert history[-1].train_loss < history[0].train_loss
    dev = scored_pairs(80, 2)
    for directory, metrics in ((tmp_path, trainer.best), (tmp_path / "last", history[-1])):
        model = Classifier.from_pretrained(directory)
        assert (metrics.dev_pearson, metrics.dev_spearman) == pytest.approx(correlations(model, dev), abs=1e-9)
        error = (model.logits(dev)[:, 0].double().numpy() - dev.labels) ** 2
        assert metrics.dev_loss == pytest.approx(error.mean(), rel=1e-6)
        assert evaluate(model.net, dev) == (pytest.approx(error.mean(), rel=1e-6), None)


def test_lines_of_metrics_hold_correlations_and_no_accuracies(tmp_path):
    new_regression_trainer(Recipe(epochs=1), tmp_path).run()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = ["epoch", "train_loss", "dev_loss", "learning_rate", "seconds", "dev_pearson", "dev_spearman"]
    assert list(json.loads(line)) == expected


@pytest.mark.parametrize(("best_by", "key"), [("pearson", "dev_pearson"), ("loss", "dev_loss")])
def test_other_figures_choose_the_epoch(tmp_path, best_by, key):
    trainer = new_regression_trainer(replace(RECIPE, best_by=best_by), tmp_path)
    values = [getattr(metrics, key) for metrics in trainer.run()]
    assert getattr(trainer.best, key) == (min if best_by == "loss" else max)(values)


def test_a_step_is_an_adam_step_on_the_mean_squared_error():
    ours = new_regression(dropout=0.0).net.train()
    plain = copy.deepcopy(ours)
    (batch,) = batches(scored_pairs(12, 1), 12, shuffle=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0) for net in (ours, plain)]
    for _ in range(3):
        result = training_step(ours, [batch], optimizers[0], scaler, Recipe(max_grad_norm=1e9))
        optimizers[1].zero_grad()
        loss = torch.nn.functional.mse_loss(plain(batch.pairs)[:, 0], batch.labels)
        loss.backward()
        optimizers[1].step()
        assert float(result.loss_sum) == pytest.approx(12 * loss.item(), rel=1e-6)
        assert int(result.correct) == 0
    for parameter, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


def test_a_pair_without_a_target_is_ignored():
    logits = torch.tensor([[2.0], [1e6], [-1.0]], requires_grad=True)
    targets = torch.tensor([1.5, 0.0, 1.0])
    targets[1:2] = no_target(targets)
    loss, _ = summed_loss(logits, targets)
    loss.backward()
    assert loss.item() == 0.25 + 4.0
    assert logits.grad.tolist() == [[1.0], [0.0], [-4.0]]


def test_parts_of_a_batch_give_the_steps_of_the_whole(tmp_path):
    nets = []
    for accumulate in (1, 3):
        model = new_regression(dropout=0.0)
        recipe = replace(RECIPE, epochs=1, learning_rate=1e-3, accumulate=accumulate)
        new_regression_trainer(recipe, tmp_path / str(accumulate), model).run()
        nets.append(model.net)
    for parameter, expected in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"best_by": "loss", "ema_decay": 0.9, "precision": "bf16"}])
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, options):
    recipe = replace(RECIPE, epochs=3, **options)  # ten steps per epoch
    history = new_regression_trainer(recipe, tmp_path / "whole").run()
    for stop in (1, 10, 17):
        calls = iter(range(1, 100))
        directory = tmp_path / str(stop)
        trainer = new_regression_trainer(recipe, directory, should_stop=lambda c=calls, s=stop: next(c) == s)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        resumed = new_regression_trainer(recipe, directory, new_regression(seed=7), resume=True)
        assert measured(resumed.run()) == measured(history)
        for part in ("", "last"):
            assert weights(directory / part) == weights(tmp_path / "whole" / part)


def test_a_constant_prediction_has_no_correlation_and_is_not_the_best(tmp_path, monkeypatch):
    """An epoch with an undefined figure ranks last, and its line lacks the figure."""
    model = new_regression(dropout=0.0)
    model.net.linear.mlp[-1].weight.data.zero_()
    history = new_regression_trainer(replace(RECIPE, epochs=3, learning_rate=1e-30), tmp_path, model).run()
    assert [metrics.dev_spearman for metrics in history] == [None] * 3
    assert "spearman" not in (tmp_path / "metrics.jsonl").read_text()
    assert [metrics.learning_rate for metrics in history] == [1e-30, 5e-31, 2.5e-31]
    assert (tmp_path / "model.safetensors").exists()


def test_curves_of_scores(tmp_path, monkeypatch, curves):
    figures = []
    matplotlib = pytest.importorskip("matplotlib.figure")
    save = matplotlib.Figure.savefig
    monkeypatch.setattr(matplotlib.Figure, "savefig", lambda f, *a, **o: (figures.append(f), save(f, *a, **o)))
    history = new_regression_trainer(Recipe(epochs=2), tmp_path).run()
    assert [axes.get_title(loc="left") for axes in figures[-1].axes] == ["loss", "correlation"]
    lines = figures[-1].axes[1].lines
    for line, name in zip(lines, ("dev_spearman", "dev_pearson"), strict=False):
        assert list(line.get_ydata()) == [getattr(metrics, name) for metrics in history]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_output_bias_of_the_mean():
    for value in (0.0, 2.5):
        net = new_regression(dropout=0.0).net.eval()
        state = torch.get_rng_state()
        initialize(net, output_bias=value)
        assert net.linear.mlp[-1].bias.tolist() == [value]
        with torch.random.fork_rng():  # it uses no random numbers
            torch.set_rng_state(state)
            other = new_regression(dropout=0.0).net
            torch.set_rng_state(state)
            initialize(other)
        assert torch.equal(net.linear.mlp[-1].weight, other.linear.mlp[-1].weight)


@pytest.mark.parametrize(
    ("recipe", "data", "message"),
    [
        (
            {},
            {"train": EncodedPairs([[2]], [[2]], [1])},
            "train: the network has one output and learns scores: expected",
        ),
        (
            {},
            {"dev": EncodedPairs([[2]] * 2, [[2]] * 2, [1.0, math.nan])},
            "dev: expected finite scores, got nan at ind",
        ),
        (
            {},
            {"dev": EncodedPairs([[2]] * 2, [[2]] * 2, [2.5, 2.5])},
            r"dev: expected scores that differ, got only 2\.5",
        ),
        ({}, {"dev": EncodedPairs([], [], [])}, "dev: expected labeled pairs, got none"),
        ({"label_smoothing": 0.1}, {}, "label_smoothing: scores have no classes"),
        ({"class_weights": "balanced"}, {}, "class_weights: scores have no classes"),
        ({"best_by": "accuracy"}, {}, "best_by: regression has spearman, pearson, loss, but no accuracy"),
        ({"best_by": "f1:score"}, {}, "best_by: regression has spearman, pearson, loss, but no f1:score"),
    ],
)
def test_bad_scores_and_options(tmp_path, recipe, data, message):
    with pytest.raises(ValueError, match=message):
        new_regression_trainer(Recipe(**recipe), tmp_path / "m", **data)
    assert not (tmp_path / "m").exists()


def test_scores_for_a_network_of_classes(tmp_path):
    with pytest.raises(ValueError, match="train: the network has 2 outputs: expected label ids, got floats"):
        new_trainer(Recipe(), tmp_path, new_model(), scored_pairs(4, 1))

"""Temperature scaling against a fine grid; thresholds against an exhaustive search."""

import math

import numpy as np
import pytest
import torch

from esim_fast import Classifier
from esim_fast.data import EncodedPairs
from esim_fast.metrics import expected_calibration_error, log_loss
from esim_fast.training import calibrate, choose_threshold
from esim_fast.training.calibration import best_temperature
from esim_fast.training.threshold import best_threshold
from tests.training.training_tasks import new_model, new_regression, pairs, scored_pairs


def softmax(logits):
    return torch.tensor(logits, dtype=torch.float64).softmax(1).numpy()


def made_up(seed, certainty):
    """Gold labels, and logits of three labels that are ``certainty`` times too far apart."""
    generator = np.random.default_rng(seed)
    right = generator.normal(size=(400, 3)) * 2
    gold = (softmax(right).cumsum(1) < generator.random((400, 1))).sum(1)
    return gold.clip(0, 2), right * certainty + 3


class TestTemperature:
    @pytest.mark.parametrize("certainty", [0.2, 1.0, 4.0])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_it_has_the_lowest_log_loss(self, seed, certainty):
        gold, logits = made_up(seed, certainty)
        found = best_temperature(gold, logits)
        assert found == pytest.approx(certainty, rel=0.3)
        grid = np.concatenate([np.geomspace(0.06, 19, 500), found * np.linspace(0.999, 1.001, 101)])
        losses = [log_loss(gold, softmax(logits / temperature)) for temperature in grid]
        assert log_loss(gold, softmax(logits / found)) <= min(losses) + 1e-12
        assert grid[np.argmin(losses)] == pytest.approx(found, rel=1e-4)

    def test_extreme_logits(self):
        gold, logits = made_up(0, 1.0)
        assert best_temperature(gold, logits * 10 + 1e4) == pytest.approx(10 * best_temperature(gold, logits))

    def test_no_temperature_is_best(self):
        right = np.array([[5.0, 1.0], [0.0, 2.0]])
        assert best_temperature(np.array([0, 1]), right) == 1  # all are right
        assert best_temperature(np.array([1, 0]), right) == 1  # all are wrong
        assert best_temperature(np.array([0, 1]), np.zeros((2, 2))) == 1

    def test_a_model_is_given_it(self, tmp_path):
        model, dev = new_model(), pairs(80, 2)
        model.net.linear.mlp[-1].weight.data *= 5
        before = model.logits(dev).double().numpy()
        found = calibrate(model, dev)
        assert found.temperature == model.temperature == best_temperature(dev.labels, before) != 1
        after = softmax(before / model.temperature)
        assert found.log_loss == pytest.approx((log_loss(dev.labels, softmax(before)), log_loss(dev.labels, after)))
        assert found.log_loss[1] < found.log_loss[0]
        errors = [expected_calibration_error(dev.labels, p) for p in (softmax(before), after)]
        assert found.expected_calibration_error == pytest.approx(tuple(errors))
        assert calibrate(model, dev) == found  # an earlier temperature has no effect
        model.save_pretrained(tmp_path)
        assert Classifier.from_pretrained(tmp_path).temperature == found.temperature

    def test_mistakes(self):
        with pytest.raises(ValueError, match="a regression model gives scores"):
            calibrate(new_regression(), scored_pairs(4, 1))
        with pytest.raises(ValueError, match="calibrate: expected labeled pairs, got no labels"):
            calibrate(new_model(), EncodedPairs([[2]], [[3]], None))
        model = new_model()
        model.net.linear.mlp[-1].bias.data.fill_(math.nan)
        for choose in (calibrate, choose_threshold):
            with pytest.raises(FloatingPointError, match="the model's outputs are not finite"):
                choose(model, pairs(8, 1))
        assert (model.temperature, model.threshold) == (1, None)


def figure(is_positive, given, best):
    if best == "accuracy":
        return (is_positive == given).mean()
    return 2 * (is_positive & given).sum() / max(1, is_positive.sum() + given.sum())


class TestThreshold:
    @pytest.mark.parametrize("best", ["f1", "accuracy"])
    @pytest.mark.parametrize("digits", [1, 2, 7])  # few digits make ties
    def test_no_threshold_is_better(self, best, digits):
        generator = np.random.default_rng(digits)
        for _ in range(60):
            count = int(generator.integers(1, 30))
            probabilities = generator.random(count).round(digits).astype(np.float32)
            is_positive = generator.random(count) < probabilities ** generator.integers(1, 4)
            if best == "f1" and not is_positive.any():
                continue
            found = best_threshold(is_positive, probabilities, best)
            assert 0 <= found <= 1
            tried = {np.float32(x) for x in (0, 1, *probabilities)} | {
                np.nextafter(p, np.float32(2)) for p in probabilities
            }
            values = [figure(is_positive, probabilities >= x, best) for x in tried if x <= 1]
            assert figure(is_positive, probabilities >= np.float32(found), best) == max(values)

    def test_it_is_the_best_one_closest_to_a_half(self):
        yes, probabilities = np.array([False, True, True]), np.array([0.25, 0.75, 1.0], dtype=np.float32)
        assert best_threshold(yes, probabilities, "f1") == 0.5
        assert best_threshold(np.array([True] * 3), probabilities, "f1") == 0.125
        assert best_threshold(np.array([False] * 3), probabilities[:2].repeat([1, 2]), "accuracy") == 0.875
        # Thresholds from 0.05 and from 0.85 on get two of three right.
        yes = np.array([True, False, True])
        assert best_threshold(yes, np.array([0.9, 0.8, 0.1], dtype=np.float32), "accuracy") == pytest.approx(0.85)
        # If the threshold changes no prediction, it is 0.5.
        assert best_threshold(np.array([False, True]), np.array([0.45, 0.9], dtype=np.float32), "f1") == 0.5

    def test_adjacent_float32_probabilities(self):
        low = np.float32(0.7)
        for _ in range(2):  # their mean rounds to one of them
            high = np.nextafter(low, np.float32(1))
            found = best_threshold(np.array([True, False]), np.array([high, low]), "f1")
            assert low < np.float32(found) <= high
            low = high

    def test_a_model_is_given_it(self):
        f1_score = pytest.importorskip("sklearn.metrics").f1_score
        model, dev = new_model(), pairs(80, 2)
        model.net.linear.mlp[-1].bias.data[0] += 0.2  # so that hardly any pair is "swapped"
        before = model.decide(model.probabilities(model.logits(dev)))
        found = choose_threshold(model, dev)
        after = model.decide(model.probabilities(model.logits(dev)))
        assert found.label == "swapped"
        assert found.threshold == model.threshold
        assert found.before == pytest.approx(f1_score(dev.labels, before))
        assert found.after == pytest.approx(f1_score(dev.labels, after))
        assert found.after > found.before
        assert choose_threshold(model, dev) == found  # an earlier threshold has no effect
        best = choose_threshold(model, dev, "accuracy")
        answers = model.decide(model.probabilities(model.logits(dev))).numpy()
        assert best.after == (answers == dev.labels).mean() >= best.before
        given = choose_threshold(model, dev, 0.25)
        assert model.threshold == given.threshold == 0.25

    def test_the_positive_label_may_be_the_first(self):
        model, dev = new_model(), pairs(80, 2)
        model = Classifier(model.net, model.vocabulary, ["entailment", "neutral"])
        found = choose_threshold(model, dev)
        given = model.decide(model.probabilities(model.logits(dev))).numpy()
        assert found.label == "entailment"
        assert found.after == figure(dev.labels == 0, given == 0, "f1")

    def test_mistakes(self):
        model = new_model()
        for best, message in (("recall", "best must be one of f1, accuracy or a number"), (1.5, "must lie between 0")):
            with pytest.raises(ValueError, match=message):
                choose_threshold(model, pairs(8, 1), best)
        with pytest.raises(ValueError, match="no pair has the label swapped, so its F1 is not defined"):
            choose_threshold(model, EncodedPairs([[2]], [[3]], [0]))
        with pytest.raises(ValueError, match="choose_threshold: expected label ids from 0 to 1, got 2"):
            choose_threshold(model, EncodedPairs([[2]], [[3]], [2]))
        with pytest.raises(ValueError, match="a threshold is for two labels, and the model has 1"):
            choose_threshold(new_regression(), scored_pairs(4, 1))
        assert model.threshold is None

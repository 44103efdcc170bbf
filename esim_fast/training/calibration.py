"""Temperature scaling: probabilities that say how often a model is right (Guo et al., 2017)."""

import math
from typing import Any, NamedTuple, cast

import numpy as np

from ..classifier import Classifier
from ..data import EncodedPairs
from ..metrics import expected_calibration_error, log_loss
from .losses import check_targets

_LEAST, _MOST = 1e-3, 1e3  # temperatures


class Calibration(NamedTuple):
    """A temperature, and what it brings on the pairs that it was chosen on: figures before (at 1) and after."""

    temperature: float
    log_loss: tuple[float, float]
    expected_calibration_error: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        pairs = {name: value for name, value in self._asdict().items() if name != "temperature"}
        return {name: dict(zip(("before", "after"), value, strict=True)) for name, value in pairs.items()}


def calibrate(model: Classifier, pairs: EncodedPairs, *, batch_size: int = 256) -> Calibration:
    """Gives a model the temperature whose probabilities have the lowest log loss on labeled pairs.

    Take pairs that the model was not trained on, such as the dev set. A threshold is to be chosen after that, because
    it is one of the new probabilities. Answers without a threshold stay the same.

    Returns:
        The temperature, which ``model.temperature`` is now. It is 1 where none is the best: the model gets every
        pair right, and the more certain it is, the better; or it is worse than chance.

    Raises:
        ValueError: it is a regression model, or the pairs are not labeled with ids of its labels.
        FloatingPointError: the model's answers are not finite.
    """
    if model.task == "regression":
        raise ValueError("a regression model gives scores: there are no probabilities to calibrate")
    check_targets("calibrate", pairs, model)
    gold = np.asarray(pairs.labels)
    logits = model.logits(pairs, batch_size=batch_size).numpy().astype(np.float64)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model's answers are not finite: it cannot be calibrated")
    model.temperature = best_temperature(gold, logits)
    before, after = _softmax(logits), _softmax(logits / model.temperature)
    losses, errors = (
        (cast(float, figure(gold, before)), cast(float, figure(gold, after)))
        for figure in (log_loss, expected_calibration_error)
    )
    return Calibration(model.temperature, losses, errors)


def best_temperature(gold: np.ndarray, logits: np.ndarray) -> float:
    """The temperature of the lowest log loss; 1 if there is none from 0.001 to 1,000.

    Args:
        gold: int64 ``[n]``, ids of labels.
        logits: float64 ``[n, number of labels]``.
    """
    of_gold = logits[np.arange(len(gold)), gold]

    def slope(log_inverse: float) -> float:
        """Of the log loss, by the inverse of the temperature, in which it is convex."""
        expected = (_softmax(logits * math.exp(log_inverse)) * logits).sum(1)
        return float((expected - of_gold).mean())

    low, high = -math.log(_MOST), -math.log(_LEAST)
    if slope(low) >= 0 or slope(high) <= 0:
        return 1.0
    for _ in range(60):  # halves the interval down to what float64 resolves
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

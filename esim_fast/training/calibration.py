"""Temperature scaling (Guo et al., 2017), so that probabilities match how often a model is right."""

import math
from typing import Any, NamedTuple, cast

import numpy as np

from ..classifier import Classifier
from ..data import EncodedPairs
from ..metrics import expected_calibration_error, log_loss
from .losses import check_targets

_LEAST, _MOST = 1e-3, 1e3


class Calibration(NamedTuple):
    """A temperature, with its effect on the pairs that it was chosen on.

    Attributes:
        temperature: the model's logits are divided by it.
        log_loss: before (at temperature 1) and after.
        expected_calibration_error: before and after.
    """

    temperature: float
    log_loss: tuple[float, float]
    expected_calibration_error: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON: ``{"log_loss": {"before": …, "after": …}, …}``."""
        pairs = {name: value for name, value in self._asdict().items() if name != "temperature"}
        return {name: dict(zip(("before", "after"), value, strict=True)) for name, value in pairs.items()}


def calibrate(model: Classifier, pairs: EncodedPairs, *, batch_size: int = 256) -> Calibration:
    """Set the temperature that gives the lowest log loss on labeled pairs.

    Use pairs that the model was not trained on, such as the dev set. Predicted labels do not change unless the model
    has a threshold, so choose that afterwards.

    Args:
        model: the model, whose ``temperature`` is set.
        pairs: labeled pairs, in the model's word ids.
        batch_size: pairs in a batch.

    Returns:
        The temperature. It is 1 if there is no best one: if the model gets every pair right, or if it is worse than
        chance.

    Raises:
        ValueError: the model is for regression, or the pairs are not labeled with ids of its labels.
        FloatingPointError: the model's outputs are not finite.
    """
    if model.task == "regression":
        raise ValueError("a regression model gives scores: there are no probabilities to calibrate")
    check_targets("calibrate", pairs, model)
    gold = np.asarray(pairs.labels)
    logits = model.logits(pairs, batch_size=batch_size).numpy().astype(np.float64)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model's outputs are not finite: it cannot be calibrated")
    model.temperature = best_temperature(gold, logits)
    before, after = _softmax(logits), _softmax(logits / model.temperature)
    losses, errors = (
        (cast(float, figure(gold, before)), cast(float, figure(gold, after)))
        for figure in (log_loss, expected_calibration_error)
    )
    return Calibration(model.temperature, losses, errors)


def best_temperature(gold: np.ndarray, logits: np.ndarray) -> float:
    """The temperature with the lowest log loss, or 1 if none lies between 0.001 and 1,000.

    Args:
        gold: int64 ``[n]``, ids of labels.
        logits: float64 ``[n, number of labels]``.
    """
    of_gold = logits[np.arange(len(gold)), gold]

    def slope(log_inverse: float) -> float:
        """Slope of the log loss by the inverse temperature, in which it is convex."""
        expected = (_softmax(logits * math.exp(log_inverse)) * logits).sum(1)
        return float((expected - of_gold).mean())

    low, high = -math.log(_MOST), -math.log(_LEAST)
    if slope(low) >= 0 or slope(high) <= 0:
        return 1.0
    for _ in range(60):  # bisects down to float64's resolution
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

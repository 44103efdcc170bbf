"""Decision thresholds of models with two labels."""

from typing import NamedTuple

import numpy as np

from ..classifier import Classifier
from ..data import EncodedPairs
from ..metrics import precision_recall_f1
from .losses import check_targets

FIGURES = ("f1", "accuracy")


class Threshold(NamedTuple):
    """A threshold, with its effect on the pairs that it was chosen on.

    Attributes:
        label: the positive label.
        threshold: the probability from which on the model gives that label.
        before: the figure without a threshold.
        after: the figure with it.
    """

    label: str
    threshold: float
    before: float
    after: float


def choose_threshold(
    model: Classifier, pairs: EncodedPairs, best: str | float = "f1", *, batch_size: int = 256
) -> Threshold:
    """Set the decision threshold that is best on labeled pairs, for a model with two labels.

    The model then gives the positive label if its probability reaches the threshold. Use pairs that the model was not
    trained on, such as the dev set. If you calibrate the model, do it first.

    Args:
        model: the model, whose ``threshold`` is set.
        pairs: labeled pairs, in the model's word ids.
        best: the figure to maximize, "f1" (of the positive label) or "accuracy". A number sets the threshold itself,
            and its F1 is measured.
        batch_size: pairs in a batch.

    Returns:
        The threshold. Of equally good ones, the closest to 0.5.

    Raises:
        ValueError: the model does not have two labels, the pairs are not labeled with their ids, no pair has the
            positive label (for "f1"), or a given threshold does not lie between 0 and 1.
        FloatingPointError: the model's outputs are not finite.
    """
    if model.positive is None:
        raise ValueError(f"a threshold is for two labels, and the model has {len(model.labels)}")
    check_targets("choose_threshold", pairs, model)
    label, is_positive = model.labels[model.positive], np.asarray(pairs.labels) == model.positive
    if isinstance(best, str) and best not in FIGURES:
        raise ValueError(f"best must be one of {', '.join(FIGURES)} or a number, got {best!r}")
    if best == "f1" and not is_positive.any():
        raise ValueError(f"no pair has the label {label}, so its F1 is not defined")
    if not isinstance(best, str) and not 0 <= best <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {best}")
    probabilities = model.probabilities(model.logits(pairs, batch_size=batch_size))
    if not probabilities.isfinite().all():
        raise FloatingPointError("the model's outputs are not finite: no threshold can be chosen")

    def figure() -> float:
        given = model.decide(probabilities).numpy() == model.positive
        if best == "accuracy":
            return float((given == is_positive).mean())
        return float(precision_recall_f1(is_positive.astype(int), given.astype(int), 2).f1[1])

    model.threshold = None
    before = figure()
    of_positive = probabilities[:, model.positive].numpy()
    model.threshold = best_threshold(is_positive, of_positive, best) if isinstance(best, str) else best
    return Threshold(label, model.threshold, before, figure())


def best_threshold(is_positive: np.ndarray, probabilities: np.ndarray, best: str) -> float:
    """The threshold with the best figure; of equally good ones, the closest to 0.5.

    Args:
        is_positive: bool ``[n]``.
        probabilities: float32 ``[n]``, of the positive label.
        best: "f1" (of the positive label) or "accuracy".
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked = np.concatenate([probabilities[order], np.zeros(1, probabilities.dtype)])
    # How many of the most probable pairs a threshold can select: it cannot separate equal probabilities.
    counts = np.append(np.flatnonzero(ranked[:-2] != ranked[1:-1]) + 1, len(order))
    found = np.cumsum(is_positive[order])[counts - 1]
    above, below = ranked[counts - 1], ranked[counts]
    if ranked[0] < 1:  # a threshold may also select no pair
        counts, found = np.append(0, counts), np.append(0, found)
        above, below = np.append(np.float32(1), above), np.append(ranked[0], below)
    positive = int(is_positive.sum())
    if best == "f1":
        figures = 2 * found / np.maximum(1, counts + positive)
    else:
        figures = found + (len(order) - positive) - (counts - found)
    middles = (above + below) / 2
    thresholds = np.where(middles > below, middles, above)  # adjacent float32 numbers have no middle
    thresholds[(below < 0.5) & (above >= 0.5)] = 0.5
    good = thresholds[figures == figures.max()]
    return float(good[np.abs(good - 0.5).argmin()])

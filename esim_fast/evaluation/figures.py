"""A model's answers on labeled pairs, and the figures that follow from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics
from ..errors import listed
from ..labels import positive_or_second


@dataclass(frozen=True)
class Answers:
    """What a classification model says of n pairs.

    Attributes:
        labels: their names.
        gold, given: int64 ``[n]``, indices of labels.
        probabilities: float64 ``[n, number of labels]``.
    """

    labels: list[str]
    gold: np.ndarray
    given: np.ndarray
    probabilities: np.ndarray

    def figures(self) -> dict[str, Any]:
        """Figures of all pairs."""
        gold, probabilities, count = self.gold, self.probabilities, len(self.labels)
        figures: dict[str, Any] = {
            "accuracy": metrics.accuracy(gold, self.given),
            "macro_f1": metrics.macro_f1(gold, self.given, count),
            "log_loss": metrics.log_loss(gold, probabilities),
            "expected_calibration_error": metrics.expected_calibration_error(gold, probabilities),
        }
        if count == 2:
            label, are_positive, score = self._positive()
            figures["positive_label"] = label
            figures["auc"] = metrics.roc_auc(are_positive, score)
            figures["average_precision"] = metrics.average_precision(are_positive, score)
        return figures

    def classes(self) -> dict[str, dict[str, float]]:
        """Figures of each class against all others."""
        found = metrics.precision_recall_f1(self.gold, self.given, len(self.labels))
        columns = [column.tolist() for column in found]
        return {
            label: dict(zip(found._fields, row, strict=True))
            for label, row in zip(self.labels, zip(*columns, strict=True), strict=True)
        }

    def confusion(self) -> np.ndarray:
        """int64 ``[gold, given]``, the number of pairs."""
        return metrics.confusion_matrix(self.gold, self.given, len(self.labels))

    def ranking(self, queries: np.ndarray) -> dict[str, Any]:
        """How high the probability of the positive label ranks the pairs that have it."""
        label, are_positive, score = self._positive()
        return {"relevant_label": label, **_ranking(queries, are_positive, score)}

    def _positive(self) -> tuple[str, np.ndarray, np.ndarray]:
        """The positive label, which pairs have it, and how probable it is."""
        label = positive_or_second(self.labels)
        if label is None:
            raise ValueError(f"expected a label entailment or 1, got {listed(self.labels)}")
        place = self.labels.index(label)
        return label, self.gold == place, self.probabilities[:, place]


@dataclass(frozen=True)
class Scores:
    """What a regression model says of n pairs: float64 ``[n]``, as are the gold scores."""

    gold: np.ndarray
    given: np.ndarray

    def figures(self) -> dict[str, Any]:
        """Figures of all pairs."""
        return {
            "pearson": metrics.pearson(self.gold, self.given),
            "spearman": metrics.spearman(self.gold, self.given),
            "mean_squared_error": metrics.mean_squared_error(self.gold, self.given),
        }

    def ranking(self, queries: np.ndarray) -> dict[str, Any]:
        """How high the scores rank the pairs whose gold score is above 0."""
        return _ranking(queries, self.gold > 0, self.given)


def _ranking(queries: np.ndarray, relevant: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    with_relevant = len(np.unique(queries[relevant]))
    without = len(np.unique(queries)) - with_relevant
    return {"queries": with_relevant, "without_relevant": without, **metrics.ranking(queries, relevant, score)}

"""A model's predictions on labeled pairs, and their figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics
from ..errors import listed
from ..labels import positive_or_second


@dataclass(frozen=True)
class Answers:
    """A classification model's predictions on n pairs.

    Attributes:
        labels: names of the labels.
        gold: int64 ``[n]``, the gold labels' ids.
        given: int64 ``[n]``, the predicted labels' ids.
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
        """Precision, recall and F1 of each class."""
        found = metrics.precision_recall_f1(self.gold, self.given, len(self.labels))
        columns = [column.tolist() for column in found]
        return {
            label: dict(zip(found._fields, row, strict=True))
            for label, row in zip(self.labels, zip(*columns, strict=True), strict=True)
        }

    def confusion(self) -> np.ndarray:
        """Numbers of pairs: int64 ``[gold, predicted]``."""
        return metrics.confusion_matrix(self.gold, self.given, len(self.labels))

    def ranking(self, queries: np.ndarray) -> dict[str, Any]:
        """Ranking figures, with pairs ranked by the probability of the positive label."""
        label, are_positive, score = self._positive()
        return {"relevant_label": label, **_ranking(queries, are_positive, score)}

    def _positive(self) -> tuple[str, np.ndarray, np.ndarray]:
        """The positive label, which pairs have it, and its probabilities."""
        label = positive_or_second(self.labels)
        if label is None:
            raise ValueError(f"expected a label entailment or 1, got {listed(self.labels)}")
        place = self.labels.index(label)
        return label, self.gold == place, self.probabilities[:, place]


@dataclass(frozen=True)
class Scores:
    """A regression model's predictions on n pairs.

    Attributes:
        gold: float64 ``[n]``, the gold scores.
        given: float64 ``[n]``, the predicted scores.
    """

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
        """Ranking figures; pairs with a gold score above 0 are relevant."""
        return _ranking(queries, self.gold > 0, self.given)


def _ranking(queries: np.ndarray, relevant: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    with_relevant = len(np.unique(queries[relevant]))
    without = len(np.unique(queries)) - with_relevant
    return {"queries": with_relevant, "without_relevant": without, **metrics.ranking(queries, relevant, score)}

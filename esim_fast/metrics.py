"""Figures by which models are judged, with scikit-learn's and SciPy's definitions.

They take NumPy arrays, or what becomes one, of ``n`` pairs and calculate in float64. A figure that is not defined, such
as the AUC of one class, the correlation of a constant or anything of no pairs, is None.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]


def accuracy(gold: ArrayLike, predicted: ArrayLike) -> float | None:
    """The share of pairs whose predicted label is the gold one."""
    gold, predicted = _alike(gold, predicted)
    return float((gold == predicted).mean()) if gold.size else None


def confusion_matrix(gold: ArrayLike, predicted: ArrayLike, labels: int) -> Array:
    """How often each gold label (row) got each answer (column): int64 ``[labels, labels]``.

    Args:
        gold, predicted: integer ``[n]``, indices of labels.
        labels: how many labels there are.

    Raises:
        ValueError: the arrays are no vectors of one length, or an index is out of range.
    """
    gold, predicted = _alike(gold, predicted)
    if gold.size and not 0 <= min(gold.min(), predicted.min()) <= max(gold.max(), predicted.max()) < labels:
        raise ValueError(f"expected indices of labels from 0 to {labels - 1}")
    places = gold.astype(np.int64) * labels + predicted.astype(np.int64)
    return np.bincount(places, minlength=labels * labels).reshape(labels, labels)


class ClassFigures(NamedTuple):
    """Figures of each class: float64 ``[labels]``, and ``support``, the number of its pairs, int64 ``[labels]``."""

    precision: Array
    recall: Array
    f1: Array
    support: Array


def precision_recall_f1(gold: ArrayLike, predicted: ArrayLike, labels: int) -> ClassFigures:
    """Each class against all others; a figure whose denominator is 0 is 0.

    Args:
        gold, predicted: integer ``[n]``, indices of labels.
        labels: how many labels there are.
    """
    confusion = confusion_matrix(gold, predicted, labels)
    correct, support, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return ClassFigures(
        correct / np.maximum(1, answers),
        correct / np.maximum(1, support),
        2 * correct / np.maximum(1, answers + support),
        support,
    )


def macro_f1(gold: ArrayLike, predicted: ArrayLike, labels: int) -> float | None:
    """The mean of the F1 of all classes, of which those that never occur count as 0."""
    figures = precision_recall_f1(gold, predicted, labels)
    return float(figures.f1.mean()) if figures.support.any() else None


def roc_auc(gold: ArrayLike, score: ArrayLike) -> float | None:
    """How often a positive pair has a higher score than a negative one, where ties count as half.

    Args:
        gold: ``[n]`` of 0 and 1, or bool.
        score: ``[n]``, higher for what is more likely to be positive.
    """
    gold, score = _alike(gold, score)
    gold = gold.astype(bool)
    positive = int(gold.sum())
    negative = gold.size - positive
    if not positive or not negative:
        return None
    above = _ranks(_finite(score))[gold].sum() - positive * (positive + 1) / 2
    return float(above / (positive * negative))


def average_precision(gold: ArrayLike, score: ArrayLike) -> float | None:
    """The mean over positive pairs of the precision among all pairs that score at least as high as they do.

    Args:
        gold: ``[n]`` of 0 and 1, or bool.
        score: ``[n]``, higher for what is more likely to be positive.
    """
    gold, score = _alike(gold, score)
    return ranking(np.zeros(gold.size, dtype=np.int64), gold, score, ks=())["map"]


def log_loss(gold: ArrayLike, probabilities: ArrayLike) -> float | None:
    """The mean negative logarithm of the probability of the gold label, which counts as 2e-16 if it is less.

    Args:
        gold: integer ``[n]``, indices of labels.
        probabilities: ``[n, labels]``.
    """
    gold, probabilities = _with_probabilities(gold, probabilities)
    least = np.finfo(np.float64).eps
    of_gold = probabilities[np.arange(gold.size), gold].clip(least, 1 - least)
    return float(-np.log(of_gold).mean()) if gold.size else None


def expected_calibration_error(gold: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float | None:
    """How far a model's confidence is from its accuracy, on average over pairs.

    The confidence is the highest probability. Pairs are put into bins of equal width by it, each with its upper but not
    its lower end, and mean confidence and accuracy of a bin are compared (Guo et al., 2017).

    Args:
        gold: integer ``[n]``, indices of labels.
        probabilities: ``[n, labels]``.
        bins: how many.
    """
    gold, probabilities = _with_probabilities(gold, probabilities)
    if not gold.size:
        return None
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == gold
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    surplus = np.bincount(place, weights=confidence - correct, minlength=bins)
    return float(np.abs(surplus).sum() / gold.size)


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Pearson's coefficient of correlation of two float ``[n]``."""
    x, y = (_finite(values) for values in _alike(x, y))
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(_direction(x) @ _direction(y), -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's coefficient of correlation of two float ``[n]``: Pearson's of the ranks, ties at their mean rank."""
    x, y = (_finite(values) for values in _alike(x, y))
    return pearson(_ranks(x), _ranks(y))


def mean_squared_error(x: ArrayLike, y: ArrayLike) -> float | None:
    """The mean squared difference of two float ``[n]``."""
    x, y = (values.astype(np.float64) for values in _alike(x, y))
    return float(np.square(x - y).mean()) if x.size else None


def ranking(
    queries: ArrayLike, relevant: ArrayLike, score: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float | None]:
    """How high the relevant candidates of queries are ranked: means over queries that have one.

    Args:
        queries: ``[n]``, which query each candidate belongs to.
        relevant: ``[n]`` of 0 and 1, or bool.
        score: ``[n]``, by which the candidates of a query are ranked, the highest first.
        ks: lengths of lists to find relevant candidates in.

    Returns:
        ``map``, the mean of :func:`average_precision`; ``mrr``, the mean of 1 / rank of the first relevant candidate;
        and for each k ``recall@k``, the mean share of relevant candidates among the first k. Among equal scores
        ``mrr`` and ``recall@k`` rank relevant candidates last, so that a tie is no success.
    """
    queries, relevant, score = _alike(queries, relevant, score)
    query, score, relevant = np.unique(queries, return_inverse=True)[1], _finite(score), relevant.astype(bool)
    order = np.lexsort((relevant, -score, query))
    query, score, relevant = query[order], score[order], relevant[order]
    begins = np.flatnonzero(np.diff(query, prepend=-1))  # of queries
    rank = np.arange(query.size) - begins[query] + 1
    found = np.cumsum(relevant)
    found -= (found - relevant)[begins][query]  # in this query, down to here
    # Where candidates of one query and score end.
    ends = np.flatnonzero(np.append((np.diff(query) != 0) | (np.diff(score) != 0), query.size > 0))
    end = ends[np.searchsorted(ends, np.arange(query.size))]
    precision = found[end] / rank[end]

    total = np.bincount(query, weights=relevant)
    counts = total > 0

    def mean(sums: Array) -> float | None:
        return float(sums[counts].mean()) if counts.any() else None

    figures = {
        "map": mean(np.bincount(query, weights=precision * relevant) / np.maximum(1, total)),
        "mrr": mean(np.bincount(query, weights=relevant * (found == 1) / rank)),
    }
    for k in ks:
        figures[f"recall@{k}"] = mean(np.bincount(query, weights=relevant * (rank <= k)) / np.maximum(1, total))
    return figures


def _alike(*values: ArrayLike) -> tuple[Array, ...]:
    arrays = tuple(map(np.asarray, values))
    if arrays[0].ndim != 1 or any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"expected vectors of one length, got shapes {', '.join(str(a.shape) for a in arrays)}")
    return arrays


def _finite(values: Array) -> Array:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("expected finite numbers, got NaN or infinity")
    return values


def _with_probabilities(gold: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    gold, probabilities = np.asarray(gold), np.asarray(probabilities, dtype=np.float64)
    if gold.ndim != 1 or probabilities.ndim != 2 or len(gold) != len(probabilities):
        raise ValueError(f"expected shapes (n,) and (n, labels), got {gold.shape} and {probabilities.shape}")
    labels = probabilities.shape[1]
    if gold.size and not 0 <= gold.min() <= gold.max() < labels:
        raise ValueError(f"expected indices of labels from 0 to {labels - 1}")
    return gold.astype(np.int64), probabilities


def _ranks(values: Array) -> Array:
    """Ranks from 1 up; equal values have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _direction(values: Array) -> Array:
    """Deviations from the mean, as a vector of length 1."""
    deviations = values - values.mean()
    deviations /= np.abs(deviations).max()  # the squares of very large and very small numbers must be numbers, too
    return deviations / np.linalg.norm(deviations)

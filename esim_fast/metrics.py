"""Metrics, defined as in scikit-learn and SciPy.

Functions take NumPy arrays, or anything convertible, of ``n`` pairs and compute in float64. They return None if a
metric is undefined, such as the AUC with a single class, the correlation of a constant, or anything for zero pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]


def accuracy(gold: ArrayLike, predicted: ArrayLike) -> float | None:
    """Return the share of pairs whose predicted label is the gold label."""
    gold, predicted = _alike(gold, predicted)
    return float((gold == predicted).mean()) if gold.size else None


def confusion_matrix(gold: ArrayLike, predicted: ArrayLike, labels: int) -> Array:
    """Count how often each gold label (row) was predicted as each label (column): int64 ``[labels, labels]``.

    Args:
        gold: indices of labels, integer ``[n]``.
        predicted: indices of labels, integer ``[n]``.
        labels: number of labels.

    Raises:
        ValueError: the arrays are not vectors of the same length, or an index is out of range.
    """
    gold, predicted = _alike(gold, predicted)
    if gold.size and not 0 <= min(gold.min(), predicted.min()) <= max(gold.max(), predicted.max()) < labels:
        raise ValueError(f"expected label indices from 0 to {labels - 1}")
    places = gold.astype(np.int64) * labels + predicted.astype(np.int64)
    return np.bincount(places, minlength=labels * labels).reshape(labels, labels)


class ClassFigures(NamedTuple):
    """Metrics of each class.

    Attributes:
        precision: float64 ``[labels]``.
        recall: float64 ``[labels]``.
        f1: float64 ``[labels]``.
        support: its number of pairs, int64 ``[labels]``.
    """

    precision: Array
    recall: Array
    f1: Array
    support: Array


def precision_recall_f1(gold: ArrayLike, predicted: ArrayLike, labels: int) -> ClassFigures:
    """Compute precision, recall and F1 of each class against all others; a ratio with denominator 0 is 0.

    Args:
        gold: indices of labels, integer ``[n]``.
        predicted: indices of labels, integer ``[n]``.
        labels: number of labels.
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
    """Return the mean F1 over all classes; classes that never occur count as 0."""
    figures = precision_recall_f1(gold, predicted, labels)
    return float(figures.f1.mean()) if figures.support.any() else None


def roc_auc(gold: ArrayLike, score: ArrayLike) -> float | None:
    """Return the probability that a positive pair scores higher than a negative one; ties count half.

    Args:
        gold: 0 and 1, or bool, ``[n]``.
        score: ``[n]``, higher for more likely positive.
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
    """Return the mean, over positive pairs, of the precision among all pairs that score at least as high.

    Args:
        gold: 0 and 1, or bool, ``[n]``.
        score: ``[n]``, higher for more likely positive.
    """
    gold, score = _alike(gold, score)
    return ranking(np.zeros(gold.size, dtype=np.int64), gold, score, ks=())["map"]


def log_loss(gold: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Return the mean negative log probability of the gold label; probabilities are clipped at 2e-16.

    Args:
        gold: indices of labels, integer ``[n]``.
        probabilities: ``[n, labels]``.
    """
    gold, probabilities = _with_probabilities(gold, probabilities)
    least = np.finfo(np.float64).eps
    of_gold = probabilities[np.arange(gold.size), gold].clip(least, 1 - least)
    return float(-np.log(of_gold).mean()) if gold.size else None


def expected_calibration_error(gold: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float | None:
    """Return the mean gap between a model's confidence and its accuracy (Guo et al. 2017).

    The confidence of a pair is its highest probability. Pairs are put into bins of equal width by confidence, open
    below and closed above, and the mean confidence and the accuracy of each bin are compared.

    Args:
        gold: indices of labels, integer ``[n]``.
        probabilities: ``[n, labels]``.
        bins: number of bins.
    """
    gold, probabilities = _with_probabilities(gold, probabilities)
    if not gold.size:
        return None
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == gold
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    surplus = np.bincount(place, weights=confidence - correct, minlength=bins)
    return float(np.abs(surplus).sum() / gold.size)


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Return Pearson's correlation coefficient of two float vectors ``[n]``."""
    x, y = (_finite(values) for values in _alike(x, y))
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(_direction(x) @ _direction(y), -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Return Spearman's correlation coefficient of two float vectors ``[n]``; ties get their mean rank."""
    x, y = (_finite(values) for values in _alike(x, y))
    return pearson(_ranks(x), _ranks(y))


def mean_squared_error(x: ArrayLike, y: ArrayLike) -> float | None:
    """Return the mean squared difference of two float vectors ``[n]``."""
    x, y = (values.astype(np.float64) for values in _alike(x, y))
    return float(np.square(x - y).mean()) if x.size else None


def ranking(
    queries: ArrayLike, relevant: ArrayLike, score: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float | None]:
    """Compute ranking metrics, averaged over the queries that have a relevant candidate.

    Args:
        queries: ``[n]``, the query that each candidate belongs to.
        relevant: 0 and 1, or bool, ``[n]``.
        score: ``[n]``; candidates of a query are ranked by it, the highest first.
        ks: cutoffs for ``recall@k``.

    Returns:
        A dict with ``map``, the mean of ``average_precision``; ``mrr``, the mean of 1 / rank of the first relevant
        candidate; and for each k ``recall@k``, the mean share of relevant candidates among the first k. For ``mrr`` and
        ``recall@k``, relevant candidates rank last among equal scores, so that a tie is not a success.
    """
    queries, relevant, score = _alike(queries, relevant, score)
    query, score, relevant = np.unique(queries, return_inverse=True)[1], _finite(score), relevant.astype(bool)
    order = np.lexsort((relevant, -score, query))
    query, score, relevant = query[order], score[order], relevant[order]
    begins = np.flatnonzero(np.diff(query, prepend=-1))  # the first row of each query
    rank = np.arange(query.size) - begins[query] + 1
    found = np.cumsum(relevant)
    found -= (found - relevant)[begins][query]  # relevant ones in this query up to here
    # The last row of each run with the same query and score.
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
        raise ValueError(f"expected vectors of equal length, got shapes {', '.join(str(a.shape) for a in arrays)}")
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
        raise ValueError(f"expected label indices from 0 to {labels - 1}")
    return gold.astype(np.int64), probabilities


def _ranks(values: Array) -> Array:
    """Return ranks from 1 up; equal values get their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _direction(values: Array) -> Array:
    """Return the deviations from the mean, scaled to norm 1."""
    deviations = values - values.mean()
    deviations /= np.abs(deviations).max()  # squares must neither overflow nor underflow
    return deviations / np.linalg.norm(deviations)

"""Metrics equal scikit-learn's and SciPy's on random data with ties, absent classes and extreme numbers."""

import numpy as np
import pytest

from esim_fast import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def rounded(rng, n, *, digits=1):
    """Scores, many of which are equal."""
    return rng.random(n).round(digits)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


SIZES = (1, 2, 7, 300, 20_000)
seeds = pytest.mark.parametrize("seed", range(2))


@seeds
@pytest.mark.parametrize("labels", [1, 3, 12])
def test_classes(seed, labels):
    rng = np.random.default_rng(seed)
    for n in SIZES:
        most = rng.integers(1, labels + 1)  # higher labels never occur
        gold, predicted = rng.integers(0, most, n), rng.integers(0, rng.integers(1, labels + 1), n)
        names = range(labels)
        assert metrics.accuracy(gold, predicted) == close(sklearn_metrics.accuracy_score(gold, predicted))
        theirs = sklearn_metrics.confusion_matrix(gold, predicted, labels=names)
        np.testing.assert_array_equal(metrics.confusion_matrix(gold, predicted, labels), theirs)
        theirs = sklearn_metrics.precision_recall_fscore_support(gold, predicted, labels=names, zero_division=0)
        for figure, expected in zip(metrics.precision_recall_f1(gold, predicted, labels), theirs, strict=True):
            np.testing.assert_allclose(figure, expected, rtol=1e-9, atol=0)
        theirs = sklearn_metrics.f1_score(gold, predicted, labels=names, average="macro", zero_division=0)
        assert metrics.macro_f1(gold, predicted, labels) == close(theirs)


@seeds
@pytest.mark.parametrize("share", [0.5, 0.02])
@pytest.mark.parametrize("digits", [0, 2, 15])
def test_two_classes(seed, share, digits):
    rng = np.random.default_rng(seed)
    for n in SIZES[1:]:
        gold, score = rng.random(n) < share, rounded(rng, n, digits=digits)
        gold[:2] = rng.permutation([True, False])
        assert metrics.roc_auc(gold, score) == close(sklearn_metrics.roc_auc_score(gold, score))
        assert metrics.roc_auc(gold.astype(int), -score) == close(sklearn_metrics.roc_auc_score(gold, -score))
        theirs = sklearn_metrics.average_precision_score(gold, score)
        assert metrics.average_precision(gold, score) == close(theirs)


def test_auc_of_float32_probabilities():
    rng = np.random.default_rng(0)
    gold, score = rng.random(5000) < 0.3, softmax(9 * rng.standard_normal((5000, 2)))[:, 1].astype(np.float32)
    assert metrics.roc_auc(gold, score) == close(sklearn_metrics.roc_auc_score(gold, score))
    assert metrics.average_precision(gold, score) == close(sklearn_metrics.average_precision_score(gold, score))


def test_one_class_has_no_auc():
    for gold in ([0, 0, 0], [1, 1], []):
        assert metrics.roc_auc(gold, np.arange(len(gold))) is None
    assert metrics.average_precision([0, 0], [1, 2]) is None
    assert metrics.average_precision([1, 1], [1, 2]) == 1


@seeds
@pytest.mark.parametrize("labels", [2, 3, 9])
@pytest.mark.parametrize("scale", [0.1, 3, 300])  # of logits; with the last one, probabilities are 0
def test_log_loss(seed, labels, scale):
    rng = np.random.default_rng(seed)
    for n in SIZES:
        gold = rng.integers(0, rng.integers(1, labels + 1), n)
        probabilities = softmax(scale * rng.standard_normal((n, labels)))
        theirs = sklearn_metrics.log_loss(gold, probabilities, labels=range(labels))
        assert metrics.log_loss(gold, probabilities) == close(theirs)


def calibration_error_by_hand(gold, probabilities, bins):
    error = 0.0
    for i in range(bins):
        inside = [
            (row.max(), row.argmax() == label)
            for label, row in zip(gold, probabilities, strict=True)
            if i / bins < row.max() <= (i + 1) / bins
        ]
        if inside:
            confidence, correct = np.array(inside, dtype=float).T
            error += len(inside) / len(gold) * abs(confidence.mean() - correct.mean())
    return error


@seeds
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error(seed, bins):
    rng = np.random.default_rng(seed)
    for labels, n in ((2, 1), (2, 50), (3, 500)):
        gold, probabilities = rng.integers(0, labels, n), softmax(2 * rng.standard_normal((n, labels)))
        expected = calibration_error_by_hand(gold, probabilities, bins)
        assert metrics.expected_calibration_error(gold, probabilities, bins) == close(expected)


def test_calibration_error_of_certain_predictions():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    assert metrics.expected_calibration_error([0, 0, 0, 1], probabilities) == close(0.25)
    assert metrics.expected_calibration_error([0, 1, 0, 1], probabilities) == 0
    # A confidence on the border of two bins counts in the lower one.
    assert metrics.expected_calibration_error([0, 1], [[0.5, 0.5], [0.75, 0.25]], bins=2) == close(0.625)


@seeds
@pytest.mark.parametrize("scale", [1, 1e-200, 1e200, 1e-9])
def test_correlations(seed, scale):
    rng = np.random.default_rng(seed)
    for n in SIZES[1:]:
        for x, noise in ((5 * rounded(rng, n), rounded(rng, n)), (rng.standard_normal(n), rng.standard_normal(n))):
            x[:2] = 0, 1
            y = scale * (0.4 * x + noise + (np.arange(n) == 0))
            if np.ptp(y):
                assert metrics.pearson(x, y) == close(stats.pearsonr(x, y).statistic)
                assert metrics.spearman(x, y) == close(stats.spearmanr(x, y).statistic)
                assert metrics.spearman(x, -y) == close(stats.spearmanr(x, -y).statistic)


@seeds
def test_mean_squared_error(seed):
    rng = np.random.default_rng(seed)
    for n in SIZES:
        x, y = 5 * rng.random(n), (5 * rng.random(n)).astype(np.float32)
        assert metrics.mean_squared_error(x, y) == close(sklearn_metrics.mean_squared_error(x, y))


def test_exact_correlations():
    x = np.arange(10.0)
    assert metrics.pearson(x, 3 * x + 1) == close(1)
    assert metrics.pearson(x, -x) == metrics.spearman(x, -np.exp(x)) == close(-1)
    assert metrics.spearman(x, np.exp(x)) == close(1)
    for x, y in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0.1, 0.1, 0.1]), ([1], [1]), ([], [])):
        assert metrics.pearson(x, y) is metrics.spearman(x, y) is None


def ranking_by_hand(queries, relevant, score, ks):
    figures = []
    for query in set(queries):
        of_query = queries == query
        gold, scores = relevant[of_query], score[of_query]
        if not gold.any():
            continue
        ranked = [gold for _, gold in sorted(zip(-scores, gold, strict=True))]  # ties: irrelevant first
        precision = sklearn_metrics.average_precision_score(gold, scores)
        recalls = [sum(ranked[:k]) / gold.sum() for k in ks]
        figures.append([precision, 1 / (1 + ranked.index(True)), *recalls])
    return dict(zip(["map", "mrr", *(f"recall@{k}" for k in ks)], np.mean(figures, 0), strict=True))


@seeds
@pytest.mark.parametrize("digits", [0, 1, 15])
@pytest.mark.parametrize("share", [0.02, 0.3])  # of relevant candidates
def test_ranking(seed, digits, share):
    rng = np.random.default_rng(seed)
    for n, count in ((1, 1), (30, 4), (600, 30), (300, 250)):
        queries, score = rng.integers(0, count, n), rounded(rng, n, digits=digits)
        relevant = rng.random(n) < share
        relevant[0] = True
        expected = ranking_by_hand(queries, relevant, score, (1, 5, 10))
        assert metrics.ranking(queries, relevant, score) == {name: close(value) for name, value in expected.items()}
        names = np.array([f"query {number}" for number in queries])
        assert metrics.ranking(names, relevant.astype(int), score, (3,))["map"] == close(expected["map"])


def test_ranking_of_ties():
    """A model that gives all candidates the same score has found none."""
    tied = metrics.ranking([7] * 10, [1] + [0] * 9, [0.5] * 10)
    assert tied == {"map": 0.1, "mrr": 0.1, "recall@1": 0, "recall@5": 0, "recall@10": 1}
    nothing = dict.fromkeys(("map", "mrr", "recall@1", "recall@5", "recall@10"))
    assert metrics.ranking([1, 2], [0, 0], [1, 2]) == metrics.ranking([], [], []) == nothing


def test_no_data():
    for figure in (metrics.accuracy, metrics.mean_squared_error):
        assert figure([], []) is None
    assert metrics.macro_f1([], [], 3) is None
    assert not metrics.confusion_matrix([], [], 3).any()
    for figure in (metrics.log_loss, metrics.expected_calibration_error):
        assert figure([], np.empty((0, 2))) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy([1, 2], [1]), r"vectors of equal length, got shapes \(2,\), \(1,\)$"),
        (lambda: metrics.roc_auc([[1, 0]], [[1, 2]]), r"vectors of equal length, got shapes \(1, 2\), \(1, 2\)$"),
        (lambda: metrics.confusion_matrix([0, 2], [0, 1], 2), "from 0 to 1$"),
        (lambda: metrics.confusion_matrix([0, 1], [0, -1], 2), "from 0 to 1$"),
        (lambda: metrics.roc_auc([0, 1], [0.5, np.nan]), "finite numbers"),
        (lambda: metrics.pearson([0, np.inf], [0.5, 1]), "finite numbers"),
        (lambda: metrics.ranking([0, 0], [0, 1], [np.nan, 1]), "finite numbers"),
        (lambda: metrics.log_loss([0, 2], [[1, 0], [0, 1]]), "from 0 to 1$"),
        (lambda: metrics.log_loss([0, 1], [1, 0]), r"expected shapes \(n,\) and \(n, labels\), got \(2,\) and \(2,\)$"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""``esim-fast evaluate`` on made-up files like known corpora gives scikit-learn's and SciPy's figures."""

import json
import random

import numpy as np
import pytest
import torch

from esim_fast import Classifier
from esim_fast.data import EncodedPairs
from tests.cli.commands import esim_fast, fails, succeeds, write_tsv
from tests.cli.made_up import random_model, sentence, write_rows

sklearn_metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

NLI = ["contradiction", "entailment", "neutral"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, labels in (("nli", NLI), ("sick", [label.upper() for label in NLI]), ("qqp", ["0", "1"])):
        random_model(labels).save_pretrained(folder / name)
    random_model(["score"]).save_pretrained(folder / "scores")
    random_model(["0", "1"], temperature=2.5, threshold=0.8).save_pretrained(folder / "calibrated")
    return folder


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def evaluated(*arguments):
    return json.loads(succeeds("evaluate", *arguments, "--no-cache", "--device", "cpu"))


def logits(model, pairs):
    model = Classifier.from_pretrained(model, device="cpu")
    sides = ([model.encode(pair[side]) for pair in pairs] for side in (0, 1))
    return model.logits(EncodedPairs(*sides, None), batch_size=256).double()


def softmax(logits):
    return logits.softmax(1).numpy()


def regression_figures(gold, score):
    return {
        "pearson": close(stats.pearsonr(gold, score).statistic),
        "spearman": close(stats.spearmanr(gold, score).statistic),
        "mean_squared_error": close(sklearn_metrics.mean_squared_error(gold, score)),
    }


def class_figures(gold, given, probabilities):
    labels = range(probabilities.shape[1])
    return {
        "accuracy": close(sklearn_metrics.accuracy_score(gold, given)),
        "macro_f1": close(sklearn_metrics.f1_score(gold, given, labels=labels, average="macro", zero_division=0)),
        "log_loss": close(sklearn_metrics.log_loss(gold, probabilities, labels=labels)),
    }


def has(report, figures):
    assert {name: report[name] for name in figures} == figures


def test_scores_as_in_stsb(models, tmp_path):
    draw = random.Random(1)
    rows = [
        (
            i,
            "main",
            "x",
            2012,
            i,
            "n",
            "n",
            sentence(draw),
            sentence(draw),
            f"{draw.choice([0, 5, draw.uniform(0, 5)]):.3f}",
        )
        for i in range(400)
    ]
    columns = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    path = write_rows(tmp_path / "dev.tsv", columns, rows)
    report = evaluated(models / "scores", path)
    gold, score = np.array([float(row[9]) for row in rows]), logits(models / "scores", [row[7:9] for row in rows])[:, 0]
    assert report.keys() == {"pearson", "spearman", "mean_squared_error", "pairs", "dropped", "left_out"}
    has(report, {**regression_figures(gold, score.numpy()), "pairs": 400, "dropped": 0, "left_out": {"bad_rows": 0}})


def test_scores_and_classes_as_in_sick(models, tmp_path):
    """A regression model and a classifier each use their own column."""
    draw = random.Random(2)
    names = [label.upper() for label in NLI]
    rows = [(i, sentence(draw), sentence(draw), draw.randint(10, 50) / 10, draw.choice(names)) for i in range(300)]
    columns = "pair_ID sentence_A sentence_B relatedness_score entailment_judgment"
    path = write_rows(tmp_path / "SICK_test.txt", columns, rows)
    pairs = [row[1:3] for row in rows]
    score = logits(models / "scores", pairs)[:, 0].numpy()
    has(evaluated(models / "scores", path), regression_figures(np.array([row[3] for row in rows]), score))
    report, found = evaluated(models / "sick", path), softmax(logits(models / "sick", pairs))
    gold = np.array([names.index(row[4]) for row in rows])
    has(report, class_figures(gold, found.argmax(1), found))
    assert not report.keys() & {"auc", "average_precision", "positive_label"}
    theirs = sklearn_metrics.confusion_matrix(gold, found.argmax(1)).tolist()
    assert [list(row.values()) for row in report["confusion_matrix"].values()] == theirs


@pytest.mark.parametrize("name", ["qqp", "calibrated"])
def test_two_classes_as_in_qqp(models, tmp_path, name):
    """Few pairs are positive. A threshold changes labels, and a temperature changes probabilities."""
    draw = random.Random(3)
    rows = [(i, 2 * i, 2 * i + 1, sentence(draw), sentence(draw), int(draw.random() < 0.1)) for i in range(500)]
    path = write_rows(tmp_path / "dev.tsv", "id qid1 qid2 question1 question2 is_duplicate", rows)
    report, scores = evaluated(models / name, path), logits(models / name, [row[3:5] for row in rows])
    found = softmax(scores / 2.5 if name == "calibrated" else scores)
    given = (found[:, 1] >= 0.8).astype(int) if name == "calibrated" else found.argmax(1)
    gold = np.array([row[5] for row in rows])
    has(report, class_figures(gold, given, found))
    assert report["positive_label"] == "1"
    assert report["auc"] == close(sklearn_metrics.roc_auc_score(gold, found[:, 1]))
    assert report["average_precision"] == close(sklearn_metrics.average_precision_score(gold, found[:, 1]))
    answers = [json.loads(line) for line in succeeds("predict", models / name, path).splitlines()]
    assert [int(answer["label"]) for answer in answers] == given.tolist()
    assert report["confusion_matrix"]["0"]["1"] == sum(a["label"] > a["gold"] for a in answers)


def test_probabilities_of_merged_labels(models, tmp_path):
    draw = random.Random(4)
    rows = [(draw.choice(["entailment", "non"]), sentence(draw), sentence(draw)) for _ in range(200)]
    path = write_tsv(tmp_path / "hans.tsv", rows)
    report = evaluated(models / "nli", path, "--map-labels", "contradiction=non,neutral=non")
    found = softmax(logits(models / "nli", [row[1:] for row in rows]))
    gold = np.array([row[0] == "entailment" for row in rows]).astype(int)
    two = np.stack([found[:, 0] + found[:, 2], found[:, 1]], 1)
    has(report, class_figures(gold, (found.argmax(1) == 1).astype(int), two))
    assert report["positive_label"] == "entailment"
    assert report["auc"] == close(sklearn_metrics.roc_auc_score(gold, found[:, 1]))


def ranked(queries, relevant, score):
    """Expected means over queries, without ties."""
    figures = []
    for query in sorted(set(queries)):
        of_query = np.array([other == query for other in queries])
        gold = relevant[of_query]
        if gold.any():
            order = np.argsort(-score[of_query])
            recalls = [gold[order][:k].sum() / gold.sum() for k in (1, 5, 10)]
            precision = sklearn_metrics.average_precision_score(gold, score[of_query])
            figures.append([precision, 1 / (1 + gold[order].argmax()), *recalls])
    names = ("map", "mrr", "recall@1", "recall@5", "recall@10")
    means = dict(zip(names, map(close, np.mean(figures, 0)), strict=True))
    return {"queries": len(figures), "without_relevant": len(set(queries)) - len(figures), **means}


def test_ranking(models, tmp_path):
    draw = random.Random(5)
    queries = [f"{sentence(draw)} w{i}" for i in range(12)]  # all different
    rows = [
        (query, f"{sentence(draw)} {sentence(draw)}", 0 if i == 3 else int(draw.random() < 0.2), draw.randint(0, 3))
        for i, query in enumerate(queries)
        for _ in range(25)
    ]
    draw.shuffle(rows)
    path = write_rows(tmp_path / "candidates.tsv", "query candidate relevant score", rows)
    names, relevant = [row[0] for row in rows], np.array([row[2] for row in rows])
    for model, label in (("qqp", "1"), ("nli", "entailment")):
        options = ["--map-labels", "1=entailment,0=neutral"] if model == "nli" else []
        score = softmax(logits(models / model, [row[:2] for row in rows]))[:, 1]
        report = evaluated(models / model, path, "--ranking", *options)
        assert report["ranking"] == {"relevant_label": label, **ranked(names, relevant, score)}
    score = logits(models / "scores", [row[:2] for row in rows])[:, 0].numpy()
    found = evaluated(models / "scores", path, "--ranking")["ranking"]
    assert found == ranked(names, np.array([row[3] > 0 for row in rows]), score)
    assert "ranking" not in evaluated(models / "qqp", path)


def test_figures_that_are_not_defined(models, tmp_path):
    path = write_tsv(tmp_path / "one.tsv", [("0", "a man", "b"), ("0", "c", "d")])
    report = evaluated(models / "qqp", path, "--ranking")
    assert report["auc"] is report["average_precision"] is report["ranking"]["map"] is None
    path = write_tsv(tmp_path / "same.tsv", [("2.5", "a man", "b"), ("2.50", "c", "d")])
    report = evaluated(models / "scores", path, "--ranking")
    assert report["pearson"] is report["spearman"] is None
    assert report["ranking"] == {"queries": 2, "without_relevant": 0, **dict.fromkeys(list(report["ranking"])[2:], 1)}


def test_a_mistaken_task(models, tmp_path):
    scores = write_tsv(tmp_path / "scores.tsv", [("3", "a", "b"), ("3.75", "a", "b"), ("0.5", "c", "d")])
    message = f"expected a label among contradiction, entailment, neutral, got scores such as 3.75; {models / 'nli'}"
    assert f"{scores}: {message} predicts classes; for scores" in fails("evaluate", models / "nli", scores)
    names = write_tsv(tmp_path / "names.tsv", [("entailment", "a", "b"), ("neutral", "a", "b")])
    assert f"{names}:2: expected a number as the score, got 'entailment'" in fails("evaluate", models / "scores", names)
    assert "a regression model predicts scores" in fails("evaluate", models / "scores", scores, "--confusion", "a.png")


def test_rows_without_a_score(models, tmp_path):
    rows = [("3", "a", "b"), ("-", "a", "b"), ("4.5", "c", "d")]
    path = write_tsv(tmp_path / "a.tsv", [*rows, ("high", "c", "d")])
    assert f"{path}:5: expected a number as the score, got 'high'" in fails("evaluate", models / "scores", path)
    result = esim_fast("evaluate", models / "scores", path, "--skip-bad-rows", "--no-cache")
    report = json.loads(result.stdout)
    assert (report["pairs"], report["dropped"], report["left_out"]) == (2, 1, {"bad_rows": 1})


def test_ranking_needs_a_label(models, tmp_path):
    random_model(["x", "y", "z"]).save_pretrained(tmp_path / "xyz")
    path = write_tsv(tmp_path / "a.tsv", [("x", "a", "b"), ("y", "c", "d")])
    message = "esim-fast: --ranking: expected a label entailment or 1 that means relevant, got x, y, z; rename yours"
    assert fails("evaluate", tmp_path / "xyz", path, "--ranking").startswith(message)
    report = evaluated(tmp_path / "xyz", path, "--ranking", "--map-labels", "x=1")
    assert report["ranking"]["relevant_label"] == "1"


def test_outputs_that_are_not_finite(models, tmp_path):
    model = Classifier.from_pretrained(models / "scores", device="cpu")
    with torch.no_grad():
        model.net.linear.mlp[1].bias.fill_(1e3)  # all units are 1
        model.net.linear.mlp[3].weight.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    path = write_tsv(tmp_path / "a.tsv", [("1", "a man", "two dogs"), ("2", "c", "d")])
    assert "must be finite" in fails("evaluate", tmp_path / "model", path)

"""``esim-fast evaluate``: figures that follow from the answers."""

import json

from tests.cli.commands import TRAIN, fails, succeeds, write_tsv


def test_report(model, corpus):
    report = json.loads(succeeds("evaluate", model, corpus))
    assert (report["pairs"], report["dropped"]) == (5, 1)
    # As predict answers.
    answers = [json.loads(line)["label"] for line in succeeds("predict", model, corpus).splitlines()]
    assert report["accuracy"] == sum(answer == gold for answer, (gold, *_) in zip(answers, TRAIN, strict=True)) / 5
    confusion, classes = report["confusion_matrix"], report["classes"]
    assert sum(sum(row.values()) for row in confusion.values()) == 5
    assert report["accuracy"] == sum(confusion[label][label] for label in confusion) / 5
    supports = {label: figures["support"] for label, figures in classes.items()}
    assert supports == {"contradiction": 2, "entailment": 2, "neutral": 1}
    for label, figures in classes.items():
        answered = sum(row[label] for row in confusion.values())
        assert figures["recall"] == confusion[label][label] / figures["support"]
        assert figures["precision"] == (confusion[label][label] / answered if answered else 0)


def test_mistakes(model, corpus, tmp_path):
    assert "no such model directory" in fails("evaluate", tmp_path / "nowhere", corpus)
    assert "config.json is missing" in fails("evaluate", tmp_path, corpus)
    other = write_tsv(tmp_path / "other.tsv", [("paraphrase", "a", "b")])
    assert "other.tsv:2: expected a label among" in fails("evaluate", model, other)


def test_precision(model, corpus):
    exact, rounded = (json.loads(succeeds("evaluate", model, corpus, "--precision", name)) for name in ("fp32", "auto"))
    assert rounded["confusion_matrix"] == exact["confusion_matrix"]
    assert "invalid choice: 'int4'" in fails("evaluate", model, corpus, "--precision", "int4")

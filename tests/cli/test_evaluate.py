"""``esim-fast evaluate``: figures that follow from the answers."""

import json

from tests.cli.commands import TRAIN, fails, succeeds, write_tsv


def test_report(model, corpus):
    report = json.loads(succeeds("evaluate", model, corpus))
    assert (report["pairs"], report["dropped"]) == (5, 1)
    confusion = report["confusion_matrix"]
    assert sum(sum(row.values()) for row in confusion.values()) == 5
    right = sum(confusion[label][label] for label in confusion)
    assert report["accuracy"] == right / 5
    assert {label: figures["support"] for label, figures in report["classes"].items()} == {
        "contradiction": 2,
        "entailment": 2,
        "neutral": 1,
    }
    for label, figures in report["classes"].items():
        answers = sum(row[label] for row in confusion.values())
        assert figures["recall"] == confusion[label][label] / figures["support"]
        assert figures["precision"] == (confusion[label][label] / answers if answers else 0)


def test_agrees_with_predict(model, corpus):
    report = json.loads(succeeds("evaluate", model, corpus))
    lines = succeeds("predict", model, corpus).splitlines()
    labeled = [(json.loads(line)["label"], gold) for line, (gold, *_) in zip(lines, TRAIN, strict=True)]
    assert report["accuracy"] == sum(label == gold for label, gold in labeled) / 5


def test_mistakes(model, corpus, tmp_path):
    assert "no such model directory" in fails("evaluate", tmp_path / "nowhere", corpus)
    assert "config.json is missing" in fails("evaluate", tmp_path, corpus)
    other = write_tsv(tmp_path / "other.tsv", [("paraphrase", "a", "b")])
    assert "other.tsv:2: expected a label among" in fails("evaluate", model, other)

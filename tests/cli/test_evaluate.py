"""``esim-fast evaluate``: figures of the predictions."""

import json

import pytest

from tests.cli.commands import TRAIN, esim_fast, fails, succeeds, write_tsv


def test_report(model, corpus):
    report = json.loads(succeeds("evaluate", model, corpus))
    assert (report["pairs"], report["dropped"]) == (5, 1)
    # The predictions of esim-fast predict.
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


def evaluated(*arguments: object) -> tuple[dict, str]:
    result = esim_fast("evaluate", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_other_labels_are_counted(model, corpus, tmp_path):
    rows = [*TRAIN, ("maybe", "a man", "b"), ("maybe", "c", "d"), ("never", "e", "f")]
    other = write_tsv(tmp_path / "other.tsv", rows)
    other.write_text(other.read_text() + "neutral\tonly one\n")
    report, said = evaluated(model, other, "--skip-bad-rows")
    assert report["left_out"] == {"bad_rows": 1, "other_labels": {"maybe": 2, "never": 1}}
    assert {**report, "left_out": 0} == {**json.loads(succeeds("evaluate", model, corpus)), "left_out": 0}
    message = "skipped 3 pairs: expected a label among contradiction, entailment, neutral, got maybe 2, never 1"
    assert f"{other}: {message}; to merge labels, use --map-labels OLD=NEW\n" in said
    assert said.count("\n") == 2


def test_labels_that_never_occur(model, tmp_path):
    rows = write_tsv(tmp_path / "a.tsv", [row for row in TRAIN if row[0] == "entailment"])
    report, said = evaluated(model, rows)
    assert report["absent_labels"] == ["contradiction", "neutral"]
    assert f"{rows}: no pair has the label contradiction, neutral, which the model can predict; " in said


def test_other_names_for_labels(model, corpus, tmp_path):
    """Renaming applies to gold and predicted labels: confusing merged labels is not an error."""
    two = [("non" if label == "contradiction" else label, p, h) for label, p, h in TRAIN]
    rows = write_tsv(tmp_path / "two.tsv", two)
    options = ["--map-labels", "contradiction=non,neutral=non"]
    report, said = evaluated(model, rows, *options)
    whole = json.loads(succeeds("evaluate", model, corpus))["confusion_matrix"]
    non = ("contradiction", "neutral")
    assert report["confusion_matrix"] == {
        "non": {
            "non": sum(whole[gold][answer] for gold in non for answer in non),
            "entailment": sum(whole[gold]["entailment"] for gold in non),
        },
        "entailment": {
            "non": sum(whole["entailment"][answer] for answer in non),
            "entailment": whole["entailment"]["entailment"],
        },
    }
    assert said == ""
    assert evaluated(model, corpus, *options)[0] == report
    assert "expected a label among contradiction, entailment, neutral, got 'non'" in fails("evaluate", model, rows)


@pytest.mark.parametrize("text", ["a", "a=", "=b", "a=b,", "a=b,a=c", ""])
def test_bad_names_for_labels(model, corpus, text):
    assert f"expected OLD=NEW,…, each OLD once, got {text!r}" in fails("evaluate", model, corpus, "--map-labels", text)
    assert "that the model can predict, got -" in fails("evaluate", model, corpus, "--map-labels", "neutral=-")


def test_a_single_label(model, corpus):
    said = fails("evaluate", model, corpus, "--map-labels", "contradiction=x,entailment=x,neutral=x")
    assert said.endswith("--map-labels: only one label is left, x")

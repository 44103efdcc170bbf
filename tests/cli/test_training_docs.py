"""The code of docs/training.md, docs/watching.md and docs/python.md runs as it is written."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from esim_fast import Classifier
from tests.cli.commands import TRAIN, succeeds, write_tsv
from tests.pages import blocks


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = TRAIN[:5] * 8
    for name in ("train.tsv", "dev.tsv"):
        write_tsv(tmp_path / name, rows)
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("label", "premise", "hypothesis"), *rows])
    words = {word.lower() for _, *pair in rows for sentence in pair for word in sentence.split()}
    vectors = "".join(f"{word} {' '.join(['0.1'] * 8)}\n" for word in sorted(words))
    (tmp_path / "glove.840B.300d.txt").write_text(vectors)
    return tmp_path


def test_training(folder):
    pairs = [(f"{p} {i}", f"{h} {i % 3}") for i, (_, p, h) in enumerate(TRAIN * 6)]
    for part in ("train", "dev", "test"):
        for corpus, label, values in (("sts", "score", (0.5, 1.25, 3, 4.75)), ("qqp", "is_duplicate", (0, 0, 1))):
            lines = (f"{p}\t{h}\t{values[i % len(values)]}\n" for i, (p, h) in enumerate(pairs))
            (folder / f"{corpus}-{part}.tsv").write_text(f"sentence1\tsentence2\t{label}\n{''.join(lines)}")
    names = {}
    for language, code, _ in blocks("docs/training.md"):
        for line in code.splitlines() if language == "bash" else ():
            small = ["--hidden-size", 8, "--embedding-dim", 8, "--epochs", 1] if "train " in line else []
            succeeds(*shlex.split(line)[1:], *small, "--device", "cpu")
        if language == "python":
            exec(compile(code, code, "exec"), names)
    assert Classifier.from_pretrained(folder / "scorer", device="cpu").task == "regression"
    assert [metrics.dev_accuracy for metrics in names["history"]] == [None, None]
    decided = Classifier.from_pretrained(folder / "decided", device="cpu")
    assert (decided.temperature, decided.threshold) == (names["calibration"].temperature, names["threshold"].threshold)


def test_watching(folder):
    for library in ("tensorboard", "yaml"):
        pytest.importorskip(library)
    for language, code, _ in blocks("docs/watching.md"):
        if language == "yaml":
            Path(re.match("# (.*)\n", code)[1]).write_text(code)
        for line in code.splitlines() if language == "bash" else ():
            assert line.startswith("esim-fast train ")
            succeeds(*shlex.split(line)[1:], "--hidden-size", 8, "--embedding-dim", 8, "--device", "cpu")
    assert list((folder / "model" / "tensorboard").iterdir())
    for directory in ("model", "from-file"):
        assert (folder / directory / "steps.csv").exists()
    models = [Classifier.from_pretrained(folder / name, device="cpu") for name in ("from-file", "again")]
    first, again = (model.training["recipe"] for model in models)
    assert again == {**first, "seed": 1}
    assert (first["epochs"], first["learning_rate"], first["ema_decay"]) == (1, 0.002, 0.999)


def test_python(folder):
    pytest.importorskip("pandas")
    names = {}
    for language, code, _ in blocks("docs/python.md"):
        if language == "python":
            exec(compile(code, code, "exec"), names)
    assert len(names["history"]) > 1
    assert names["logits"].shape[1] == 3
    for name in ("fitted", "from-script"):
        assert Classifier.from_pretrained(folder / name).labels == ["contradiction", "entailment", "neutral"]

"""Data sets of the Hugging Face Hub, in the form that its library saves."""

from pathlib import Path

import numpy as np
import pytest

from esim_fast.data import prepare
from esim_fast.data import preparing as module
from esim_fast.data.folders import find_corpus
from tests.data.files import refusal

datasets = pytest.importorskip("datasets", reason="the extra [hub] is not installed")

CLASSES = ["neutral", "contradiction", "entailment"]  # not sorted
ROWS = {"premise": ["A b.", "c", "d"], "hypothesis": ["B", "c?", ""], "label": [2, -1, 0], "idx": [0, 1, 2]}


def dataset(**columns: list[object]) -> "datasets.Dataset":
    labels = datasets.ClassLabel(names=CLASSES)
    rows = datasets.Dataset.from_dict(ROWS | columns)
    return rows.cast_column("label", labels)


@pytest.fixture(params=["saved", "files"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    parts = datasets.DatasetDict({"train": dataset(), "validation": dataset(), "test": dataset(label=[-1, -1, -1])})
    if request.param == "saved":
        parts.save_to_disk(tmp_path / "nli")
    else:
        for name, part in parts.items():
            part.to_parquet(tmp_path / "nli" / f"{name}.parquet")
    return f"hub:{tmp_path / 'nli'}"


def test_rows_and_names_of_labels(corpus, tmp_path, monkeypatch):
    prepared = prepare(f"{corpus}#train", cache=tmp_path / "cache")
    assert prepared.words == ["a", "b", ".", "c", "?", "d"]
    assert prepared.labels.tolist() == [0, module.NO_LABEL, 1]
    assert prepared.label_names == ["entailment", "neutral"]
    assert prepared.lines.tolist() == [1, 2, 3]
    monkeypatch.setattr(module, "_tokenize_part", None)  # the prepared corpus is cached
    assert np.array_equal(prepare(f"{corpus}#train", cache=tmp_path / "cache").tokens, prepared.tokens)


def test_splits(corpus):
    assert find_corpus(corpus) == (f"{corpus}#train", f"{corpus}#validation", f"{corpus}#test")


def test_mistakes(corpus, tmp_path):
    splits = "expected one of its splits after #, train, validation, test, got 'dev'"
    assert refusal(prepare, f"{corpus}#dev").endswith(splits)
    assert refusal(prepare, f"{corpus}#test").endswith("expected sentence pairs, got only 3 without a gold label")
    (tmp_path / "empty").mkdir()
    refusal(prepare, f"hub:{tmp_path / 'empty'}#train")


def test_a_row_that_is_wrong(tmp_path):
    datasets.DatasetDict({"train": dataset(premise=["a", "b\0", "c"])}).save_to_disk(tmp_path / "nli")
    said = refusal(prepare, f"hub:{tmp_path / 'nli'}#train")
    assert said.endswith("#train:2: NUL character")


def test_multinli(tmp_path):
    names = ("train", "validation_matched", "validation_mismatched", "test_matched")
    datasets.DatasetDict({name: dataset() for name in names}).save_to_disk(tmp_path / "mnli")
    parts = [part.rpartition("#")[2] for part in find_corpus(f"hub:{tmp_path / 'mnli'}")]
    assert parts == ["train", "validation_matched", "validation_mismatched"]

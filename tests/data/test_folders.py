"""Folders of official releases and other folders."""

import os
from pathlib import Path

import pytest

from esim_fast.data.folders import find_corpus
from tests.data.files import refusal

MULTINLI = "train", "dev_matched", "dev_mismatched"


def found(folder: Path, *names: str) -> list[str | None]:
    for name in names:
        (folder / name).write_text("")
    return [part and Path(part).name for part in find_corpus(folder)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Official releases: SNLI, MultiNLI, GLUE's MultiNLI, GLUE's QQP and LCQMC.
        (
            [f"snli_1.0_{part}.{form}" for part in ("train", "dev", "test") for form in ("jsonl", "txt")]
            + ["README.txt", ".DS_Store", "Icon\r", "._snli_1.0_train.jsonl"],
            ["snli_1.0_train.jsonl", "snli_1.0_dev.jsonl", "snli_1.0_test.jsonl"],
        ),
        (
            [f"multinli_1.0_{part}.{form}" for part in MULTINLI for form in ("jsonl", "txt")] + ["README.txt"],
            [f"multinli_1.0_{part}.jsonl" for part in MULTINLI],
        ),
        (
            [f"{part}.tsv" for part in (*MULTINLI, "test_matched", "test_mismatched")],
            [f"{part}.tsv" for part in MULTINLI],
        ),
        (["train.tsv", "dev.tsv", "test.tsv"], ["train.tsv", "dev.tsv", "test.tsv"]),
        # Other endings, other names, parts of words.
        (["train.csv.gz", "dev.txt"], ["train.csv.gz", "dev.txt", None]),
        (["my_train.tsv", "my_valid.tsv"], ["my_train.tsv", "my_valid.tsv", None]),
        (["a_train.tsv", "a_train.jsonl", "a_dev.tsv", "a_test.tsv"], ["a_train.jsonl", "a_dev.tsv", "a_test.tsv"]),
        (["train_latest.tsv", "dev_v1.tsv"], ["train_latest.tsv", "dev_v1.tsv", None]),
        (["constrained.tsv", "my-train.tsv", "Validation2.csv"], ["my-train.tsv", "Validation2.csv", None]),
    ],
)
def test_layouts(tmp_path, names, expected):
    assert found(tmp_path, *names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], ": expected a file with train in its name that ends in .tsv, .jsonl or the like"),
        (["train.tsv"], ": expected a file with dev in its name that ends in .tsv, .jsonl or the like"),
        (["train.doc", "dev.doc"], ": expected a file with train in its name that ends in .tsv, .jsonl or the like"),
        (["a_train.tsv", "b_train.tsv", "dev.tsv"], ": expected one train file, got a_train.tsv, b_train.tsv"),
    ],
)
def test_mistakes(tmp_path, names, message):
    assert refusal(found, tmp_path, *names) == f"{tmp_path}{message}"


def test_bad_folders(tmp_path):
    assert refusal(find_corpus, tmp_path / "a\nb") == rf"{tmp_path}/a\nb: no such directory"
    for name in ("train.tsv", "dev.tsv"):
        os.mkfifo(tmp_path / name)
    assert "expected a file with train in its name" in refusal(find_corpus, tmp_path)

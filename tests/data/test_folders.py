"""Folders of official releases, and others."""

from pathlib import Path

import pytest

from esim_fast.data import DataError
from esim_fast.data.folders import find_corpus


def found(folder: Path, *names: str) -> list[str | None]:
    for name in names:
        (folder / name).write_text("")
    return [part and Path(part).name for part in find_corpus(folder)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(
            [f"snli_1.0_{part}.{form}" for part in ("train", "dev", "test") for form in ("jsonl", "txt")]
            + ["README.txt", ".DS_Store", "Icon\r", "._snli_1.0_train.jsonl"],
            ["snli_1.0_train.jsonl", "snli_1.0_dev.jsonl", "snli_1.0_test.jsonl"],
            id="SNLI",
        ),
        pytest.param(
            [f"multinli_1.0_{part}.jsonl" for part in ("train", "dev_matched", "dev_mismatched")]
            + [f"multinli_1.0_{part}.txt" for part in ("train", "dev_matched", "dev_mismatched")]
            + ["paper.pdf", "README.txt"],
            ["multinli_1.0_train.jsonl", "multinli_1.0_dev_matched.jsonl", "multinli_1.0_dev_mismatched.jsonl"],
            id="MultiNLI",
        ),
        pytest.param(
            ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv", "test_mismatched.tsv"],
            ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"],
            id="GLUE-MultiNLI",
        ),
        pytest.param(["train.tsv", "dev.tsv", "test.tsv"], ["train.tsv", "dev.tsv", "test.tsv"], id="GLUE-QQP-LCQMC"),
        pytest.param(["train.csv.gz", "dev.txt"], ["train.csv.gz", "dev.txt", None], id="other-endings"),
        pytest.param(["my_train.tsv", "my_valid.tsv"], ["my_train.tsv", "my_valid.tsv", None], id="other-names"),
        pytest.param(
            ["a_train.tsv", "a_train.jsonl", "a_dev.tsv", "a_test.tsv"],
            ["a_train.jsonl", "a_dev.tsv", "a_test.tsv"],
            id="jsonl-preferred",
        ),
        pytest.param(
            ["train_latest.tsv", "dev_v1.tsv"], ["train_latest.tsv", "dev_v1.tsv", None], id="latest-is-no-test"
        ),
        pytest.param(
            ["constrained.tsv", "my-train.tsv", "Validation2.csv"],
            ["my-train.tsv", "Validation2.csv", None],
            id="words",
        ),
    ],
)
def test_layouts(tmp_path, names, expected):
    assert found(tmp_path, *names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], ": expected a file with train in its name and a corpus's ending"),
        (["train.tsv"], ": expected a file with dev in its name and a corpus's ending"),
        (["train.doc", "dev.doc"], ": expected a file with train in its name and a corpus's ending"),
        (["a_train.tsv", "b_train.tsv", "dev.tsv"], ": which is the train file? a_train.tsv, b_train.tsv"),
    ],
)
def test_mistakes(tmp_path, names, message):
    with pytest.raises(DataError) as caught:
        found(tmp_path, *names)
    assert str(caught.value) == f"{tmp_path}{message}"


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such directory$"):
        find_corpus(tmp_path / "nowhere")

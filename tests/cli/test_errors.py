"""``esim-fast evaluate --errors`` and ``--confusion``."""

import json
import random
import re
import sys
import warnings
from unittest import mock

import numpy as np
import pytest

from esim_fast import Classifier
from esim_fast.evaluation import confusion, errors
from tests.cli.commands import esim_fast, fails, succeeds, write_tsv
from tests.cli.made_up import random_model, sentence, write_rows

NLI = ["contradiction", "entailment", "neutral"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    random_model(NLI).save_pretrained(folder / "nli")
    random_model(["score"]).save_pretrained(folder / "scores")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    draw = random.Random(0)
    rows = [(f"{i}-é", sentence(draw), sentence(draw), draw.choice([*NLI, "-"])) for i in range(60)]
    rows.append(("long", "two " * 80, "dogs " * 80, "entailment"))
    rows += [("none", "", "a man", label) for label in NLI]
    rows += [("odd", "</script><script>alert(1)</script> {{content}} $& <!--", "رجل 男 人", label) for label in NLI]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.tsv", "pairID sentence1 sentence2 gold_label", rows)


def written(path, *arguments):
    """The contents of a file of errors."""
    result = esim_fast("evaluate", *arguments, "--errors", path, "--no-cache", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return embedded(text)


def embedded(text):
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)[1])


def test_same_errors_as_predict(models, pairs, tmp_path):
    rows = written(tmp_path / "errors.jsonl", models / "nli", pairs)
    answers = [json.loads(line) for line in succeeds("predict", models / "nli", pairs).splitlines()]
    wrong = {answer["line"]: answer for answer in answers if "gold" in answer and answer["gold"] != answer["label"]}
    assert 10 < len(wrong) < len(answers)
    assert len(rows) == len(wrong)
    for row in rows:
        answer = wrong.pop(row["line"])
        assert row.pop("probabilities") == pytest.approx(answer.pop("probabilities"), abs=2e-6)
        row.pop("attention", None)
        del answer["unknown_words"]
        assert row == answer
    assert not wrong


def test_the_most_confident_come_first(models, pairs, tmp_path):
    rows = written(tmp_path / "errors.jsonl", models / "nli", pairs)
    confidence = [row["probabilities"][row["label"]] for row in rows]
    assert confidence == sorted(confidence, reverse=True)
    assert len(set(confidence)) > 10


def test_attention_is_the_models(models, pairs, tmp_path):
    rows = written(tmp_path / "errors.jsonl", models / "nli", pairs)
    assert {row["id"] for row in rows if "attention" not in row} == {"long", "none"}
    model = Classifier.from_pretrained(models / "nli", device="cpu")
    for row in rows:
        if "attention" in row:
            explained = model.explain(row["premise"], row["hypothesis"]).as_dict()
            assert row["attention"] == {key: explained[key] for key in row["attention"]}
            assert row["attention"].keys() == {"premise", "hypothesis", "unknown", "alpha", "beta"}


def test_the_page_holds_the_same_and_loads_nothing(models, pairs, tmp_path):
    page = written(tmp_path / "errors.html", models / "nli", pairs)
    assert page["errors"] == written(tmp_path / "errors.jsonl", models / "nli", pairs)
    report = json.loads(succeeds("evaluate", models / "nli", pairs, "--no-cache", "--device", "cpu"))
    assert (page["source"], page["pairs"], page["labels"]) == ("pairs.tsv", report["pairs"], NLI)
    assert page["wrong"] == len(page["errors"])
    assert page["confusion"] == [list(row.values()) for row in report["confusion_matrix"].values()]
    text = (tmp_path / "errors.html").read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    program = re.sub(r"<script type=.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|src=|@import|url\(|innerHTML|\{\{", program)


def test_many_errors(models, pairs, tmp_path):
    with mock.patch.multiple(errors, _MAPS=3, _ON_A_PAGE=9, _LIKELIEST=2, _TABLE=2):
        rows = written(tmp_path / "errors.jsonl", models / "nli", pairs)
        page = written(tmp_path / "errors.html", models / "nli", pairs)
    assert not any("attention" in row for row in rows[3:])
    assert any("attention" in row for row in rows[:3])
    assert (page["wrong"], len(page["errors"]), page["maps"]) == (len(rows), 9, 3)
    assert page["confusion"] is None
    for row, on_page in zip(rows, page["errors"], strict=False):
        assert {row["label"], row["gold"]} == on_page["probabilities"].keys()
        assert {**row, "probabilities": 0} == {**on_page, "probabilities": 0}


def test_scores(models, tmp_path):
    draw = random.Random(1)
    rows = [(i, sentence(draw), sentence(draw), draw.randint(0, 50) / 10) for i in range(30)]
    path = write_rows(tmp_path / "sts.tsv", "idx sentence1 sentence2 score", rows)
    found = written(tmp_path / "errors.jsonl", models / "scores", path)
    answers = {a["line"]: a for a in map(json.loads, succeeds("predict", models / "scores", path).splitlines())}
    assert sorted(row["line"] for row in found) == sorted(answers)
    for row in found:
        assert {key: row[key] for key in ("id", "premise", "gold")} == {
            key: answers[row["line"]][key] for key in ("id", "premise", "gold")
        }
        assert row["score"] == pytest.approx(answers[row["line"]]["score"], abs=2e-6)
    distances = [abs(row["score"] - row["gold"]) for row in found]
    assert distances == pytest.approx(sorted(distances, reverse=True), abs=1e-5)
    page = written(tmp_path / "errors.html", models / "scores", path)
    assert (page["errors"], page["pairs"]) == (found, 30)
    assert "labels" not in page


def test_other_names_and_skipped_rows(models, tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [("non", "a man", "two dogs"), ("x",), ("yes", "a", "b"), ("non", "", "cats")])
    options = ["--map-labels", "yes=entailment,contradiction=non,neutral=non", "--skip-bad-rows"]
    rows = written(tmp_path / "errors.jsonl", models / "nli", path, *options)
    answers = [json.loads(line) for line in esim_fast("predict", models / "nli", path).stdout.splitlines()]
    wrong = [a["line"] for a in answers if (a["label"] == "entailment") != (a["gold"] == "yes")]
    assert sorted(row["line"] for row in rows) == wrong
    assert all(row["probabilities"].keys() == {"non", "entailment"} for row in rows)


def test_no_errors(models, tmp_path):
    answer = json.loads(succeeds("predict", models / "nli", "--premise", "a man", "--hypothesis", "two dogs"))
    path = write_tsv(tmp_path / "right.tsv", [(answer["label"], "a man", "two dogs")])
    assert written(tmp_path / "errors.jsonl", models / "nli", path) == []
    page = written(tmp_path / "errors.html", models / "nli", path)
    assert (page["wrong"], page["pairs"], page["errors"]) == (0, 1, [])
    result = esim_fast("evaluate", models / "nli", path, "--errors", tmp_path / "errors.html")
    assert f"{tmp_path / 'errors.html'}: 0 wrong pairs\n" in result.stderr


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--errors", "errors.csv", "--errors errors.csv: expected a name that ends in .html or .jsonl"),
        ("--confusion", "matrix.svg", "--confusion matrix.svg: expected a name that ends in .png"),
        ("--errors", "nowhere/a.html", "--errors nowhere/a.html: no such directory: nowhere"),
        ("--errors", "folder.html", "--errors folder.html: expected a file, got a directory"),
        ("--errors", "a.jsonl", "--errors a.jsonl: this would overwrite the file of pairs"),
    ],
)
def test_files_that_cannot_be_written(tmp_path, option, name, message):
    """The error comes before anything is read: the model does not exist."""
    (tmp_path / "folder.html").mkdir()
    content = '{"premise": "a", "hypothesis": "b", "label": "neutral"}\n'
    (tmp_path / "a.jsonl").write_text(content)
    assert fails("evaluate", "no-model", "a.jsonl", option, name, cwd=tmp_path) == f"esim-fast: {message}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "folder.html"]
    assert (tmp_path / "a.jsonl").read_text() == content


def test_a_folder_that_cannot_be_written_to(tmp_path):
    with mock.patch("os.access", return_value=False):  # root can write everywhere
        said = fails("evaluate", "no-model", "a.tsv", "--errors", tmp_path / "a.html")
    assert said == f"esim-fast: --errors {tmp_path / 'a.html'}: cannot write to {tmp_path}"


def test_a_file_that_changes_during_the_run(models, pairs, tmp_path):
    with mock.patch("esim_fast.cli.evaluate.read_pairs", return_value=iter(())):
        said = fails("evaluate", models / "nli", pairs, "--errors", tmp_path / "errors.html", "--no-cache")
    assert said == f"esim-fast: {pairs}: the file changed while it was evaluated"
    assert not list(tmp_path.iterdir())


class TestConfusion:
    pytest.importorskip("matplotlib")

    def test_picture(self, models, pairs, tmp_path):
        path = tmp_path / "confusion.png"
        with mock.patch.object(confusion, "draw", side_effect=confusion.draw) as draw:
            printed = succeeds("evaluate", models / "nli", pairs, "--confusion", path, "--no-cache", "--device", "cpu")
        assert path.read_bytes().startswith(b"\x89PNG")
        _, labels, matrix = draw.call_args.args
        assert labels == NLI
        rows = json.loads(printed)["confusion_matrix"].values()
        assert matrix.tolist() == [list(row.values()) for row in rows]

    def texts(self, labels, matrix, path):
        """The texts in a picture."""
        from matplotlib.text import Text

        drawn, draw = set(), Text.draw
        with mock.patch.object(Text, "draw", lambda text, *rest: drawn.add(text.get_text()) or draw(text, *rest)):
            confusion.draw(path, labels, matrix)
        return drawn

    def test_counts_and_shares(self, tmp_path):
        matrix = np.array([[3000, 1000], [0, 0]])
        drawn = self.texts(["$a$", "b" * 60], matrix, tmp_path / "a.png")
        assert {"3,000\n75%", "1,000\n25%", "0\n0%", r"\$a\$", "b" * 39 + "…", "gold", "predicted"} <= drawn

    def test_many_labels(self, tmp_path):
        labels = [f"label {i}" for i in range(70)]
        drawn = self.texts(labels, np.eye(70, dtype=int), tmp_path / "a.png")
        assert set(labels) <= drawn
        assert not any("%" in text for text in drawn)

    def test_without_matplotlib(self, tmp_path):
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            said = fails("evaluate", "no-model", "a.tsv", "--confusion", tmp_path / "a.png")
        assert said == 'esim-fast: --confusion needs matplotlib: pip install "esim_fast[plot]"'

    def test_characters_that_no_font_has(self, models, pairs, tmp_path):
        path = tmp_path / "a.png"
        draw = lambda partial, *_: partial.write_bytes(b"x") and warnings.warn("no font has 男", stacklevel=2)  # noqa: E731
        with mock.patch.object(confusion, "draw", draw):
            result = esim_fast("evaluate", models / "nli", pairs, "--confusion", path, "--no-cache")
        assert f"esim-fast: {path}: no font has 男\n" in result.stderr

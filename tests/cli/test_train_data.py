"""``esim-fast train``: its training files in every form, and errors for bad ones."""

import gzip
import json
import lzma
import random
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.cli.commands import SMALL, TRAIN, answers, esim_fast, fails, succeeds, training, write_tsv


def test_other_columns(corpus, model, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("id,q,a,y\n" + "".join(f'1,"{p}","{h}",{label}\n' for label, p, h in TRAIN))
    for columns in ("q,a,y", "2,3,4"):
        if columns == "2,3,4":
            other.write_text("".join(other.read_text().splitlines(keepends=True)[1:]))
        succeeds(*training(other, tmp_path / columns, "--columns", columns))
        for name in ("model.safetensors", "vocabulary.txt", "labels.json"):
            assert (tmp_path / columns / name).read_bytes() == (model / name).read_bytes()
        assert succeeds("evaluate", model, other, "--columns", columns) == succeeds("evaluate", model, corpus)
        predicted = succeeds("predict", model, other, "--columns", columns[:3])
        given = [answers(text) for text in (predicted, succeeds("predict", model, corpus))]
        kept = ("premise", "hypothesis", "label", "probabilities")
        first, second = ([{key: answer[key] for key in kept} for answer in of_one] for of_one in given)
        assert first == second


def test_bad_rows_are_listed_and_skipped(corpus, model, tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_text(corpus.read_text() + "neutral\tonly one\n")
    dev = tmp_path / "dev.tsv"
    dev.write_text(corpus.read_text() + "maybe\tone\ttwo\n")
    options = training(bad, tmp_path / "m", "--dev", dev)
    assert "bad.tsv:8: expected 3 columns, got 2" in fails(*options)
    unknown = f"{dev}:8: expected a label among contradiction, entailment, neutral, got 'maybe'"
    assert unknown in fails(*options, "--train", corpus)
    result = esim_fast(*options, "--skip-bad-rows")
    assert result.returncode == 0
    assert f"{bad}: 5 pairs" in result.stderr
    assert f"skipped 1 bad row:\n{bad}:8: expected 3 columns, got 2\n" in result.stderr
    assert f"{unknown} (to rename it, use --map-labels OLD=NEW)\n" in result.stderr
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    others = write_tsv(tmp_path / "others.tsv", [("maybe", "one", "two")])
    for command in (["evaluate", model, others], training(bad, tmp_path / "n", "--dev", others)):
        message = "others.tsv: expected labels among contradiction, entailment, neutral, got none"
        assert message in fails(*command, "--skip-bad-rows")
    for file, line in ((bad, "expected 3 columns"), (dev, "expected a label among")):
        assert line in fails("evaluate", model, file)
        result = esim_fast("evaluate", model, file, "--skip-bad-rows")
        assert line in result.stderr
        report = json.loads(result.stdout)
        left_out = {"bad_rows": 1, "other_labels": {}} if file == bad else {"bad_rows": 0, "other_labels": {"maybe": 1}}
        assert report == json.loads(succeeds("evaluate", model, corpus)) | {"left_out": left_out}
    result = esim_fast("predict", model, bad)
    assert result.stdout == succeeds("predict", model, corpus)
    assert result.stderr == f"{bad}:8: expected 3 columns, got 2\n{bad}: skipped 1 bad row\n"


def test_bad_rows_of_vectors(corpus, tmp_path):
    vectors = tmp_path / "glove.txt"
    vectors.write_text("man 1 2\n0.5 0.5\nA x 4\ndogs 5 6\n\nnone 7\nwoman 8 9\n")
    options = [*training(corpus, tmp_path / "m"), "--cache", tmp_path / "cache", "--vectors", vectors]
    message = f"{vectors}:2: expected 2 numbers, got 1 (is the word missing?)"
    assert fails(*options) == f"esim-fast: {message} (to skip such rows, use --skip-bad-rows or on_bad_row=)"
    assert not (tmp_path / "m").exists()
    for output in "ab":  # the second time from the cache
        result = esim_fast(*options, "--skip-bad-rows", "--output", tmp_path / output)
        assert result.returncode == 0, result.stderr
        assert result.stderr.splitlines()[2:7] == [
            f"{vectors}: vectors for 2 of 14 words; skipped 4 bad rows:",
            message,
            f"{vectors}:3: expected a finite number, got 'x'",
            f"{vectors}:5: expected 2 numbers, got 0",
            f"{vectors}:6: expected 2 numbers, got 1",
        ]
    vectors.write_text("man 1 2\ndogs 5 6\n")
    result = esim_fast(*options, "--skip-bad-rows", "--output", tmp_path / "c")
    assert f"{vectors}: vectors for 2 of 14 words\n" in result.stderr
    assert len({(tmp_path / run / "model.safetensors").read_bytes() for run in "abc"}) == 1
    # Truncated vectors, and too many bad rows.
    vectors.write_text("5000 2\nman 1 2\n" + 1999 * "of 1\n")
    listed = [f"{vectors}:{line}: expected 2 numbers, got 1" for line in range(3, 23)]
    result = esim_fast(*options, "--skip-bad-rows", "--seeds", 2, "--output", tmp_path / "d")
    first = f"{vectors}: vectors for 1 of 14 words; skipped 2,000 bad rows:"
    assert result.stderr.splitlines()[2:24] == [first, *listed, f"{vectors}: and 1,980 more"]
    assert result.stderr.count("bad rows") == 1  # once, not per seed
    vectors.write_text("2 2\nof 1\nnone 3 4\n")
    message = (
        f"{vectors}: expected vectors of the vocabulary's words, got none of 14 that can be read; line 2: expected"
    )
    assert message in fails(*options, "--skip-bad-rows", "--output", tmp_path / "e")


def test_extending_the_vocabulary(corpus, tmp_path):
    dev = write_tsv(tmp_path / "dev.tsv", [*TRAIN, ("neutral", "A zebra sleeps.", "Nobody knows.")])
    more = write_tsv(tmp_path / "more.tsv", [("?", "A yak sings.", "A zebra sings.")])
    vectors = tmp_path / "glove.txt"
    vectors.write_text("man 1 2\nzebra 3 4\nyak 5 6\nunheard 7 8\n")
    options = ["train", "--train", corpus, "--dev", dev, "--vectors", vectors, *SMALL]

    def new_words(*extend):
        output = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        succeeds(*options, *extend, "--output", output)
        words = (output / "vocabulary.txt").read_text().split()
        return [word for word in words if word in ("zebra", "yak", "nobody", "unheard", "sings")]

    assert new_words() == []
    assert new_words("--extend-vocabulary") == ["zebra"]
    assert new_words("--extend-vocabulary", more) == ["yak", "zebra"]
    assert new_words("--extend-vocabulary", more, dev) == ["zebra", "yak"]  # more frequent words first
    text = tmp_path / "words.txt"
    text.write_text("Yak\nA zebra sings.\nunheard\n")
    assert new_words("--extend-vocabulary", text, more) == ["yak", "zebra", "unheard"]
    with gzip.open(tmp_path / "cut.txt.gz", "wb") as file:
        file.write(b"word\n" * 10_000)
    whole = (tmp_path / "cut.txt.gz").read_bytes()
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    extend = ["--extend-vocabulary", tmp_path / "cut.txt.gz", "--output", tmp_path / "none"]
    assert "cut.txt.gz:" in fails(*options, *extend)
    odd = tmp_path / "odd.tsv"
    odd.write_text("a zebra\tb\nonly one\n")
    result = esim_fast(*options, "--extend-vocabulary", odd, "--skip-bad-rows", "--output", tmp_path / "odd")
    assert (result.returncode, f"{odd}:2: expected 2 columns, got 1\n" in result.stderr) == (0, True)
    # Labels are not needed for that and are ignored.
    dev.write_text(dev.read_text().replace("neutral\tA zebra", "-\tA zebra"))
    assert new_words("--extend-vocabulary") == ["zebra"]
    options = options[:5] + SMALL
    assert "--extend-vocabulary needs --vectors" in fails(*options, "--extend-vocabulary", cwd=tmp_path)


def test_prepared_files(corpus, tmp_path, cache):
    succeeds(*training(corpus, tmp_path / "a"), "--cache", tmp_path / "here")
    (kept,) = (tmp_path / "here").glob("*.safetensors")
    used = kept.stat().st_mtime_ns
    succeeds(*training(corpus, tmp_path / "b"), "--cache", tmp_path / "here")
    assert kept.stat().st_mtime_ns == used
    other = write_tsv(tmp_path / "other_pairs.tsv", TRAIN)
    before = set(cache.iterdir())
    succeeds(*training(other, tmp_path / "c"), "--no-cache")
    assert set(cache.iterdir()) == before
    for command in (["data", other], training(other, tmp_path / "d")):  # both commands share the cache
        succeeds(*command)
        assert len(list(cache.glob("other_pairs-*.safetensors"))) == 1
    assert len({(tmp_path / run / "model.safetensors").read_bytes() for run in "abcd"}) == 1


def test_a_folder_with_columns_of_other_names(tmp_path):
    for part in ("train", "dev", "test"):
        rows = "".join(f"{p}\t{h}\t{label}\n" for label, p, h in TRAIN)
        (tmp_path / f"{part}.tsv").write_text("q\ta\ty\n" + rows)
    options = ["train", "--data", tmp_path, "--columns", "q,a,y", *SMALL]
    assert "test accuracy" in succeeds(*options, "--output", tmp_path / "m")
    (tmp_path / "test.tsv").write_text("q\ta\nb\tc\n")
    assert "test.tsv: not used, because it has no labels\n" in esim_fast(*options, "--output", tmp_path / "n").stderr


def test_a_custom_tokenizer(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_words.py").write_text("def split(text):\n    return text.upper().split()\n")
    own = ["--tokenizer", "own_words:split"]
    succeeds(*training(corpus, "m"), *own, cwd=tmp_path)
    assert "SLEEPING." in (tmp_path / "m" / "vocabulary.txt").read_text().split()
    assert "a custom tokenizer, which is imported only if you name it: --tokenizer own_words:split" in fails(
        "evaluate", "m", corpus, cwd=tmp_path
    )
    for command in ("evaluate", "predict"):
        succeeds(command, "m", corpus, *own, cwd=tmp_path)
    names = "nltk, nltk-cased, nltk-punkt, whitespace, characters, coetaur0 or module:function"
    for name, message in (("own_words:join", "tokenizer own_words:join: AttributeError: module"), ("spacy", names)):
        assert message in fails("train", "--tokenizer", name, cwd=tmp_path)


def test_columns_in_another_order(model, tmp_path):
    rotated = write_tsv(tmp_path / "b.tsv", [(p, h, label) for label, p, h in TRAIN] * 5, header=False)
    answers = [json.loads(line) for line in succeeds("predict", model, rotated).splitlines()]
    assert [(answer["premise"], answer["hypothesis"]) for answer in answers] == [(p, h) for _, p, h in TRAIN] * 5
    rotated = write_tsv(tmp_path / "a.tsv", [("paraphrase", p, h) for _, p, h in TRAIN] * 5, header=False)
    message = fails("predict", model, rotated)
    assert f"{rotated}:1: column 1 was taken for the label: expected one of the model's (contradiction, " in message
    assert "got 'paraphrase'; if it is another column, name them with --columns" in message
    succeeds("predict", model, rotated, "--columns", "2,3")


def test_a_folder_whose_test_file_has_no_labels(tmp_path):
    for part in ("train", "dev"):
        write_tsv(tmp_path / f"{part}.tsv", TRAIN)
    (tmp_path / "test.tsv").write_text("id\tquestion1\tquestion2\n0\tA zebra.\tb\n")
    (tmp_path / "glove.vec").write_text("zebra 1 2\n")
    extend = ["--vectors", tmp_path / "glove.vec", "--extend-vocabulary", "--output", tmp_path / "n"]
    succeeds("train", "--data", tmp_path, *extend, *SMALL)
    assert "zebra" in (tmp_path / "n" / "vocabulary.txt").read_text().split()
    result = esim_fast("train", "--data", tmp_path, "--output", tmp_path / "m", *SMALL)
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'test.tsv'}: not used, because it has no labels\n" in result.stderr
    assert "test accuracy" not in result.stdout


def test_the_documented_command_for_snli(tmp_path):
    """On miniature files with exactly the official names, columns and rows."""
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("esim-fast train --data snli_1.0 "))
    columns = ["gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"]
    columns += ["sentence2_parse", "sentence1", "sentence2", "captionID", "pairID"]
    folder = tmp_path / "snli_1.0"
    folder.mkdir()
    (folder / "README.txt").write_text("This is version 1.0 of the SNLI corpus.\n")
    for part, annotators in (("train", 1), ("dev", 5), ("test", 5)):
        records = []
        for number, (label, p, h) in enumerate(TRAIN * 3):
            parses = [f"( {p} )", f"( {h} )", f"(ROOT (S {p}))", f"(ROOT (S {h}))"]
            ids = [f"{number}.jpg#0", f"{number}.jpg#0r1{label[0]}"]
            given = [label if label != "-" else ("neutral", "entailment")[i % 2] for i in range(annotators)]
            values = dict(zip(columns, [label, *parses, p, h, *ids], strict=True))
            records.append({"annotator_labels": given, **values})
        table = [[*list(record.values())[1:], *record["annotator_labels"]] for record in records]
        (folder / f"snli_1.0_{part}.txt").write_text("\n".join("\t".join(row) for row in [columns, *table]) + "\n")
        (folder / f"snli_1.0_{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    generator = random.Random(0)
    words = [",", ".", "the", "A", "man", "is", "sleeping", "dogs", ". . .", "at name@domain.com", "0.5"]
    rows = [f"{word} " + " ".join(f"{generator.gauss(0, 0.4):.5g}" for _ in range(300)) for word in words]
    (tmp_path / "glove.840B.300d.txt").write_text("\n".join(rows) + "\n")
    result = esim_fast(*shlex.split(command)[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("(contradiction 6, entailment 6, neutral 3); skipped 3 without a gold label") == 3
    assert re.search(r"glove\.840B\.300d\.txt: vectors for 6 of 1\d words\n", result.stderr)
    assert "test accuracy " in result.stdout
    (model,) = tmp_path.glob("*/model.safetensors")
    report = json.loads(succeeds("evaluate", model.parent, folder / "snli_1.0_test.jsonl"))
    assert f"test accuracy {report['accuracy']:.2%}\n" in result.stdout
    assert json.loads((model.parent / "config.json").read_text())["embedding_dim"] == 300


def test_several_training_files(corpus, model, tmp_path):
    rows = write_tsv(tmp_path / "more.tsv", [("neutral", "A zebra sleeps.", "A zebra dreams."), ("-", "a", "b")])
    options = ["train", "--train", corpus, rows, "--dev", corpus, *SMALL, "--output", tmp_path / "m"]
    result = esim_fast(*options)
    assert result.returncode == 0, result.stderr
    assert f"{rows}: 1 pairs (neutral 1); skipped 1 without a gold label\n" in result.stderr
    whole = write_tsv(tmp_path / "whole.tsv", [*TRAIN, ("neutral", "A zebra sleeps.", "A zebra dreams.")])
    succeeds(*training(corpus, tmp_path / "n", "--train", whole))
    for name in ("model.safetensors", "vocabulary.txt"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
    rows.write_text(rows.read_text() + "neutral\tonly one\n")
    assert "more.tsv:4: expected 3 columns, got 2" in fails(*options[:-1], tmp_path / "o")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("entailment", "one", "two"), ("entailment", "only one")], "bad.tsv:3: expected 3 columns, got 2"),
        ([("entailment", "one", "two")], "expected 2 to 1000 labels, got only 'entailment'"),
        ([], "bad.tsv: expected sentence pairs, got none"),
        # Sentences in place of labels, or a header with unknown names.
        (
            [(f"one {i}", f"two {i}", f"{i} a") for i in range(1001)],
            "expected 2 to 1000 labels, got 1001, such as",
        ),
        ([(f"{p} {i}", f"{h} {i}", "x") for _, p, h in TRAIN for i in range(9)], "expected 2 to 1000 labels, got only"),
        ([("y", "one", "two")] + [("yes", "a", "b"), ("no", "c", "d")] * 60, ":1: no other row has the label 'y'"),
    ],
)
def test_bad_corpora(corpus, tmp_path, rows, message):
    bad = write_tsv(tmp_path / "bad.tsv", rows, header=len(rows) < 5)
    said = fails(*training(corpus, tmp_path / "m"), "--train", bad)
    assert message in said
    assert len(rows) < 5 or re.search("[Nn]ame the columns with --columns|use --columns", said)
    assert not (tmp_path / "m").exists()


class TestLabels:
    def train(self, tmp_path, labels, *options):
        rows = "".join(f"A man {i}.\tHe {i}.\t{labels[i % len(labels)]}\n" for i in range(60))
        path = tmp_path / "pairs.tsv"
        path.write_text("premise\thypothesis\tlabel\n" + rows)
        result = esim_fast("train", "--train", path, "--dev", path, *SMALL, "--output", tmp_path / "m", *options)
        return result, path

    @pytest.mark.parametrize("labels", [("0", "1", "-1"), ("0.0", "1.0", "-1.0"), ("no", "yes", "-")])
    def test_no_gold_label(self, tmp_path, labels):
        result, path = self.train(tmp_path, labels[:2] * 4 + labels)
        assert result.returncode == 0, result.stderr
        assert f"{path}: 55 pairs (" in result.stderr
        assert "); skipped 5 without a gold label\n" in result.stderr

    def test_minus_one_may_be_a_class(self, tmp_path):
        result, path = self.train(tmp_path, ("-1", "0", "1"))
        said = f"{path}: 20 of 60 pairs have no gold label; if -1 is a class, name it with --map-labels=-1=NAME, "
        assert said in result.stderr
        result, _ = self.train(tmp_path, ("-1", "0", "1"), "--map-labels=-1=against")
        assert f"{path}: 60 pairs (0 20, 1 20, against 20)\n" in result.stderr
        result, _ = self.train(tmp_path, ("-1", "0", "1"), "--map-labels=-1=-", "--output", tmp_path / "n")
        assert f"{path}: 40 pairs (0 20, 1 20); skipped 20 without a gold label\n" in result.stderr

    def test_unknown_labels(self, tmp_path):
        result, _ = self.train(tmp_path, ("0", "1"), "--map-labels", "0=no,7=seven")
        assert result.stderr == "esim-fast: --map-labels 7=seven: no pair has the label 7\n"

    @pytest.mark.parametrize("labels", [[f"{i / 8:.3f}" for i in range(40)], ["0.5", "1", "1.5", "2", "2.5", "3"]])
    def test_scores_in_place_of_classes(self, tmp_path, labels):
        result, path = self.train(tmp_path, labels)
        assert result.returncode == 2
        said = f"{path}: expected classes, got {len(labels)} scores, such as 0."
        assert said in result.stderr
        assert result.stderr.endswith("use --task regression, or put the scores into bins\n")

    @pytest.mark.parametrize("labels", [("0", "0.5", "1"), ("0", "1", "2", "3", "4", "5"), ("1", "2.0", "3.00")])
    def test_numbers_that_are_classes(self, tmp_path, labels):
        assert self.train(tmp_path, labels)[0].returncode == 0

    def test_names_that_differ_by_case(self, tmp_path):
        labels = ("neutral", "Neutral", "contradictory")
        result, path = self.train(tmp_path, labels)
        assert result.returncode == 2
        said = f"{path}: expected labels that differ by more than case, got 'Neutral' and 'neutral'; merge them"
        assert result.stderr.startswith(f"esim-fast: {said} with --map-labels Neutral=neutral")
        result, _ = self.train(tmp_path, labels, "--map-labels", "Neutral=neutral, contradictory=contradiction")
        assert f"{path}: 60 pairs (contradiction 20, neutral 40)\n" in result.stderr
        assert json.loads((tmp_path / "m" / "labels.json").read_text()) == ["contradiction", "neutral"]

    def test_a_label_column_that_is_missing(self, tmp_path):
        path = tmp_path / "pairs.tsv"
        path.write_text("premise\thypothesis\tverdict\na b\tc\t1\n")
        options = ["--train", path, "--dev", path, "--output", tmp_path / "m"]
        assert "name the columns with --columns" in fails("train", *options)


@pytest.mark.parametrize("name", ["afqmc.json", "pairs.parquet", "pairs.tsv.xz", "pairs.csv"])
def test_other_forms(corpus, model, tmp_path, name):
    """The same pairs give the same model in any file form."""
    path = tmp_path / name
    records = [dict(zip(("label", "premise", "hypothesis"), row, strict=True)) for row in TRAIN]
    if name == "afqmc.json":
        path.write_text(json.dumps(records, indent=1))
    elif name == "pairs.parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the extra [hub] is not installed")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    elif name == "pairs.tsv.xz":
        path.write_bytes(lzma.compress(corpus.read_bytes()))
    else:
        path.write_text(corpus.read_text().replace("\t", ";"))
    succeeds(*training(path, tmp_path / "m"))
    for part in ("model.safetensors", "vocabulary.txt", "labels.json"):
        assert (tmp_path / "m" / part).read_bytes() == (model / part).read_bytes()
    assert succeeds("evaluate", model, path) == succeeds("evaluate", model, corpus)


def test_chinese_without_its_tokenizer(tmp_path):
    rows = [(label, "男人在睡觉", f"他睡着了{i}") for i, label in enumerate(("no", "yes") * 3)]
    path = write_tsv(tmp_path / "a.tsv", rows)
    hint = f"{path}: sentences are single words; use --tokenizer characters for Chinese or Japanese\n"
    assert esim_fast(*training(path, tmp_path / "m")).stderr.count(hint) == 2
    assert hint not in esim_fast(*training(path, tmp_path / "n", "--tokenizer", "characters")).stderr

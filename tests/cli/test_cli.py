"""The command line as a user meets it: what it prints, what it leaves behind, and what it says of mistakes."""

import contextlib
import gzip
import importlib.metadata
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch

from esim_fast import ESIM, Classifier, streaming
from esim_fast.cli import main
from esim_fast.data.preparing import in_parts
from tests.sources import AllenNLP, Coetaur0, Notebook

TRAIN = [
    ("entailment", "A man is sleeping.", "A man sleeps."),
    ("contradiction", "A man is sleeping.", "A man runs."),
    ("neutral", "A man is sleeping.", "A man dreams."),
    ("entailment", "Two dogs are running.", "Dogs run."),
    ("contradiction", "Two dogs are running.", "Dogs sleep."),
    ("-", "Two dogs are running.", "Dogs dream."),
]
EXPECTED = "expected premise,hypothesis[,label], by name or number from 1, got '"
SMALL = ["--hidden-size", "8", "--epochs", "2", "--batch-size", "2", "--device", "cpu"]


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def esim_fast(*arguments, stdin="", cwd=None):
    """Runs the command in this process: a new one would import torch each time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if cwd is not None:
            stack.callback(os.chdir, Path.cwd())
            os.chdir(cwd)
        stack.enter_context(
            mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode())))
        )
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse's way out
            code = exit.code
    return Result(code, out.getvalue(), err.getvalue())


def succeeds(*arguments, **options):
    result = esim_fast(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def answers(text):
    """What predict printed, but for the lines of the rows."""
    return [{key: value for key, value in json.loads(line).items() if key != "line"} for line in text.splitlines()]


def fails(*arguments, **options):
    """A user's mistake: exit code 2, one line on stderr, nothing on stdout."""
    result = esim_fast(*arguments, **options)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def write_tsv(path, rows, header=True):
    lines = (["gold_label\tsentence1\tsentence2"] if header else []) + ["\t".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tsv(tmp_path_factory.mktemp("corpus") / "pairs.tsv", TRAIN)


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    succeeds("train", "--train", corpus, "--dev", corpus, "--output", output, *SMALL)
    return output


class TestTrain:
    def test_what_it_leaves_behind(self, model):
        names = {path.name for path in model.iterdir()}
        expected = {"model.safetensors", "config.json", "vocabulary.txt", "labels.json"}
        assert names == expected | {"last", "metrics.jsonl", "curves.png", "checkpoint"}
        assert {path.name for path in (model / "last").iterdir()} == expected
        metrics = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in metrics] == [1, 2]
        assert {"epoch", "train_loss", "dev_accuracy", "seconds"} <= metrics[0].keys()
        assert json.loads((model / "labels.json").read_text()) == ["contradiction", "entailment", "neutral"]

    def test_messages(self, corpus, tmp_path):
        options = ["--train", corpus, "--dev", corpus, "--test", corpus, "--output", tmp_path / "m"]
        result = esim_fast("train", *options, *SMALL)
        assert result.returncode == 0
        assert (
            "5 pairs (contradiction 2, entailment 2, neutral 1); 1 more without a gold label dropped" in result.stderr
        )
        assert "epoch 2/2: train loss" in result.stderr
        assert "\r" not in result.stderr
        test = json.loads((tmp_path / "m" / "test.json").read_text())
        assert test["file"] == str(corpus)
        assert f"test accuracy {test['accuracy']:.2%}\n" in result.stdout
        assert "is done after 2 epochs\n" in esim_fast("train", *options, *SMALL, "--resume").stderr
        options[-1] = tmp_path / "n"
        assert "n: nothing to resume, so a run begins\n" in esim_fast("train", *options, *SMALL, "--resume").stderr
        assert result.stdout.startswith("dev accuracy ")
        assert "test accuracy " in result.stdout

    def test_other_columns(self, corpus, model, tmp_path):
        other = tmp_path / "other.csv"
        other.write_text("id,q,a,y\n" + "".join(f'1,"{p}","{h}",{label}\n' for label, p, h in TRAIN))
        for columns in ("q,a,y", "2,3,4"):
            if columns == "2,3,4":
                other.write_text("".join(other.read_text().splitlines(keepends=True)[1:]))
            options = ["--train", other, "--dev", other, "--columns", columns, "--output", tmp_path / columns]
            succeeds("train", *options, *SMALL)
            for name in ("model.safetensors", "vocabulary.txt", "labels.json"):
                assert (tmp_path / columns / name).read_bytes() == (model / name).read_bytes()
            assert succeeds("evaluate", model, other, "--columns", columns) == succeeds("evaluate", model, corpus)
            predicted = succeeds("predict", model, other, "--columns", columns[:3])
            assert answers(predicted) == answers(succeeds("predict", model, corpus))

    def test_bad_rows_are_listed_and_left_out(self, corpus, model, tmp_path):
        bad = tmp_path / "bad.tsv"
        bad.write_text(corpus.read_text() + "neutral\tonly one\n")
        dev = tmp_path / "dev.tsv"
        dev.write_text(corpus.read_text() + "maybe\tone\ttwo\n")
        options = ["train", "--train", bad, "--dev", dev, *SMALL, "--output", tmp_path / "m"]
        assert "bad.tsv:8: expected 3 columns, got 2" in fails(*options)
        result = esim_fast(*options, "--skip-bad-rows")
        assert result.returncode == 0
        assert f"{bad}: 5 pairs" in result.stderr
        assert f"1 bad row left out:\n{bad}:8: expected 3 columns, got 2\n" in result.stderr
        assert f"{dev}:8: expected a label among contradiction, entailment, neutral, got 'maybe'\n" in result.stderr
        assert (tmp_path / "m" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
        others = write_tsv(tmp_path / "others.tsv", [("maybe", "one", "two")])
        assert "others.tsv: expected labels among contradiction, entailment, neutral, got none" in fails(
            "evaluate", model, others, "--skip-bad-rows"
        )
        options = ["train", "--train", bad, "--dev", others, *SMALL, "--output", tmp_path / "n", "--skip-bad-rows"]
        assert "others.tsv: expected labels among" in fails(*options)
        for file, line in ((bad, "expected 3 columns"), (dev, "expected a label among")):
            assert line in fails("evaluate", model, file)
            result = esim_fast("evaluate", model, file, "--skip-bad-rows")
            assert line in result.stderr
            assert result.stdout == succeeds("evaluate", model, corpus)
        result = esim_fast("predict", model, bad)
        assert result.stdout == succeeds("predict", model, corpus)
        assert result.stderr == f"{bad}:8: expected 3 columns, got 2\n{bad}: 1 bad row left out\n"

    def test_extending_the_vocabulary(self, corpus, tmp_path):
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
        assert new_words("--extend-vocabulary", more, dev) == ["zebra", "yak"]  # the more frequent first
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
        # Labels are not looked at for that, not even whether there are any.
        dev.write_text(dev.read_text().replace("neutral\tA zebra", "-\tA zebra"))
        assert new_words("--extend-vocabulary") == ["zebra"]
        options = options[:5] + SMALL
        assert "--extend-vocabulary needs --vectors" in fails(*options, "--extend-vocabulary", cwd=tmp_path)

    def test_batches_of_words(self, corpus, tmp_path):
        options = ["train", "--train", corpus, "--dev", corpus, "--hidden-size", "8", "--epochs", "1"]
        succeeds(*options, "--max-tokens", "20", "--output", tmp_path / "m")
        assert "not allowed with argument" in fails(*options, "--max-tokens", "20", "--batch-size", "2")

    def test_prepared_files(self, corpus, tmp_path, cache):
        options = ["train", "--train", corpus, "--dev", corpus, *SMALL]
        succeeds(*options, "--cache", tmp_path / "here", "--output", tmp_path / "a")
        (kept,) = (tmp_path / "here").glob("*.safetensors")
        used = kept.stat().st_mtime_ns
        succeeds(*options, "--cache", tmp_path / "here", "--output", tmp_path / "b")
        assert kept.stat().st_mtime_ns == used
        succeeds(*options, "--output", tmp_path / "c")
        assert list(cache.glob("pairs-*.safetensors"))
        before = set(cache.iterdir())
        other = write_tsv(tmp_path / "other.tsv", TRAIN)
        succeeds("train", "--train", other, "--dev", other, *SMALL, "--no-cache", "--output", tmp_path / "d")
        assert set(cache.iterdir()) == before
        weights = {(tmp_path / run / "model.safetensors").read_bytes() for run in "abcd"}
        assert len(weights) == 1

    def test_a_folder_with_columns_of_other_names(self, tmp_path):
        for part in ("train", "dev", "test"):
            rows = "".join(f"{p}\t{h}\t{label}\n" for label, p, h in TRAIN)
            (tmp_path / f"{part}.tsv").write_text("q\ta\ty\n" + rows)
        options = ["train", "--data", tmp_path, "--columns", "q,a,y", *SMALL]
        assert "test accuracy" in succeeds(*options, "--output", tmp_path / "m")
        (tmp_path / "test.tsv").write_text("q\ta\nb\tc\n")
        result = esim_fast(*options, "--output", tmp_path / "n")
        assert f"{tmp_path / 'test.tsv'}: not used, because it has no labels\n" in result.stderr

    def test_a_tokenizer_of_ones_own(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", [*sys.path])
        (tmp_path / "own_words.py").write_text("def split(text):\n    return text.upper().split()\n")
        options = ["--train", corpus, "--dev", corpus, "--tokenizer", "own_words:split", "--output", "m", *SMALL]
        succeeds("train", *options, cwd=tmp_path)
        assert "SLEEPING." in (tmp_path / "m" / "vocabulary.txt").read_text().split()
        assert "a tokenizer of somebody's own, own_words:split" in fails("evaluate", "m", corpus, cwd=tmp_path)
        own = ["--tokenizer", "own_words:split"]
        succeeds("evaluate", "m", corpus, *own, cwd=tmp_path)
        succeeds("predict", "m", corpus, *own, cwd=tmp_path)
        assert "tokenizer own_words:join: AttributeError: module" in fails(
            "train", "--tokenizer", "own_words:join", cwd=tmp_path
        )
        assert "expected nltk, nltk-cased, nltk-punkt, whitespace, characters, coetaur0 or module:function" in fails(
            "train", "--tokenizer", "spacy"
        )

    def test_a_header_that_nobody_named(self, tmp_path):
        rows = [("y", "text one", "text two")] + [("yes", "a", "b"), ("no", "c", "d")] * 60
        path = write_tsv(tmp_path / "a.tsv", rows, header=False)
        message = fails("train", "--train", path, "--dev", path, "--output", tmp_path / "m")
        assert f"{path}:1: no other row has the label 'y'; if this row is a header, name its columns" in message

    def test_sentences_where_labels_should_be(self, tmp_path):
        path = write_tsv(tmp_path / "a.tsv", [(f"one {i}", f"two {i}", "0") for i in range(1001)], header=False)
        message = fails("train", "--train", path, "--dev", path, "--output", tmp_path / "m")
        assert "expected 2 to 1000 labels, got 1001, such as 'one 0' (columns are label, premise" in message
        assert "name them with --columns" in message

    def test_columns_that_stand_otherwise(self, corpus, model, tmp_path):
        rotated = write_tsv(tmp_path / "a.tsv", [(p, h, label) for label, p, h in TRAIN] * 5, header=False)
        several = write_tsv(
            tmp_path / "b.tsv", [(f"{p} {i}", h, "x") for _, p, h in TRAIN for i in range(9)], header=False
        )
        message = fails("train", "--train", several, "--dev", several, "--output", tmp_path / "m")
        assert "expected labels that recur, got 18 for 54 pairs, such as 'A man is sleeping. 0'" in message
        assert "name them with --columns" in message
        message = fails("predict", model, rotated)
        assert f"{rotated}:1: expected a label of the model (contradiction, entailment, neutral), a premise" in message
        assert "got 'A man is sleeping.' first; if the columns stand otherwise, name them with --columns" in message
        succeeds("predict", model, rotated, "--columns", "1,2")

    def test_a_folder_whose_test_file_has_no_labels(self, tmp_path):
        for part in ("train", "dev"):
            write_tsv(tmp_path / f"{part}.tsv", TRAIN)
        (tmp_path / "test.tsv").write_text("id\tquestion1\tquestion2\n0\tA zebra.\tb\n")
        vectors = tmp_path / "glove.vec"
        vectors.write_text("zebra 1 2\n")
        extend = ["--vectors", vectors, "--extend-vocabulary", "--output", tmp_path / "n"]
        succeeds("train", "--data", tmp_path, *extend, *SMALL)
        assert "zebra" in (tmp_path / "n" / "vocabulary.txt").read_text().split()
        result = esim_fast("train", "--data", tmp_path, "--output", tmp_path / "m", *SMALL)
        assert result.returncode == 0, result.stderr
        assert f"{tmp_path / 'test.tsv'}: not used, because it has no labels\n" in result.stderr
        assert "test accuracy" not in result.stdout

    def test_a_folder_of_official_files(self, tmp_path):
        data = tmp_path / "snli_1.0"
        data.mkdir()
        for part in ("train", "dev", "test"):
            records = [{"gold_label": a, "sentence1": b, "sentence2": c} for a, b, c in TRAIN]
            (data / f"snli_1.0_{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
            write_tsv(data / f"snli_1.0_{part}.txt", TRAIN)
        assert "test accuracy" in succeeds("train", "--data", data, "--output", tmp_path / "m", *SMALL)

    def test_the_readmes_command_for_the_full_corpus(self, tmp_path):
        """On miniature files with exactly the official names, columns and rows."""
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        (command,) = [line for line in readme.splitlines() if line.startswith("esim-fast train --data snli_1.0 ")]
        columns = ["gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse"]
        columns += ["sentence2_parse", "sentence1", "sentence2", "captionID", "pairID"]
        columns += [f"label{i}" for i in range(1, 6)]
        folder = tmp_path / "snli_1.0"
        folder.mkdir()
        (folder / "README.txt").write_text("This is version 1.0 of the SNLI corpus.\n")
        for part, annotators in (("train", 1), ("dev", 5), ("test", 5)):
            table, records = ["\t".join(columns)], []
            for number, (label, p, h) in enumerate(TRAIN * 3):
                parses = [f"( {p} )", f"( {h} )", f"(ROOT (S {p}))", f"(ROOT (S {h}))"]
                ids = [f"{number}.jpg#0", f"{number}.jpg#0r1{label[0]}"]
                given = [label if label != "-" else ("neutral", "entailment")[i % 2] for i in range(annotators)]
                table.append("\t".join([label, *parses, p, h, *ids, *given, *[""] * (5 - annotators)]))
                values = dict(zip(columns[:9], [label, *parses, p, h, *ids], strict=True))
                records.append(json.dumps({"annotator_labels": given, **values}))
            (folder / f"snli_1.0_{part}.txt").write_text("\n".join(table) + "\n")
            (folder / f"snli_1.0_{part}.jsonl").write_text("\n".join(records) + "\n")
        generator = random.Random(0)
        words = [",", ".", "the", "A", "man", "is", "sleeping", "dogs", ". . .", "at name@domain.com", "0.5"]
        rows = [f"{word} " + " ".join(f"{generator.gauss(0, 0.4):.5g}" for _ in range(300)) for word in words]
        (tmp_path / "glove.840B.300d.txt").write_text("\n".join(rows) + "\n")
        result = esim_fast(*shlex.split(command)[1:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (
            result.stderr.count("15 pairs (contradiction 6, entailment 6, neutral 3); 3 more without a gold label") == 3
        )
        assert re.search(r"glove\.840B\.300d\.txt: vectors for 6 of 1\d words\n", result.stderr)
        assert "test accuracy " in result.stdout
        (model,) = tmp_path.glob("*/model.safetensors")
        report = json.loads(succeeds("evaluate", model.parent, folder / "snli_1.0_test.jsonl"))
        assert f"test accuracy {report['accuracy']:.2%}\n" in result.stdout
        assert json.loads((model.parent / "config.json").read_text())["embedding_dim"] == 300

    def test_vectors(self, corpus, tmp_path):
        vectors = tmp_path / "glove.txt"
        vectors.write_text("man 0.1 0.2 0.3\nDogs 1 2 3\nzebra 1 1 1\n")
        options = ["--train", corpus, "--dev", corpus, "--vectors", vectors, "--output", tmp_path / "m"]
        result = esim_fast("train", *options, *SMALL)
        assert result.returncode == 0, result.stderr
        assert f"{vectors}: vectors for 2 of " in result.stderr
        assert json.loads((tmp_path / "m" / "config.json").read_text())["embedding_dim"] == 3

    def test_resume(self, corpus, tmp_path):
        def options(epochs):
            small = ["--hidden-size", "8", "--epochs", epochs, "--batch-size", "2", "--device", "cpu"]
            return ["train", "--train", corpus, "--dev", corpus, *small]

        succeeds(*options(3), "--output", tmp_path / "whole")
        succeeds(*options(1), "--output", tmp_path / "parts", "--resume")  # nothing to resume: starts afresh
        succeeds(*options(3), "--output", tmp_path / "parts", "--resume")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        metrics = [
            [json.loads(line) | {"seconds": 0} for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
            for run in ("whole", "parts")
        ]
        assert metrics[0] == metrics[1]

        before = (tmp_path / "parts" / "metrics.jsonl").read_bytes()
        result = esim_fast(*options(3), "--output", tmp_path / "parts", "--resume")
        assert result.returncode == 0
        assert result.stdout.startswith("dev accuracy ")
        assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == before
        message = fails(*options(3), "--lr", "0.1", "--output", tmp_path / "parts", "--resume")
        assert "this run began with --lr 0.0004, not 0.1: resume it with that" in message
        message = fails(*options(3), "--freeze-embedding", "--output", tmp_path / "parts", "--resume")
        assert "this run began without --freeze-embedding: resume it so" in message
        message = fails(*options(3), "--tokenizer", "whitespace", "--output", tmp_path / "parts", "--resume")
        assert "this run began with --tokenizer nltk, not whitespace: resume it with that" in message
        message = fails(*options(3), "--dropout", "0.1", "--output", tmp_path / "parts", "--resume")
        assert "this run began with --dropout 0.5, not 0.1: resume it with that" in message
        assert "already holds a run: resume it (--resume)" in fails(*options(3), "--output", tmp_path / "parts")

    def test_every_knob_is_an_option_and_written_down(self, corpus, tmp_path):
        given = {
            "--epochs": 1,
            "--patience": 7,
            "--batch-size": 3,
            "--accumulate": 2,
            "--lr": 0.002,
            "--warmup-steps": 5,
            "--lr-decay": 0.7,
            "--weight-decay": 0.01,
            "--label-smoothing": 0.1,
            "--ema-decay": 0.9,
            "--max-grad-norm": 3.0,
            "--seed": 11,
            "--precision": "bf16",
        }
        model = {"--hidden-size": 8, "--dropout": 0.25, "--embedding-dropout": 0.1, "--embedding-dim": 6}
        arguments = [
            part for option, value in {**given, **model, "--forget-bias": 0.5}.items() for part in (option, value)
        ]
        options = ["--train", corpus, "--dev", corpus, "--freeze-embedding", "--output", tmp_path / "m"]
        succeeds("train", *options, *arguments)
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        names = {"--lr": "learning_rate", "--max-tokens": "max_tokens"}
        expected = {names.get(option, option[2:].replace("-", "_")): value for option, value in given.items()}
        assert config["training"]["recipe"] == {**expected, "max_tokens": None}
        assert config["training"]["forget_bias"] == 0.5
        assert config["training"]["files"]["train"] == [str(corpus)]
        for option, value in model.items():
            assert config[option[2:].replace("-", "_")] == value
        assert config["freeze_embedding"] is True
        help_text = succeeds("train", "--help")
        for option in ("--max-tokens", "--preset", "--seeds", "--checkpoint-steps", *given, *model):
            assert option in help_text

    def test_presets(self, corpus, tmp_path):
        def trained_with(*options):
            output = tmp_path / str(len(list(tmp_path.iterdir())))
            succeeds("train", "--hidden-size", 8, "--epochs", 1, "--output", output, *options)
            config = json.loads((output / "config.json").read_text())
            return config, config["training"]["recipe"]

        files = ["--train", corpus, "--dev", corpus]
        config, recipe = trained_with(*files)
        paper = {
            "learning_rate": 4e-4,
            "batch_size": 32,
            "max_grad_norm": 10.0,
            "lr_decay": 0.5,
            "ema_decay": 0.0,
            "warmup_steps": 0,
        }
        assert recipe | paper == recipe
        assert (config["dropout"], config["embedding_dropout"], config["embedding_dim"]) == (0.5, 0.5, 300)
        config, recipe = trained_with(*files, "--preset", "small-data", "--max-grad-norm", 1)
        assert (recipe["learning_rate"], recipe["ema_decay"], recipe["max_grad_norm"]) == (1e-3, 0.999, 1.0)
        assert (config["dropout"], config["embedding_dropout"]) == (0.5, 0.2)
        _, recipe = trained_with(*files, "--preset", "batch-512", "--patience", 0)
        assert (recipe["batch_size"], recipe["learning_rate"], recipe["patience"]) == (512, 1.6e-3, None)
        assert recipe["warmup_steps"] > 0

    def test_seeds(self, corpus, tmp_path):
        options = ["train", "--train", corpus, "--dev", corpus, "--test", corpus, *SMALL, "--output", tmp_path / "m"]
        output = succeeds(*options, "--seeds", 3, "--seed", 5)
        accuracies = []
        for seed in (5, 6, 7):
            succeeds(*options[:-1], tmp_path / f"{seed}", "--seed", seed)
            for name in ("model.safetensors", "last/model.safetensors"):
                one = (tmp_path / "m" / f"seed-{seed}" / name).read_bytes()
                assert one == (tmp_path / f"{seed}" / name).read_bytes()
            lines = (tmp_path / f"{seed}" / "metrics.jsonl").read_text().splitlines()
            accuracies.append(max(json.loads(line)["dev_accuracy"] for line in lines))
        summary = json.loads((tmp_path / "m" / "seeds.json").read_text())
        assert summary["seeds"] == [5, 6, 7]
        assert summary["dev"]["accuracies"] == summary["test"]["accuracies"] == accuracies  # of the same file
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        assert summary["dev"]["mean"] == pytest.approx(mean)
        assert summary["dev"]["standard_deviation"] == pytest.approx(deviation)
        assert f"dev accuracy {mean:.2%} ± {deviation:.2%} (standard deviation) of 3 seeds\n" in output
        best = 5 + accuracies.index(max(accuracies))
        assert f"the best of them, seed {best}, is in {tmp_path / 'm'}\n" in output
        expected = (tmp_path / f"{best}" / "model.safetensors").read_bytes()
        assert (tmp_path / "m" / "model.safetensors").read_bytes() == expected
        assert "accuracy" in succeeds("evaluate", tmp_path / "m", corpus)
        again = succeeds(*options, "--seeds", 3, "--seed", 5, "--resume")
        assert [line for line in again.splitlines() if "seeds" in line] == [
            line for line in output.splitlines() if "seeds" in line
        ]
        (tmp_path / "m" / "model.safetensors").unlink()  # as if it had been killed just before the end
        assert "seeds" in succeeds(*options, "--seeds", 3, "--seed", 5, "--resume")
        single = [*options[:-1], tmp_path / "5"]
        assert "5 holds a run of a single seed: --seeds needs" in fails(*single, "--seeds", 2, "--resume")
        for unasked in (["--seeds", 3, "--seed", 5], ["--seeds", 3, "--seed", 8], []):
            assert "m already holds runs" in fails(*options, *unasked) or not unasked
        assert "m: already holds a model" in fails(*options)

    def test_several_training_files(self, corpus, model, tmp_path):
        rows = write_tsv(tmp_path / "more.tsv", [("neutral", "A zebra sleeps.", "A zebra dreams."), ("-", "a", "b")])
        options = ["train", "--train", corpus, rows, "--dev", corpus, *SMALL, "--output", tmp_path / "m"]
        result = esim_fast(*options)
        assert result.returncode == 0, result.stderr
        assert f"{rows}: 1 pairs (neutral 1); 1 more without a gold label dropped\n" in result.stderr
        whole = write_tsv(tmp_path / "whole.tsv", [*TRAIN, ("neutral", "A zebra sleeps.", "A zebra dreams.")])
        succeeds("train", "--train", whole, "--dev", corpus, *SMALL, "--output", tmp_path / "n")
        for name in ("model.safetensors", "vocabulary.txt"):
            assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()
        rows.write_text(rows.read_text() + "neutral\tonly one\n")
        assert "more.tsv:4: expected 3 columns, got 2" in fails(*options[:-1], tmp_path / "o")

    def test_a_batch_that_breaks_is_named_by_its_lines(self, corpus, tmp_path):
        options = ["train", "--train", corpus, corpus, "--dev", corpus, *SMALL, "--output", tmp_path / "m"]
        message = esim_fast(*options, "--lr", "1e38").stderr.splitlines()[-1]
        places = re.search(r"its pairs are (.*); the last checkpoint is kept$", message)[1]
        lines = [int(line) for part in places.split("; ") for line in part.removeprefix(f"{corpus}:").split(", ")]
        assert len(lines) == 2
        assert set(lines) <= {2, 3, 4, 5, 6}

    def test_resuming_with_other_vectors(self, corpus, tmp_path):
        vectors = tmp_path / "glove.txt"
        vectors.write_text("man 1 2 3\nis 2 3 4\n")
        options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", "--resume", *SMALL]
        succeeds(*options, "--vectors", vectors)
        succeeds(*options, "--vectors", vectors)
        assert "this run began with other word vectors" in fails(*options, "--embedding-dim", 3)
        for content in ("man 1 2 4\nis 2 3 4\n", "man 1 2\nis 2 3\n"):
            vectors.write_text(content)
            assert "this run began with other word vectors" in fails(*options, "--vectors", vectors)

    def test_a_run_that_ends_with_weights_that_are_no_numbers(self, corpus, tmp_path):
        options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", "--hidden-size", 8]
        result = esim_fast(*options, "--epochs", 1, "--batch-size", 8, "--lr", "1e38")
        assert result.returncode == 2
        assert "epoch 1: the loss on dev is nan; a lower learning rate (--lr) may help; the last" in result.stderr
        assert not (tmp_path / "m" / "model.safetensors").exists()
        assert (tmp_path / "m" / "metrics.jsonl").read_text() == ""

    def test_resuming_with_other_data(self, corpus, tmp_path):
        data = write_tsv(tmp_path / "pairs.tsv", TRAIN)
        options = ["train", "--train", data, "--dev", corpus, "--output", tmp_path / "m", "--resume", *SMALL]
        succeeds(*options)
        before = (tmp_path / "m" / "model.safetensors").read_bytes()
        # The same number of words and pairs, but other ones: ids would silently mean something else.
        write_tsv(data, [(label, p.replace("man", "boy"), h.replace("man", "boy")) for label, p, h in TRAIN])
        assert "this run began with other training or dev pairs" in fails(*options)
        write_tsv(data, [*TRAIN, ("neutral", "Many new words here.", "No.")])
        assert "this run began with other training or dev pairs" in fails(*options)
        assert (tmp_path / "m" / "model.safetensors").read_bytes() == before

    def test_resuming_never_replaces_a_model_without_checkpoint(self, corpus, model, tmp_path):
        shutil.copytree(model, tmp_path / "m")
        (tmp_path / "m" / "checkpoint" / "last.pt").unlink()
        options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", *SMALL]
        for resume in ([], ["--resume"]):
            assert "already holds a model, and no checkpoint to go on from" in fails(*options, *resume)

    def test_a_lost_line_of_metrics_comes_back(self, corpus, model, tmp_path):
        shutil.copytree(model, tmp_path / "m")
        (tmp_path / "m" / "metrics.jsonl").write_text("")
        options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", *SMALL]
        succeeds(*options, "--resume")
        assert (tmp_path / "m" / "metrics.jsonl").read_bytes() == (model / "metrics.jsonl").read_bytes()

    def test_a_damaged_checkpoint(self, corpus, model, tmp_path):
        shutil.copytree(model, tmp_path / "m")
        path = tmp_path / "m" / "checkpoint" / "last.pt"
        path.write_bytes(path.read_bytes()[:-100])
        options = ["train", "--train", corpus, "--dev", corpus, "--output", tmp_path / "m", *SMALL]
        assert "last.pt: not a checkpoint of esim-fast" in fails(*options, "--resume")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--train", "{corpus}"], "--train needs --dev as well"),
            (["--dev", "{corpus}"], "--dev needs --train as well"),
            (["--data", ".", "--train", "{corpus}"], "--data and --train exclude each other"),
            (["--data", "{tmp}"], "expected a file with train in its name"),
            (["--data", "nowhere"], "nowhere: no such directory"),
            (["--train", "nowhere.tsv", "--dev", "{corpus}"], "nowhere.tsv: No such file or directory"),
            (["--train", "{corpus}", "--dev", "{corpus}", "--vectors", "no.txt"], "no.txt: No such file"),
            (["--epochs", "1", "--vectors", "no.txt"], "no.txt: No such file"),  # of the bundled sample
            (["--embedding-dim", "5", "--vectors", "no.txt"], "--embedding-dim and --vectors exclude each other"),
            (["--accumulate", "0"], "argument --accumulate: expected an integer from 1 to 1000000, got '0'"),
            (["--warmup-steps", "-1"], "argument --warmup-steps: expected an integer from 0 to 1000000, got '-1'"),
            (["--patience", "x"], "argument --patience: expected an integer from 0 to 1000000, got 'x'"),
            (["--ema-decay", "1"], "argument --ema-decay: expected a number from 0 to below 1, got '1'"),
            (["--lr-decay", "2"], "argument --lr-decay: expected a number above 0, at most 1, got '2'"),
            (["--weight-decay", "-1"], "argument --weight-decay: expected a number from 0, got '-1'"),
            (["--preset", "large"], "argument --preset: invalid choice: 'large'"),
            (["--seed", str(2**63 - 2), "--seeds", "3"], "--seeds 3: the last seed would be above 2**63 - 1"),
            (["--epochs", "two"], "argument --epochs: expected an integer from 1 to 1000000, got 'two'"),
            (["--epochs", "0"], "argument --epochs: expected an integer from 1 to 1000000, got '0'"),
            (["--batch-size", "1" + 30 * "0"], "argument --batch-size: expected an integer from 1 to 1000000"),
            (["--lr", "-1"], "argument --lr: expected a positive number, got '-1'"),
            (["--lr", "nan"], "argument --lr: expected a positive number, got 'nan'"),
            (["--hidden-size", "1000000000"], "argument --hidden-size: expected an integer from 1 to 65536"),
            (["--dropout", "1"], "argument --dropout: expected a number from 0 to below 1, got '1'"),
            (["--seed", "18446744073709551616"], "argument --seed: expected an integer from 0 to 2**63 - 1"),
            (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU"),
            (["--precision", "int8"], "argument --precision: invalid choice"),
            (["--unheard-of"], "unrecognized arguments: --unheard-of (see esim-fast train --help)"),
            (["--epoch", "3"], "unrecognized arguments: --epoch 3"),  # no guessing at abbreviations
        ],
    )
    def test_mistakes(self, corpus, tmp_path, options, message):
        options = [option.format(corpus=corpus, tmp=tmp_path) for option in options]
        assert message in fails("train", *options, cwd=tmp_path)
        assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([("entailment", "one", "two"), ("entailment", "only one")], "bad.tsv:3: expected 3 columns, got 2"),
            ([("entailment", "one", "two")], "expected 2 to 1000 labels, got only 'entailment'"),
            ([("-", "one", "two")], "bad.tsv: expected sentence pairs, got only 1 labeled -"),
            ([], "bad.tsv: expected sentence pairs, got none"),
        ],
    )
    def test_bad_corpora(self, corpus, tmp_path, rows, message):
        bad = write_tsv(tmp_path / "bad.tsv", rows)
        assert message in fails("train", "--train", bad, "--dev", corpus, "--output", tmp_path / "m", *SMALL)
        assert not (tmp_path / "m").exists()

    def test_an_unknown_label_in_dev(self, corpus, tmp_path):
        dev = write_tsv(tmp_path / "dev.tsv", [*TRAIN, ("maybe", "one", "two")])
        message = fails("train", "--train", corpus, "--dev", dev, "--output", tmp_path / "m", *SMALL)
        assert "dev.tsv:8: expected a label among contradiction, entailment, neutral, got 'maybe'" in message

    def test_an_output_that_cannot_be_written(self, corpus, tmp_path):
        (tmp_path / "file").write_text("")
        options = ["--train", corpus, "--dev", corpus, "--output"]
        assert "file: not a directory" in fails("train", *options, tmp_path / "file", *SMALL)
        assert "file/m/checkpoint: Not a directory" in fails("train", *options, tmp_path / "file" / "m", *SMALL)


class TestEvaluate:
    def test_report(self, model, corpus):
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

    def test_agrees_with_predict(self, model, corpus):
        report = json.loads(succeeds("evaluate", model, corpus))
        lines = succeeds("predict", model, corpus).splitlines()
        labeled = [(json.loads(line)["label"], gold) for line, (gold, *_) in zip(lines, TRAIN, strict=True)]
        assert report["accuracy"] == sum(label == gold for label, gold in labeled) / 5

    def test_mistakes(self, model, corpus, tmp_path):
        assert "no such model directory" in fails("evaluate", tmp_path / "nowhere", corpus)
        assert "config.json is missing" in fails("evaluate", tmp_path, corpus)
        other = write_tsv(tmp_path / "other.tsv", [("paraphrase", "a", "b")])
        assert "other.tsv:2: expected a label among" in fails("evaluate", model, other)


class TestPredict:
    def test_one_pair(self, model):
        (line,) = succeeds("predict", model, "--premise", "A man sleeps.", "--hypothesis", "A man runs.").splitlines()
        answer = json.loads(line)
        assert answer["premise"] == "A man sleeps."
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)

    def test_files_and_stdin_give_the_same(self, model, corpus, tmp_path):
        def answers(*arguments, **options):
            lines = [json.loads(line) for line in succeeds("predict", model, *arguments, **options).splitlines()]
            return [line.pop("line") for line in lines], lines

        numbers, expected = answers(corpus)
        assert numbers == [2, 3, 4, 5, 6, 7]  # the first is the header
        bare = write_tsv(tmp_path / "bare.tsv", [row[1:] for row in TRAIN], header=False)
        records = [{"premise": p, "hypothesis": h} for _, p, h in TRAIN]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        from_one = ([1, 2, 3, 4, 5, 6], expected)
        assert answers(bare) == from_one
        assert answers(tmp_path / "pairs.jsonl") == from_one
        assert answers("-", stdin=bare.read_text()) == from_one
        assert answers("-", stdin=(tmp_path / "pairs.jsonl").read_text()) == from_one

    def test_the_order_of_many(self, model, tmp_path):
        rows = [(f"a man sleeps {'very ' * (i % 7)}well", f"number {i}") for i in range(5000)]
        path = write_tsv(tmp_path / "many.tsv", rows, header=False)
        lines = [json.loads(line) for line in succeeds("predict", model, path).splitlines()]
        assert [(line["line"], line["premise"], line["hypothesis"]) for line in lines] == [
            (i + 1, *row) for i, row in enumerate(rows)
        ]
        _, expected = Classifier.from_pretrained(model).predict(rows[2040:2060])
        for line, row in zip(lines[2040:2060], expected.tolist(), strict=True):
            assert list(line["probabilities"].values()) == pytest.approx(row, abs=2e-6)

    def test_what_is_printed_is_what_json_makes_of_it(self, model, tmp_path):
        rows = [('say "hi" \\ 100% {x}', "tab\u2028 é 😀"), ("", "\x7f")]
        path = tmp_path / "odd.jsonl"
        path.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in rows))
        for line, (premise, hypothesis) in zip(succeeds("predict", model, path).split("\n"), rows, strict=False):
            answer = json.loads(line)
            assert (answer["premise"], answer["hypothesis"]) == (premise, hypothesis)
            assert line.startswith(json.dumps({"line": answer["line"], "premise": premise}, ensure_ascii=False)[:-1])

    def test_precision(self, model):
        pair = "--premise", "A man sleeps.", "--hypothesis", "A man runs."
        exact, rounded = (
            json.loads(succeeds("predict", model, *pair, "--precision", precision)) for precision in ("fp32", "bf16")
        )
        assert exact["probabilities"] != rounded["probabilities"]
        assert list(exact["probabilities"].values()) == pytest.approx(list(rounded["probabilities"].values()), abs=0.01)
        if not torch.cuda.is_available():
            message = "esim-fast: --precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU"
            assert fails("predict", model, *pair, "--precision", "fp16") == message

    def test_words_of_any_language_and_none(self, model):
        pairs = "一个男人在睡觉。\tEin Mann schläft.\n\t\n<pad> <pad>\t<unk>\n"
        answers = [json.loads(line) for line in succeeds("predict", model, "-", stdin=pairs).splitlines()]
        assert answers[0]["premise"] == "一个男人在睡觉。"
        assert all(answer["label"] in ("contradiction", "entailment", "neutral") for answer in answers)

    def test_bad_rows_are_reported_and_left_out(self, model, tmp_path):
        path = tmp_path / "rows.tsv"
        path.write_bytes(b"a\tb\nonly one\nc\td\n\xff\tx\ne\tf\n")
        for name, source in ((path, path), ("stdin", "-")):
            result = esim_fast("predict", model, source, stdin=path.read_bytes())
            assert result.returncode == 0
            assert [json.loads(line)["line"] for line in result.stdout.splitlines()] == [1, 3, 5]
            assert result.stderr == (
                f"{name}:2: expected 2 columns, got 1\n{name}:4: not valid UTF-8 at byte 1\n"
                f"{name}: 2 bad rows left out\n"
            )

    def test_mostly_bad_rows(self, model, tmp_path):
        """The first row says how many columns there are, and may itself be the bad one."""
        path = write_tsv(tmp_path / "rows.tsv", [("a man", "only two"), *TRAIN], header=False)
        result = esim_fast("predict", model, path)
        assert (result.returncode, len(result.stdout.splitlines())) == (2, 1)
        assert result.stderr.endswith(f"{path}: 6 bad rows, and 1 that can be read: are the columns as expected?\n")

    def test_stopping_at_a_bad_row_loses_nothing_before_it(self, model):
        result = esim_fast("predict", model, "-", "--stop-at-bad-row", stdin="a\tb\nc\td\nonly one\ne\tf\n")
        assert result.returncode == 2
        assert len(result.stdout.splitlines()) == 2
        assert result.stderr == "esim-fast: stdin:3: expected 2 columns, got 1\n"

    def test_a_file_that_ends_early(self, model, tmp_path):
        path = tmp_path / "cut.tsv.gz"
        whole = gzip.compress("".join(f"a man sleeps {random.random()}\tb\n" for _ in range(3000)).encode())
        path.write_bytes(whole[: len(whole) // 2])
        result = esim_fast("predict", model, path)
        assert result.returncode == 2
        assert len(result.stdout.splitlines()) > 1000
        assert re.fullmatch(rf"esim-fast: {re.escape(str(path))}:\d+: Compressed file ended .*\n", result.stderr)

    def test_a_tokenizer_that_fails(self, corpus, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "fussy.py").write_text("def split(text):\n    return text.split()[0:9 // ('bad' not in text)]\n")
        options = "--tokenizer", "fussy:split"
        output = tmp_path / "model"
        succeeds("train", "--train", corpus, "--dev", corpus, "--output", output, *SMALL, *options)
        result = esim_fast("predict", output, "-", *options, stdin="good one\tb\nshort\nbad one\tb\n")
        assert result.returncode == 2
        assert json.loads(result.stdout)["line"] == 1
        message = "tokenizer fussy:split: ZeroDivisionError: integer division or modulo by zero"
        assert result.stderr == f"stdin:2: expected 2 columns, got 1\nesim-fast: stdin:3: {message}\n"
        pair = "--premise", "bad", "--hypothesis", "b"
        assert fails("predict", output, *pair, *options) == f"esim-fast: {message}"
        assert fails("explain", output, *pair, "-o", tmp_path / "a.json", *options) == f"esim-fast: {message}"

    def test_numbers_that_are_none(self, model, tmp_path):
        found = Classifier.from_pretrained(model, device="cpu")
        with torch.no_grad():
            found.net.linear.mlp[1].bias.fill_(1e3)  # its units give 1, all of them
            found.net.linear.mlp[3].weight.fill_(3e38)
        found.save_pretrained(tmp_path / "model")
        result = esim_fast("predict", tmp_path / "model", "-", stdin="a man sleeps\ta man runs\n")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == "esim-fast: stdin:1: the network gives something else than finite numbers\n"
        pair = "--premise", "a man sleeps", "--hypothesis", "a man runs"
        assert "something else than finite numbers" in fails("predict", tmp_path / "model", *pair)

    def test_long_rows_take_turns(self, model, tmp_path):
        """Rows of many words come to the network in small batches."""
        path = write_tsv(tmp_path / "long.tsv", [("man " * 20_000, "man")] * 3, header=False)
        sizes = []
        forward = ESIM.forward
        with mock.patch.object(ESIM, "forward", lambda net, pairs: sizes.append(len(pairs)) or forward(net, pairs)):
            assert len(succeeds("predict", model, path, "--device", "cpu").splitlines()) == 3
        assert sizes == [1, 1, 1]

    def test_a_closed_stdout(self, model, corpus):
        for source in ([corpus], ["--premise", "a", "--hypothesis", "b"]):
            command = shlex.join([sys.executable, "-m", "esim_fast", "predict", str(model), *map(str, source)])
            result = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
            assert "Traceback" not in result.stderr

    def test_ctrl_c_twice(self, model, tmp_path):
        """It ends at once, and so do the processes that it started."""
        path = write_tsv(tmp_path / "many.tsv", [("a man sleeps " * 20, "a man runs")] * 60_000, header=False)
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code += (
            "from esim_fast import cli, streaming; streaming.processors = lambda: 2; sys.exit(cli.main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", code, "predict", model, path, "--device", "cpu"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            process.stdout.readline()
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)
            process.communicate(timeout=60)
        for _ in range(100):
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("processes are left")

    def test_answers_come_as_soon_as_the_pairs(self, model):
        """Whoever writes pairs may wait for each answer before writing the next."""
        command = [sys.executable, "-m", "esim_fast", "predict", model, "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            for number in (1, 2, 3):
                process.stdin.write(b"a man sleeps\ta man runs\n")
                assert json.loads(process.stdout.readline())["line"] == number
            process.stdin.close()
            assert process.stdout.read() == b""
            assert process.wait(60) == 0

    def test_other_processes_give_the_same(self, model, tmp_path):
        rows = [(f"a man sleeps {i}", f"number {i}") for i in range(9000)] + [("only one",)]
        path = write_tsv(tmp_path / "many.tsv", rows, header=False)

        def on_a_gpu(job, records, as_they_come):  # the others split and look up words, and the network is here
            yield from map(job.answer, in_parts(job.encode, records, 2))

        with mock.patch.object(streaming, "processors", return_value=1):
            alone = esim_fast("predict", model, path, "--device", "cpu")
        assert alone.stderr == f"{path}:9001: expected 2 columns, got 1\n{path}: 1 bad row left out\n"
        expected = [json.loads(line) for line in alone.stdout.splitlines()]
        for change in ({"processors": lambda: 2}, {"_answered": on_a_gpu}):
            with mock.patch.multiple(streaming, **change):
                found = esim_fast("predict", model, path, "--device", "cpu")
            assert found.stderr == alone.stderr
            for one, other in zip(expected, map(json.loads, found.stdout.splitlines()), strict=True):
                probabilities = other["probabilities"]
                assert {**other, "probabilities": None} == {**one, "probabilities": None}
                # An LSTM's sums come in another order on another number of threads.
                assert list(probabilities.values()) == pytest.approx(list(one["probabilities"].values()), abs=3e-6)

    def test_memory_does_not_grow_with_the_number_of_pairs(self, model, tmp_path):
        """Peak resident memory, of this process and of its workers, for 10,000 and for 30,000 rows of 5,000 bytes."""
        code = (
            "import resource, sys; from esim_fast.cli import main; code = main(sys.argv[1:]); "
            "peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]; "
            "print(code, *peaks, file=sys.stderr)"
        )
        peaks = []
        for count in (10_000, 30_000):
            path = tmp_path / f"{count}.tsv"
            with open(path, "w") as file:
                file.writelines(f"a man {i:05000} sleeps\ta man runs\n" for i in range(count))
            command = [sys.executable, "-c", code, "predict", model, path, "--device", "cpu"]
            result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            exit_code, *kilobytes = map(int, result.stderr.split())
            assert exit_code == 0
            peaks.append([peak / 1024 for peak in kilobytes])
        for few, many in zip(*peaks, strict=True):
            assert many - few < 60, f"{peaks} MiB"  # the answers to what is added hold 100 MB

    def test_mistakes(self, model, tmp_path):
        assert "--premise and --hypothesis must be given together" in fails("predict", model, "--premise", "a")
        assert "give either a file" in fails("predict", model)
        assert "give either a file" in fails("predict", model, "f.tsv", "--premise", "a", "--hypothesis", "b")
        assert "no.tsv: No such file" in fails("predict", model, tmp_path / "no.tsv")
        assert "expected an integer from 1" in fails("predict", model, "-", "--batch-size", "0")
        with mock.patch("sys.stdin", None), contextlib.redirect_stderr(io.StringIO()) as stderr:
            assert main(["predict", str(model), "-"]) == 2
        assert stderr.getvalue() == "esim-fast: stdin is closed\n"
        assert (
            "expected a label of the model (contradiction, entailment, neutral), a premise and a hypothesis"
            in fails("predict", model, "-", stdin="a man sleeps\ta man runs\t3\n")
        )

    def test_a_sentence_that_looks_like_json(self, model, tmp_path):
        path = write_tsv(tmp_path / "brace.tsv", [("{a} man", "a man")], header=False)
        assert json.loads(succeeds("predict", model, path))["premise"] == "{a} man"

    def test_output_is_utf8_whatever_the_terminal_speaks(self, model):
        command = [sys.executable, "-m", "esim_fast", "predict", model, "--premise", "睡觉", "--hypothesis", "Schläft"]
        result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout.decode("utf-8"))["premise"] == "睡觉"

    def test_a_reader_that_leaves_early(self, model, tmp_path):
        many = write_tsv(tmp_path / "many.tsv", [("a man sleeps", "a man runs")] * 20_000, header=False)
        command = f"'{sys.executable}' -m esim_fast predict '{model}' '{many}' | head -n 1"
        result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
        assert len(result.stdout.splitlines()) == 1
        assert result.stderr == ""


class TestExplain:
    PAIR = ("--premise", "A man is sleeping.", "--hypothesis", "A robot runs.")

    def test_files(self, model, tmp_path):
        for form, begin in (("png", b"\x89PNG"), ("html", b"<!DOCTYPE html>"), ("json", b"{")):
            assert succeeds("explain", model, *self.PAIR, "-o", tmp_path / f"map.{form}") == ""
            assert (tmp_path / f"map.{form}").read_bytes().startswith(begin)
        numbers = json.loads((tmp_path / "map.json").read_text())
        assert (numbers["premise"], numbers["unknown"]) == (["a", "man", "is", "sleeping", "."], ["robot"])
        assert [sum(row) for row in numbers["alpha"]] == pytest.approx([1] * 5, abs=1e-3)

    def test_mistakes(self, model, tmp_path):
        assert fails("explain", model, *self.PAIR, "-o", "map.gif") == (
            "esim-fast: map.gif: expected a name that ends in .png, .html or .json"
        )
        empty = "--premise", " ", "--hypothesis", "b", "-o", tmp_path / "map.json"
        assert fails("explain", model, *empty) == "esim-fast: the premise has no words: there is nothing to look at"
        assert "are required: -o/--output" in fails("explain", model, *self.PAIR)
        assert "no such model directory" in fails("explain", tmp_path / "none", *self.PAIR, "-o", "map.json")
        broken = "--premise", b"\xff".decode(errors="surrogateescape"), "--hypothesis", "b", "-o", "map.json"
        assert "argument --premise: not valid UTF-8 at character 1" in fails("explain", model, *broken)
        nowhere = tmp_path / "nowhere" / "map.json"
        assert "No such file" in fails("explain", model, *self.PAIR, "-o", nowhere)

    def test_without_matplotlib(self, model, tmp_path):
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            message = fails("explain", model, *self.PAIR, "-o", tmp_path / "map.png")
            assert "a picture needs matplotlib (pip install matplotlib), a page or numbers do not" in message
            succeeds("explain", model, *self.PAIR, "-o", tmp_path / "map.html")
        assert not list(tmp_path.glob("map.png*"))


class TestConvert:
    @pytest.fixture
    def state(self, tmp_path):
        torch.manual_seed(0)
        net = Coetaur0(12, 4, 6)
        torch.save({"epoch": 1, "model": net.state_dict()}, tmp_path / "best.pth.tar")
        words = {word: i for i, word in enumerate(["_PAD_", "_OOV_", "_BOS_", "_EOS_", *"ABCDEFGH"])}
        (tmp_path / "worddict.json").write_text(json.dumps(words))
        return tmp_path

    def test_a_checkpoint(self, state):
        options = "--vocabulary", state / "worddict.json", "--labels", "yes, maybe,no"
        result = esim_fast("convert", state / "best.pth.tar", state / "model", *options)
        assert result.returncode == 0
        assert result.stderr == (
            f"{state / 'model'}: 12 words of 4 numbers, hidden size 6, 3 labels, tokenizer coetaur0, "
            "from the names of coetaur0/ESIM\n"
        )
        answer = json.loads(succeeds("predict", state / "model", "--premise", "A C", "--hypothesis", "H"))
        assert set(answer["probabilities"]) == {"yes", "maybe", "no"}

    def test_nothing_but_a_checkpoint(self, state):
        result = esim_fast("convert", state / "best.pth.tar", state / "model")
        assert "without --vocabulary, sentences are word ids with blanks between them" in result.stderr
        answer = json.loads(succeeds("predict", state / "model", "--premise", "7 3 5", "--hypothesis", "11"))
        assert set(answer["probabilities"]) == {"0", "1", "2"}

    def test_a_folder_of_allennlps(self, tmp_path):
        (tmp_path / "run" / "vocabulary").mkdir(parents=True)
        torch.save(AllenNLP(5, 4, 6).state_dict(), tmp_path / "run" / "weights.th")
        (tmp_path / "run" / "vocabulary" / "tokens.txt").write_text("@@UNKNOWN@@\na\nb\nc\n")
        (tmp_path / "run" / "vocabulary" / "labels.txt").write_text("entailment\nneutral\ncontradiction\n")
        succeeds("convert", tmp_path / "run", tmp_path / "model")
        found = Classifier.from_pretrained(tmp_path / "model")
        assert found.labels == ["entailment", "neutral", "contradiction"]
        assert found.vocabulary.words == ["<unk>", "<pad>", "a", "b", "c"]

    def test_the_notebooks_are_told_what_they_have(self, tmp_path):
        torch.save(Notebook(6, 4, 5, 3).state_dict(), tmp_path / "net.pt")
        assert "Its LSTMs ran across the batch" in esim_fast("convert", tmp_path / "net.pt", tmp_path / "model").stderr
        own = tmp_path / "own"
        assert "already holds a model: choose another" in fails("convert", tmp_path / "net.pt", tmp_path / "model")
        result = esim_fast("convert", tmp_path / "net.pt", own, "--from", "esim_fast")
        assert "across the batch" not in result.stderr
        assert "expected a file, or a folder of AllenNLP's; this one is a model already" in fails("convert", own, "x")
        assert Classifier.from_pretrained(own).net.config["classifier_activation"] == "tanh"

    def test_mistakes(self, state):
        model, source = state / "model", state / "best.pth.tar"
        assert "nowhere: No such file" in fails("convert", state / "nowhere", model)
        assert "this one has neither best.th nor weights.th" in fails("convert", state, model)
        assert f"{source}: the network has 3 labels, got 2" in fails("convert", source, model, "--labels", "yes,no")
        assert "expected distinct labels with commas between, got 'a,,b'" in fails(
            "convert", source, model, "--labels", "a,,b"
        )
        (state / "words.txt").write_text("a\nb\n")
        assert f"{source} with {state / 'words.txt'}: the network has 12 word vectors, the vocabulary 2 words" in fails(
            "convert", source, model, "--vocabulary", state / "words.txt"
        )
        torch.save(Coetaur0(12, 4, 6), state / "whole.pt")
        assert "whole.pt: holds objects of Python" in fails("convert", state / "whole.pt", model)
        assert not model.exists()


class TestData:
    def test_what_it_prints(self, corpus, tmp_path):
        vectors = tmp_path / "glove.txt"
        vectors.write_text("man 1 2\nA 3 4\n")
        dev = write_tsv(tmp_path / "dev.tsv", [("neutral", "A man", "a zebra ."), ("other", "", "sleeping")])
        lines = succeeds("data", corpus, dev, "--vectors", vectors).splitlines()
        assert lines == [
            str(corpus),
            "  pairs          6, 1 without a gold label",
            "  labels         contradiction 2 (33.3%), entailment 2 (33.3%), neutral 1 (16.7%)",
            "  premises       5.0 words on average, half of them at most 5, 99 % at most 5, the longest 5",
            "  hypotheses     3.5 words on average, half of them at most 4, 99 % at most 4, the longest 4",
            "  vocabulary     15 different words of 51",
            "  with a vector  13.33% of the words, 23.53% of the text",
            "",
            str(dev),
            "  pairs          2, 0 without a gold label",
            "  labels         neutral 1 (50.0%), other 1 (50.0%)",
            "  premises       1.0 words on average, half of them at most 2, 99 % at most 2, the longest 2, 1 empty",
            "  hypotheses     2.0 words on average, half of them at most 3, 99 % at most 3, the longest 3",
            "  vocabulary     5 different words of 6",
            f"  known          80.00% of the words, 83.33% of the text are in {corpus}",
            "  with a vector  40.00% of the words, 50.00% of the text",
        ]

    def test_bad_rows(self, corpus, tmp_path):
        bad = tmp_path / "bad.tsv"
        bad.write_text(corpus.read_text() + "neutral\tonly one\nx\ta\0\tb\n")
        result = esim_fast("data", bad)
        assert result.returncode == 1
        assert result.stderr == f"{bad}:8: expected 3 columns, got 2\n{bad}:9: NUL character\n"
        assert "  pairs          6, 1 without a gold label, 2 bad rows\n" in result.stdout

    def test_a_file_that_cannot_be_read_does_not_stop_the_others(self, corpus, tmp_path):
        result = esim_fast("data", tmp_path / "none.tsv", corpus, corpus)
        assert f"100.00% of the words, 100.00% of the text are in {corpus}\n" in result.stdout
        assert (result.returncode, result.stdout.count("  pairs          6, 1")) == (2, 2)
        assert result.stderr == f"esim-fast: {tmp_path / 'none.tsv'}: No such file or directory\n"

    def test_nothing_but_bad_rows(self, tmp_path):
        bad = tmp_path / "bad.tsv"
        bad.write_text("label\tpremise\thypothesis\nneutral\tonly one\n")
        result = esim_fast("data", bad)
        assert (result.returncode, result.stderr) == (1, f"{bad}:2: expected 3 columns, got 2\n")
        assert "  pairs          0, 0 without a gold label, 1 bad row\n" in result.stdout

    def test_no_word_has_a_vector(self, corpus, tmp_path):
        vectors = tmp_path / "glove.txt"
        vectors.write_text("unheard 1 2\n")
        output = succeeds("data", corpus, "--vectors", vectors)
        assert "  with a vector  0.00% of the words, 0.00% of the text\n" in output

    def test_training_uses_what_it_prepared(self, tmp_path, cache):
        path = write_tsv(tmp_path / "shared_with_training.tsv", TRAIN)
        succeeds("data", path)
        succeeds("train", "--train", path, "--dev", path, "--output", tmp_path / "m", *SMALL)
        assert len(list(cache.glob("shared_with_training-*.safetensors"))) == 1

    def test_text_without_blanks(self, tmp_path):
        path = write_tsv(tmp_path / "zh.tsv", [("1", "男人在睡觉", "他睡着了")])
        hint = "sentences are single words: Chinese or Japanese wants --tokenizer characters"
        assert hint in succeeds("data", path)
        assert hint not in succeeds("data", path, "--tokenizer", "characters")

    def test_many_labels(self, tmp_path):
        path = write_tsv(tmp_path / "a.tsv", [(f"sentence {i}" * 20, "a", "b") for i in range(50)], header=False)
        assert ", 30 others 30 (60.0%)\n" in succeeds("data", path)

    def test_files_without_labels(self, tmp_path):
        bare = write_tsv(tmp_path / "bare.tsv", [("a b", "c")], header=False)
        assert "  labels         none\n" in succeeds("data", bare)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["no.tsv"], "no.tsv: No such file or directory"),
            ([], "the following arguments are required: FILE"),
            (["{corpus}", "--columns", "a"], f"{EXPECTED}a'"),
            (["{corpus}", "--columns", "1,b"], "expected names or numbers, not both, got '1,b'"),
            (
                ["{corpus}", "--columns", "1,0"],
                f"{EXPECTED}1,0'",
            ),
            (
                ["{corpus}", "--columns", "00,1"],
                f"{EXPECTED}00,1'",
            ),
            (
                ["{corpus}", "--columns", "1,01"],
                f"{EXPECTED}1,01'",
            ),
            (["{corpus}", "--columns", "1," + "9" * 5000], "expected names or numbers, not both"),
            (["{corpus}", "--columns", "1,9"], ":1: expected at least 9 columns, got 3"),
            (
                ["{corpus}", "--columns", "sentence1,sentence2,z"],
                ":1: expected a column z in the header, got",
            ),
            (["{corpus}", "--columns", "a,b"], ":1: expected a column a in the header, got gold_label, sentence1"),
            (["{corpus}", "--vectors", "no.txt"], "no.txt: No such file or directory"),
            (["{corpus}", "--cache", "x", "--no-cache"], "not allowed with argument"),
        ],
    )
    def test_mistakes(self, corpus, tmp_path, options, message):
        assert message in fails("data", *[option.format(corpus=corpus) for option in options], cwd=tmp_path)


def test_version():
    assert succeeds("--version") == f"esim-fast {importlib.metadata.version('esim_fast')}\n"


def test_help_names_the_commands():
    text = succeeds("--help")
    assert all(command in text for command in ("train", "evaluate", "predict", "data"))
    assert "see esim-fast --help" in fails()


def test_console_script_and_module():
    script = Path(sys.executable).with_name("esim-fast")
    if not script.exists():
        pytest.skip("esim_fast is not installed in this environment")
    for command in ([script], [sys.executable, "-m", "esim_fast"]):
        result = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, succeeds("--help"))

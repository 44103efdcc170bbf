"""``esim-fast train``: its output, its files and its error messages."""

import argparse
import json
import re
import statistics
from unittest import mock

import pytest
import torch

from esim_fast.cli.common import check_room
from esim_fast.cli.options import UsageError
from esim_fast.ops import persistent, products
from tests.cli.commands import SMALL, esim_fast, fails, succeeds, training


def test_messages(corpus, tmp_path):
    options = training(corpus, tmp_path / "m", "--test", corpus)
    result = esim_fast(*options)
    assert result.returncode == 0
    assert "5 pairs (contradiction 2, entailment 2, neutral 1); skipped 1 without a gold label" in result.stderr
    assert "epoch 2/2: train loss" in result.stderr
    assert "\r" not in result.stderr
    assert result.stdout.startswith("dev accuracy ")
    assert json.loads((tmp_path / "m" / "labels.json").read_text()) == ["contradiction", "entailment", "neutral"]
    test = json.loads((tmp_path / "m" / "test.json").read_text())
    assert test["file"] == str(corpus)
    assert f"test accuracy {test['accuracy']:.2%}\n" in result.stdout
    assert "already finished after 2 epochs\n" in esim_fast(*options, "--resume").stderr
    begun = esim_fast(*training(corpus, tmp_path / "n", "--resume"))
    assert "n: nothing to resume, so a new run begins\n" in begun.stderr


def test_bf16_where_it_is_slower(corpus, tmp_path, monkeypatch):
    for slower in (True, False):
        monkeypatch.setattr(products, "bf16_is_slower", lambda slower=slower: slower)
        result = esim_fast(*training(corpus, tmp_path / str(slower), "--precision", "bf16", "--device", "cpu"))
        assert result.returncode == 0
        assert result.stderr.count("--precision bf16 is slower than fp32 on this processor\n") == slower


def test_every_setting_is_an_option_and_recorded(corpus, tmp_path):
    given = {"--epochs": 1, "--patience": 7, "--batch-size": 3, "--accumulate": 2, "--seed": 11, "--precision": "bf16"}
    given |= {"--lr": 0.002, "--warmup-steps": 5, "--lr-decay": 0.7, "--weight-decay": 0.01, "--label-smoothing": 0.1}
    given |= {"--ema-decay": 0.9, "--max-grad-norm": 3.0}
    model = {"--hidden-size": 8, "--dropout": 0.25, "--embedding-dropout": 0.1, "--embedding-dim": 6}
    arguments = [part for option, value in {**given, **model, "--forget-bias": 0.5}.items() for part in (option, value)]
    options = ["--train", corpus, "--dev", corpus, "--freeze-embedding", "--output", tmp_path / "m"]
    succeeds("train", *options, *arguments)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    expected = {option[2:].replace("-", "_"): value for option, value in given.items()}
    expected["learning_rate"] = expected.pop("lr")
    assert config["training"]["recipe"] == {**expected, "max_tokens": None}
    assert config["training"]["forget_bias"] == 0.5
    assert config["training"]["files"]["train"] == [str(corpus)]
    for option, value in model.items():
        assert config[option[2:].replace("-", "_")] == value
    assert config["freeze_embedding"] is True
    help_text = succeeds("train", "--help")
    for option in ("--max-tokens", "--preset", "--seeds", "--checkpoint-steps", *given, *model):
        assert option in help_text


def test_presets(corpus, tmp_path):
    def trained_with(*options):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        files = ["--train", corpus, "--dev", corpus, "--output", output]
        succeeds("train", *files, "--hidden-size", 8, "--epochs", 1, *options)
        config = json.loads((output / "config.json").read_text())
        return config, config["training"]["recipe"]

    config, recipe = trained_with()
    paper = {"learning_rate": 4e-4, "batch_size": 32, "max_grad_norm": 10.0, "lr_decay": 0.5}
    assert recipe | paper | {"ema_decay": 0.0, "warmup_steps": 0} == recipe
    assert (config["dropout"], config["embedding_dropout"], config["embedding_dim"]) == (0.5, 0.5, 300)
    config, recipe = trained_with("--preset", "small-data", "--max-grad-norm", 1)
    assert (recipe["learning_rate"], recipe["ema_decay"], recipe["max_grad_norm"]) == (1e-3, 0.999, 1.0)
    assert (config["dropout"], config["embedding_dropout"]) == (0.5, 0.2)
    _, recipe = trained_with("--preset", "batch-512", "--patience", 0)
    assert (recipe["batch_size"], recipe["learning_rate"], recipe["patience"]) == (512, 1.6e-3, None)
    assert recipe["warmup_steps"] > 0
    _, recipe = trained_with("--max-tokens", 20)
    assert recipe["max_tokens"] == 20


def test_seeds(corpus, tmp_path):
    options = ["train", "--train", corpus, "--dev", corpus, "--test", corpus, *SMALL, "--output", tmp_path / "m"]
    seeds = ["--seeds", 3, "--seed", 5]
    output = succeeds(*options, *seeds)
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
    assert summary["dev"]["accuracies"] == summary["test"]["accuracies"] == accuracies  # on the same file
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert summary["dev"]["mean"] == pytest.approx(mean)
    assert summary["dev"]["standard_deviation"] == pytest.approx(deviation)
    assert f"dev accuracy {mean:.2%} ± {deviation:.2%} (standard deviation) of 3 seeds\n" in output
    best = 5 + accuracies.index(max(accuracies))
    assert f"the best model, seed {best}, is in {tmp_path / 'm'}\n" in output
    expected = (tmp_path / f"{best}" / "model.safetensors").read_bytes()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == expected
    assert "accuracy" in succeeds("evaluate", tmp_path / "m", corpus)
    for _ in range(2):
        again = succeeds(*options, *seeds, "--resume").splitlines()
        assert [line for line in again if "seeds" in line] == [line for line in output.splitlines() if "seeds" in line]
        (tmp_path / "m" / "model.safetensors").unlink()  # as if killed just before the end
    succeeds(*options, *seeds, "--resume")
    single = [*options[:-1], tmp_path / "5"]
    assert "5 holds a run with a single seed; choose" in fails(*single, "--seeds", 2, "--resume")
    for unasked in (seeds, ["--seeds", 3, "--seed", 8]):
        assert "m already holds runs" in fails(*options, *unasked)
    assert "m: already holds a model" in fails(*options)


def test_a_bad_batch_is_named_by_its_lines(corpus, tmp_path):
    options = ["train", "--train", corpus, corpus, "--dev", corpus, *SMALL, "--output", tmp_path / "m"]
    result = esim_fast(*options, "--lr", "1e38")
    message = result.stderr.splitlines()[-1]
    assert result.returncode == 2
    assert message.startswith("esim-fast: epoch 1, batch ")
    assert "; a lower learning rate (--lr) may help; its pairs are " in message
    assert (tmp_path / "m" / "checkpoint" / "last.pt").exists()
    places = re.search(r"its pairs are (.*); the last checkpoint is kept$", message)[1]
    lines = [int(line) for part in places.split("; ") for line in part.removeprefix(f"{corpus}:").split(", ")]
    assert len(lines) == 2
    assert set(lines) <= {2, 3, 4, 5, 6}


def test_a_run_that_ends_with_nan_weights(corpus, tmp_path):
    result = esim_fast(*training(corpus, tmp_path / "m", "--epochs", 1, "--batch-size", 8, "--lr", "1e38"))
    assert result.returncode == 2
    assert "epoch 1: the loss on dev is nan; a lower learning rate (--lr) may help; the last" in result.stderr
    assert not (tmp_path / "m" / "model.safetensors").exists()
    assert (tmp_path / "m" / "metrics.jsonl").read_text() == ""


def test_no_room_for_the_cuda_lstm():
    options = argparse.Namespace(bilstm_backend="cuda")
    message = "--bilstm-backend cuda: no room on cuda for 400 hidden units in fp32"
    with mock.patch.object(persistent, "can_run", lambda device, dtype, units: dtype != torch.float32):
        check_room(options, torch.device("cuda"), "bf16", 400)
        with pytest.raises(UsageError, match=message):
            check_room(options, torch.device("cuda"), "fp32", 400)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "{corpus}"], "--train needs --dev as well"),
        (["--dev", "{corpus}"], "--dev needs --train as well"),
        (["--max-tokens", "20", "--batch-size", "2"], "not allowed with argument"),
        (["--data", ".", "--train", "{corpus}"], "--data and --train exclude each other"),
        (["--data", "{tmp}"], "expected a file with train in its name"),
        (["--data", "nowhere"], "nowhere: no such directory"),
        (["--train", "nowhere.tsv", "--dev", "{corpus}"], "nowhere.tsv: No such file or directory"),
        (["--train", "{corpus}", "--dev", "{corpus}", "--vectors", "no.txt"], "no.txt: No such file"),
        (["--epochs", "1", "--vectors", "no.txt"], "no.txt: No such file"),  # with the bundled sample
        (["--embedding-dim", "5", "--vectors", "no.txt"], "--embedding-dim and --vectors exclude each other"),
        (["--accumulate", "0"], "argument --accumulate: expected an integer from 1 to 1000000, got '0'"),
        (["--warmup-steps", "-1"], "argument --warmup-steps: expected an integer from 0 to 1000000, got '-1'"),
        (["--patience", "x"], "argument --patience: expected an integer from 0 to 1000000, got 'x'"),
        (["--ema-decay", "1"], "argument --ema-decay: expected a number from 0 to below 1, got '1'"),
        (["--lr-decay", "2"], "argument --lr-decay: expected a number above 0, at most 1, got '2'"),
        (["--weight-decay", "-1"], "argument --weight-decay: expected a number from 0, got '-1'"),
        (["--preset", "large"], "argument --preset: invalid choice: 'large'"),
        (["--seed", str(2**63 - 2), "--seeds", "3"], "--seeds 3: the last seed would be above 2**63 - 1"),
        (["--epochs", "0"], "argument --epochs: expected an integer from 1 to 1000000, got '0'"),
        (["--batch-size", "1" + 30 * "0"], "argument --batch-size: expected an integer from 1 to 1000000"),
        (["--lr", "-1"], "argument --lr: expected a positive number, got '-1'"),
        (["--lr", "nan"], "argument --lr: expected a positive number, got 'nan'"),
        (["--hidden-size", "1000000000"], "argument --hidden-size: expected an integer from 1 to 65536"),
        (["--dropout", "1"], "argument --dropout: expected a number from 0 to below 1, got '1'"),
        (["--seed", "18446744073709551616"], "argument --seed: expected an integer from 0 to 2**63 - 1"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU"),
        (["--precision", "int8"], "argument --precision: invalid choice"),
        (
            ["--train", "{corpus}", "--dev", "{corpus}", "--cuda-graphs", "on", "--device", "cpu"],
            "esim-fast: --cuda-graphs: 'on' needs an NVIDIA GPU, and this device is cpu",
        ),
        (["--bilstm-backend", "cuda", "--device", "cpu"], "--bilstm-backend cuda: it cannot run on cpu"),
        (["--unheard-of"], "unrecognized arguments: --unheard-of (see esim-fast train --help)"),
        # no abbreviated options
        (["--epoch", "3"], "unrecognized arguments: --epoch 3; did you mean --epochs? (see esim-fast train --help)"),
    ],
)
def test_mistakes(corpus, tmp_path, options, message):
    options = [option.format(corpus=corpus, tmp=tmp_path) for option in options]
    assert message in fails("train", *options, cwd=tmp_path)
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_an_output_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file: not a directory" in fails(*training(corpus, tmp_path / "file"))
    assert "file/m/checkpoint: Not a directory" in fails(*training(corpus, tmp_path / "file" / "m"))

"""Several processes train like a single one, count each pair once and print once (over Gloo, on the CPU)."""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import safetensors.torch
import torch

from esim_fast.data import batches
from esim_fast.training import distributed
from tests.cli.commands import succeeds
from tests.processes import SECONDS, fork, places, start
from tests.training import distributed_worker
from tests.training.distributed_worker import SIZES, other_figures, scores, steps
from tests.training.training_tasks import pairs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def torchrun(processes, *command):
    """Runs a command in several processes, as users do."""
    # The processes import the package from where this one does.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, env=environment, timeout=540)


def assert_close_weights(*directories):
    weights = [safetensors.torch.load_file(directory / "model.safetensors") for directory in directories]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[2, 3])
def outcome(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    processes = [fork(distributed_worker.main, folder, place) for place in places(request.param)]
    for process in processes:
        process.join(SECONDS)
    assert [process.exitcode for process in processes] == [0] * request.param
    results = [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(request.param)]
    assert all(other == results[0] for other in results)
    assert results[0]["workers"] == request.param
    return folder, results[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The directory and the figures of a run in this process."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, steps(folder, 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_several_processes_train_like_one(outcome, alone, parts):
    folder, result = outcome
    expected_folder, figures = alone
    for measured, expected in zip(result["steps"][str(parts)], figures, strict=True):
        assert measured == pytest.approx(expected, abs=1e-5)
        assert measured[1::2] == expected[1::2]  # accuracies are over the same pairs
    for directory in ("", "last"):
        assert_close_weights(folder / f"steps-{parts}" / directory, expected_folder / directory)


def test_captured_steps_are_the_same(outcome, alone):
    folder, result = outcome
    for measured, expected in zip(result["captured"], alone[1], strict=True):
        assert measured == pytest.approx(expected, abs=1e-5)
    assert_close_weights(folder / "captured", alone[0])
    counts = [json.loads(line) for line in (folder / "captured" / "metrics.jsonl").read_text().splitlines()]
    assert sum(epoch["replayed_steps"] for epoch in counts) > 20


def test_figures_cover_all_processes(outcome, tmp_path):
    expected = other_figures(tmp_path)
    for measured, values in zip(outcome[1]["figures"], expected, strict=True):
        assert measured == pytest.approx(values, abs=1e-4)
    for name in ("scores", "auc"):
        assert_close_weights(outcome[0] / "figures" / name, tmp_path / name)


def test_evaluation_counts_every_pair_once(outcome):
    for size, (loss, accuracy), (expected_loss, expected) in zip(SIZES, outcome[1]["scores"], scores(), strict=True):
        assert round(accuracy * size, 6) == round(expected * size, 6)
        assert loss == pytest.approx(expected_loss, rel=1e-6)


def test_an_interrupted_run_resumes(outcome):
    # Bit for bit with two processes. With more, DistributedDataParallel's first step changes the order of summation.
    difference = outcome[1]["interrupted"]
    assert difference < 1e-5 if outcome[1]["workers"] > 2 else difference == 0


def test_gradients_become_views_of_the_one_message(monkeypatch):
    shapes = [(3, 5), (7,), (4, 2), (), (6, 6), (2,)]
    weights = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    gradients = [torch.randn(shape) for shape in shapes]
    gradients[4] = gradients[4].t()
    for weight, gradient in zip(weights[:-1], gradients, strict=False):
        weight.grad = gradient.clone()
    messages = []
    monkeypatch.setattr(distributed.distributed, "all_reduce", lambda flat: messages.append(flat.mul_(3)))
    distributed.add_gradients(iter(weights))
    (flat,) = messages
    assert weights[-1].grad is None
    for weight, gradient in zip(weights[:-1], gradients, strict=False):
        assert torch.equal(weight.grad, gradient * 3)
        assert weight.grad.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        assert weight.numel() % 4 or weight.grad.data_ptr() % 16 == 0


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_and_parts_are_the_batch(workers, parts, shuffle):
    dataset = pairs(45, 1)
    options = {"shuffle": shuffle, "seed": 3, "epoch": 2, "start": 1}
    whole = [batch.indices.tolist() for batch in batches(dataset, 8, **options)]
    shards = [list(batches(dataset, 8, shard=(rank, workers), parts=parts, **options)) for rank in range(workers)]
    assert {len(shard) for shard in shards} == {parts * len(whole)}
    for step, expected in enumerate(whole):
        pieces = [piece for shard in shards for piece in shard[step * parts : (step + 1) * parts]]
        assert all(piece.whole == len(expected) for piece in pieces)
        assert sorted(index for piece in pieces for index in piece.indices.tolist()) == sorted(expected)
        sizes = [len(piece) for piece in pieces]
        assert max(sizes) - min(sizes) <= 1


class TestCommand:
    @pytest.fixture
    def corpus(self, tmp_path):
        path = tmp_path / "pairs.tsv"
        rows = [("yes", "a man sleeps", "a man rests"), ("no", "a man sleeps", "he runs"), ("-", "a", "b")] * 7
        path.write_text("gold_label\tsentence1\tsentence2\n" + "".join("\t".join(row) + "\n" for row in rows))
        return path

    def test_it_trains_and_prints_once(self, corpus, tmp_path):
        options = ["train", "--train", corpus, "--dev", corpus, "--test", corpus, "--hidden-size", "8", "--dropout", 0]
        options += ["--epochs", 2, "--batch-size", 4, "--embedding-dim", 6]
        several = torchrun(2, "-m", "esim_fast", *options, "--output", tmp_path / "two")
        assert several.returncode == 0, several.stderr
        for message in ("dev accuracy", "test accuracy", "best epoch"):
            assert several.stdout.count(message) == 1, several.stdout
        assert several.stderr.count("epoch 2/2: train loss") == 1
        assert several.stderr.count("pairs.tsv: 14 pairs (no 7, yes 7); skipped 7 without a gold label") == 3
        alone = succeeds(*options, "--output", tmp_path / "one")
        # Gloo says something among it, with torch 2.10.
        accuracies = [re.findall("^test accuracy .*", stdout, re.M) for stdout in (several.stdout, alone)]
        assert accuracies[0] == accuracies[1] != []
        assert_close_weights(tmp_path / "two", tmp_path / "one")
        assert json.loads((tmp_path / "two" / "config.json").read_text())["training"]["processes"] == 2

    def test_it_calibrates_on_dev(self, corpus, tmp_path):
        """One process chooses temperature and threshold, and all processes test with them."""
        options = ["train", "--train", corpus, "--dev", corpus, "--test", corpus, "--hidden-size", "8", "--dropout", 0]
        options += ["--epochs", 1, "--embedding-dim", 6, "--calibrate", "--threshold", "f1", "--best-by", "macro-f1"]
        with ExitStack() as stack:
            command = [*options, "--output", tmp_path / "two"]
            commands = [stack.enter_context(start(*command, environment=place)) for place in places(2)]
            (code, stdout, _), (other, nothing, _) = [command.finish() for command in commands]
        assert (code, other) == (0, 0)
        alone = succeeds(*options, "--output", tmp_path / "one")
        # Gloo says something among it, with torch 2.10.
        decided = [re.findall("^(?:calibrated|threshold|test) .*", text, re.M) for text in (stdout, alone, nothing)]
        assert decided[0] == decided[1]
        assert decided[2] == []
        assert len(decided[0]) == 3
        kept = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("two", "one")]
        for name in ("temperature", "threshold"):
            assert kept[0].get(name) == pytest.approx(kept[1].get(name), abs=1e-3)

    def test_an_error_is_printed_once(self, tmp_path):
        files = ["--train", "no.tsv", "--dev", "no.tsv", "--output", tmp_path / "m"]
        with ExitStack() as stack:
            commands = [stack.enter_context(start("train", *files, environment=place)) for place in places(2)]
            outcomes = [command.finish() for command in commands]
        assert outcomes == [(2, "", "esim-fast: no.tsv: No such file or directory\n"), (2, "", "")]

"""Logging of a run to CSV files, TensorBoard and Weights & Biases."""

import contextlib
import csv
import json
import sys
from argparse import ArgumentTypeError
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from esim_fast.cli.options import LOGS, logs
from esim_fast.data import DataError
from esim_fast.training import Recipe
from esim_fast.training.loggers import LOGGERS, RunLog
from tests.cli.commands import TRAIN, esim_fast, fails, training, write_tsv
from tests.training.training_tasks import new_trainer

RECIPE = Recipe(epochs=3, patience=None, batch_size=4, seed=1)  # 40 steps per epoch
CONFIG = {"learning_rate": 4e-4, "epochs": 3, "max_tokens": None, "train": ["a.tsv"], "precision": "fp32"}


def run(directory, names, stop_after=None, recipe=RECIPE, warnings=None, **options):
    """A run with these loggers, interrupted after some steps."""
    log = RunLog(names, directory, [].append if warnings is None else warnings.append)
    trainer = new_trainer(
        recipe,
        directory,
        on_begin=lambda: log.begin(CONFIG, trainer.progress, trainer.resumed),
        on_epoch=lambda metrics: log.epoch(metrics, trainer.progress.steps),
        on_step=log.step,
        should_stop=lambda: trainer.progress.steps == stop_after,
        **options,
    )
    with contextlib.suppress(KeyboardInterrupt) if stop_after else contextlib.nullcontext(), log:
        trainer.run()
    return trainer


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The metrics of each step and each epoch of the run."""
    steps = []
    trainer = new_trainer(RECIPE, tmp_path_factory.mktemp("plain"), on_step=steps.append)
    return steps, trainer.run()


def points(steps):
    """Means over 20 steps each, by the last of them."""
    for begin in range(0, len(steps), 20):
        part = steps[begin : begin + 20]
        loss = sum(step.loss_sum for step in part) / sum(step.pairs for step in part)
        yield part[-1].step, loss, part[-1].learning_rate, sum(step.gradient_norm for step in part) / len(part)


def test_names():
    assert set(LOGS) == LOGGERS.keys()


def test_metrics_of_a_step(measured):
    steps, history = measured
    assert [step.step for step in steps] == list(range(1, 121))
    assert {step.pairs for step in steps} == {4}
    for epoch, metrics in enumerate(history):
        part = steps[40 * epoch : 40 * epoch + 40]
        assert sum(step.loss_sum for step in part) / 160 == pytest.approx(metrics.train_loss)
        assert {step.learning_rate for step in part} == {metrics.learning_rate}
    assert all(step.gradient_norm > 0 for step in steps)


def test_csv(measured, tmp_path):
    steps, history = measured
    run(tmp_path / "m", ["csv"])
    rows = table(tmp_path / "m" / "metrics.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for name in ("train_loss", "train_accuracy", "dev_loss", "dev_accuracy", "learning_rate"):
        assert [float(row[name]) for row in rows] == [getattr(metrics, name) for metrics in history]
    rows = [tuple(map(float, row.values())) for row in table(tmp_path / "m" / "steps.csv")]
    assert rows == list(points(steps))


@pytest.mark.parametrize("stop_after", [60, 67, 80])  # in the second epoch, and at its end
def test_csv_continues_after_an_interruption(tmp_path, stop_after):
    run(tmp_path / "whole", ["csv"])
    run(tmp_path / "m", ["csv"], stop_after)
    with open(tmp_path / "m" / "steps.csv", "a") as file:
        file.write("100,1,1,1\r\n120,1")  # as left by a machine that crashed after the last checkpoint
    run(tmp_path / "m", ["csv"], resume=True)
    whole, resumed = (table(tmp_path / name / "steps.csv") for name in ("whole", "m"))
    if stop_after % 20:  # a point of fewer than 20 steps
        assert [row.pop("step") for row in resumed] == ["20", "40", "60", "67", "80", "100", "120"]
        assert resumed[:3] + resumed[5:] == [{name: row[name] for name in resumed[0]} for row in whole[:3] + whole[4:]]
    else:
        assert resumed == whole
    whole, resumed = (table(tmp_path / name / "metrics.csv") for name in ("whole", "m"))
    assert [{**row, "seconds": ""} for row in resumed] == [{**row, "seconds": ""} for row in whole]


def test_tensorboard(measured, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    steps, history = measured
    run(tmp_path / "m", ["tensorboard"], stop_after=67)
    run(tmp_path / "m", ["tensorboard"], resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "m" / "tensorboard")).Reload()

    def curve(name):
        return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]

    assert curve("dev/accuracy") == [(40 * metrics.epoch, metrics.dev_accuracy) for metrics in history]
    assert curve("train/loss") == [(40 * metrics.epoch, metrics.train_loss) for metrics in history]
    assert curve("epoch") == [(40, 1), (80, 2), (120, 3)]
    ends = [20, 40, 60, 67, 80, 100, 120]
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert [step for step, _ in curve(f"step/{name}")] == ends
    losses = {step: loss for step, loss, *_ in points(steps)}
    assert {step: loss for step, loss in curve("step/loss") if step in (20, 60, 120)} == {
        step: losses[step] for step in (20, 60, 120)
    }
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"learning_rate" in plugin
    assert b'["a.tsv"]' in plugin


def test_tensorboard_hides_repeated_steps(tmp_path):
    """A machine that crashes leaves points after the last checkpoint."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = run(tmp_path / "m", ["tensorboard"], stop_after=41)
    log = RunLog(["tensorboard"], tmp_path / "m", print)
    log.begin(CONFIG, trainer.progress, True)
    with log:
        log.epoch(trainer.progress.history[0], 50)
    run(tmp_path / "m", ["tensorboard"], resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "m" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("dev/loss")] == [40, 80, 120]


class FakeWandb(SimpleNamespace):
    """A fake library that records its calls."""

    def __init__(self):
        super().__init__(started=[], logged=[], ended=[], config={})

    def init(self, **options):
        self.started.append(options)
        run_id = options["id"] or "abc123"
        config = SimpleNamespace(update=lambda values, allow_val_change: self.config.update(values))
        finish = lambda exit_code: self.ended.append(exit_code)  # noqa: E731
        return SimpleNamespace(id=run_id, config=config, finish=finish, log=self.log)

    def log(self, values, step):
        self.logged.append((step, values))


def test_wandb(measured, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("PROJECT", "NAME", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    steps, history = measured
    run(tmp_path / "m", ["wandb"], stop_after=67)
    run(tmp_path / "m", ["wandb"], resume=True)
    new = {"project": "esim_fast", "name": "m", "dir": str(tmp_path / "m"), "id": None, "resume": None}
    assert fake.started == [new, {**new, "id": "abc123", "resume": "allow"}]
    assert fake.ended == [1, 0]  # interrupted, then finished
    assert fake.config == CONFIG
    logged = {}
    for step, values in fake.logged:
        assert step >= max(logged, default=0)  # wandb drops steps that go back
        logged.setdefault(step, {}).update(values)
    assert list(logged) == [20, 40, 60, 67, 80, 100, 120]
    for metrics in history:
        assert logged[40 * metrics.epoch]["dev/accuracy"] == metrics.dev_accuracy
    assert [logged[step]["step/loss"] for step in (20, 60)] == [loss for step, loss, *_ in points(steps)][:3:2]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run(tmp_path / "n", ["wandb"], recipe=Recipe(epochs=1))
    assert fake.started[-1]["project"] == "mine"


class Failing:
    """A logger that fails after the first epoch."""

    def __init__(self, *_):
        self.epochs = 0

    def steps(self, values, step):
        pass

    def epoch(self, metrics, step):
        self.epochs += 1
        if self.epochs == 2:
            raise OSError(28, "No space left on device")

    def close(self, finished):
        raise AssertionError


def test_a_logger_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "failing", Failing)
    warnings = []
    trainer = run(tmp_path / "m", ["failing", "csv"], warnings=warnings)
    assert len(trainer.progress.history) == 3
    assert warnings == ["log failing: OSError: [Errno 28] No space left on device; the run continues without it"]
    assert len(table(tmp_path / "m" / "metrics.csv")) == 3


def test_a_logger_that_cannot_be_opened(tmp_path, monkeypatch):
    fake = SimpleNamespace(init=lambda **options: (_ for _ in ()).throw(RuntimeError("no API key\nconfigured")))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(DataError, match=r"^log wandb: RuntimeError: no API key$"):
        run(tmp_path / "m", ["csv", "wandb"])


def test_the_command(tmp_path, monkeypatch):
    corpus = write_tsv(tmp_path / "pairs.tsv", TRAIN)
    options = training(corpus, tmp_path / "m", "--log", "csv")
    for count, more in enumerate(([], ["--resume", "--epochs", 3], ["--resume", "--epochs", 3])):
        result = esim_fast(*options, *more)
        assert result.returncode == 0, result.stderr
        assert len(table(tmp_path / "m" / "metrics.csv")) == 2 + min(count, 1)
        lines = (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()
        found = [{name: float(value) for name, value in row.items()} for row in table(tmp_path / "m" / "metrics.csv")]
        assert found == [json.loads(line) for line in lines]
    assert [row["step"] for row in table(tmp_path / "m" / "steps.csv")] == ["3", "6", "9"]
    plain = esim_fast(*training(corpus, tmp_path / "n"))
    assert plain.returncode == 0
    assert not (tmp_path / "n" / "metrics.csv").exists()
    first, second = ((tmp_path / name / "last" / "model.safetensors") for name in "mn")
    assert esim_fast(*training(corpus, tmp_path / "n", "--resume", "--epochs", 3)).returncode == 0
    assert first.read_bytes() == second.read_bytes()  # logging changes no computation


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_reported_first(tmp_path, monkeypatch, name):
    monkeypatch.setattr("esim_fast.cli.options.find_spec", lambda name: None)
    message = fails("train", "--train", tmp_path / "nowhere.tsv", "--dev", "nowhere.tsv", "--log", f"csv,{name}")
    expected = f'argument --log: {name} is not installed: pip install "esim_fast[{name}]" (see esim-fast train --help)'
    assert message == f"esim-fast train: {expected}"


def test_a_folder_is_not_the_library(tmp_path, monkeypatch):
    """An earlier run of wandb leaves a folder named wandb."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert find_spec("wandb") is not None
    with pytest.raises(ArgumentTypeError, match=r"^wandb is not installed: "):
        logs("wandb")

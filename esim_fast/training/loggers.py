"""Log a run's metrics to CSV files, TensorBoard and Weights & Biases."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError, kind_and_reason
from ..files import replace_file
from .progress import EpochMetrics, Progress, StepMetrics

_EVERY = 20  # steps averaged into one point of a curve
_EPOCHS, _STEPS, _TENSORBOARD, _WANDB_ID = "metrics.csv", "steps.csv", "tensorboard", "wandb-id.txt"

Values = dict[str, float]


class RunLog:
    """Write a run's metrics to several loggers at once.

    If a logger fails during the run, for example on a full disk, it is reported and dropped; training continues. Steps
    count over the whole run, so a resumed run continues the same curves.

    Args:
        names: the loggers to use, keys of ``LOGGERS``.
        directory: the run's directory.
        warn: called with one line about a logger that failed.
    """

    def __init__(self, names: Sequence[str], directory: str | os.PathLike[str], warn: Callable[[str], object]) -> None:
        self.names, self.directory, self.warn = names, Path(directory), warn
        self._loggers: dict[str, Logger] = {}
        self._unwritten: list[StepMetrics] = []

    def begin(self, config: Mapping[str, Any], progress: Progress, resumed: bool) -> None:
        """Open the loggers.

        Args:
            config: the recipe and other settings that describe the run.
            progress: how far the run has come.
            resumed: continue what an earlier part of the run logged.

        Raises:
            DataError: a logger cannot be opened.
        """
        for name in dict.fromkeys(self.names):
            try:
                self._loggers[name] = LOGGERS[name](self.directory, config, progress, resumed)
            except Exception as error:  # these libraries pass on any error of their files and networks
                raise DataError(f"log {name}: {kind_and_reason(error)}") from error

    def step(self, metrics: StepMetrics) -> None:
        """Add one step."""
        self._unwritten.append(metrics)
        if metrics.step % _EVERY == 0:
            self._write_steps()

    def epoch(self, metrics: EpochMetrics, step: int) -> None:
        """Write the metrics of an epoch that ended after ``step`` steps."""
        self._write_steps()
        self._each(lambda logger: logger.epoch(metrics, step))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the loggers, at the end of the run or on an error."""
        self._write_steps()
        self._each(lambda logger: logger.close(finished=kind is None))
        self._loggers.clear()

    def _write_steps(self) -> None:
        """Write a point for the steps since the last one: their means, and the last learning rate."""
        steps, self._unwritten = self._unwritten, []
        if not steps:
            return
        values = {
            "loss": sum(step.loss_sum for step in steps) / max(1, sum(step.pairs for step in steps)),
            "learning_rate": steps[-1].learning_rate,
            "gradient_norm": sum(step.gradient_norm for step in steps) / len(steps),
        }
        self._each(lambda logger: logger.steps(values, steps[-1].step))

    def _each(self, write: Callable[["Logger"], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                write(logger)
            except Exception as error:  # logging must not end a run
                del self._loggers[name]
                self.warn(f"log {name}: {kind_and_reason(error)}; the run continues without it")


class Logger(Protocol):
    """A place to log to, created with the run's directory and the arguments of ``RunLog.begin``."""

    def steps(self, values: Values, step: int) -> None: ...

    def epoch(self, metrics: EpochMetrics, step: int) -> None: ...

    def close(self, finished: bool) -> None: ...


class CsvLogger:
    """``metrics.csv``, a row for each epoch, and ``steps.csv``, a row for every 20 steps."""

    def __init__(self, directory: Path, config: Mapping[str, Any], progress: Progress, resumed: bool) -> None:
        self._directory, self._history = directory, list(progress.history)
        if self._history:
            self._write_epochs()
        names, kept = ["step", "loss", "learning_rate", "gradient_norm"], []
        path = directory / _STEPS
        if resumed and path.exists():  # steps after the checkpoint are run and logged again
            with open(path, encoding="utf-8", newline="") as file:
                kept = [row for row in csv.reader(file) if len(row) == len(names) and _is_up_to(row[0], progress.steps)]
        _write_table(path, [names, *kept])
        self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115 (open during the run)

    def steps(self, values: Values, step: int) -> None:
        csv.writer(self._file).writerow([step, *values.values()])
        self._file.flush()

    def epoch(self, metrics: EpochMetrics, step: int) -> None:
        self._history.append(metrics)
        self._write_epochs()

    def close(self, finished: bool) -> None:
        self._file.close()

    def _write_epochs(self) -> None:
        rows = [metrics.as_dict() for metrics in self._history]
        names = list(dict.fromkeys(name for row in rows for name in row))
        _write_table(self._directory / _EPOCHS, [names, *([row.get(name) for name in names] for row in rows)])


class TensorBoardLogger:
    """Event files in ``tensorboard/``, with curves by step and the recipe under HPARAMS."""

    def __init__(self, directory: Path, config: Mapping[str, Any], progress: Progress, resumed: bool) -> None:
        from torch.utils.tensorboard.summary import hparams  # optional, and slow to import
        from torch.utils.tensorboard.writer import SummaryWriter

        # Steps after the checkpoint are run and logged again.
        purge = {"purge_step": progress.steps + 1} if resumed else {}
        self._writer = SummaryWriter(os.fspath(directory / _TENSORBOARD), **purge)
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for name, value in config.items()
        }
        # add_hparams would create a separate run each time, and accepts only metrics that exist already.
        experiment, begin, self._end = hparams(plain, {"dev/loss": 0.0, "dev/accuracy": 0.0})
        for summary in (experiment, begin):
            self._events().add_summary(summary)

    def steps(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, metrics: EpochMetrics, step: int) -> None:
        for name, value in _curves(metrics):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        if finished:
            self._events().add_summary(self._end)
        self._writer.close()

    def _events(self) -> Any:
        return self._writer._get_file_writer()


class WandbLogger:
    """A run in Weights & Biases, whose id is saved in the directory.

    ``WANDB_MODE``, ``WANDB_PROJECT`` and wandb's other environment variables work as usual.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], progress: Progress, resumed: bool) -> None:
        import wandb  # optional, and slow to import

        path = directory / _WANDB_ID
        known = path.read_text(encoding="utf-8").strip() if resumed and path.exists() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "esim_fast"),
            name=os.environ.get("WANDB_NAME", directory.name),
            dir=os.environ.get("WANDB_DIR", os.fspath(directory)),
            id=known,
            resume="allow" if known else None,
        )
        replace_file(path, lambda partial: partial.write_text(f"{self._run.id}\n", encoding="utf-8"))
        self._run.config.update(dict(config), allow_val_change=True)  # a resumed run may change --epochs

    def steps(self, values: Values, step: int) -> None:
        self._run.log({f"step/{name}": value for name, value in values.items()}, step=step)

    def epoch(self, metrics: EpochMetrics, step: int) -> None:
        self._run.log(dict(_curves(metrics)), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any], Progress, bool], Logger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def _curves(metrics: EpochMetrics) -> Iterator[tuple[str, float]]:
    """An epoch's metrics by curve name: ``dev_loss`` becomes ``dev/loss``."""
    for name, value in metrics.as_dict().items():
        part, _, figure = name.partition("_")
        if part in ("train", "dev"):
            yield f"{part}/{figure}", value
        elif name != "learning_rate":  # logged by step
            yield name if name == "epoch" else f"epoch/{name}", value


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    def write(partial: Path) -> None:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    replace_file(path, write)


def _is_up_to(text: str, step: int) -> bool:
    return text.isdecimal() and int(text) <= step

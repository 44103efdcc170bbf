"""A run's progress and metrics."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from .figures import Figure


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of an epoch, one line of ``metrics.jsonl``.

    A metric that was not measured or is not defined is None here and missing in the file.

    Attributes:
        epoch: counted from 1.
        train_loss: mean cross entropy (in regression, mean squared error) during the epoch, with dropout, label
            smoothing and class weights.
        train_accuracy: from 0 to 1, during the epoch, with dropout; None in regression.
        dev_loss: mean cross entropy or mean squared error on dev, unsmoothed and unweighted.
        dev_accuracy: from 0 to 1; None in regression.
        learning_rate: of the epoch's last step.
        seconds: of training and evaluation.
        dev_macro_f1: if the recipe's ``best_by`` asks for it.
        dev_f1: F1 of one label, if ``best_by`` asks for it.
        dev_auc: if ``best_by`` asks for it.
        dev_pearson: in regression.
        dev_spearman: in regression.
        replayed_steps: steps that replayed a CUDA graph. The last three are None without CUDA graphs.
        eager_steps: steps that did not.
        captured_graphs: graphs captured during the epoch.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    dev_loss: float
    dev_accuracy: float | None
    learning_rate: float
    seconds: float
    dev_macro_f1: float | None = None
    dev_f1: float | None = None
    dev_auc: float | None = None
    dev_pearson: float | None = None
    dev_spearman: float | None = None
    replayed_steps: int | None = None
    eager_steps: int | None = None
    captured_graphs: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The metrics that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class StepMetrics(NamedTuple):
    """Metrics of a training step, in the first process.

    Attributes:
        step: in the run, counted from 1.
        pairs: this process's share of the batch.
        loss_sum: summed over those pairs, with dropout.
        learning_rate: of the step.
        gradient_norm: of the whole batch, before clipping.
    """

    step: int
    pairs: int
    loss_sum: float
    learning_rate: float
    gradient_norm: float


@dataclass
class Progress:
    """The state of a run between two steps."""

    epoch: int = 1  # the current one
    batch: int = 0  # batches done in this epoch
    steps: int = 0  # done in the whole run
    # In this epoch, over this process's pairs.
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    # In this epoch, with CUDA graphs.
    replayed: int = 0
    eager: int = 0
    captured: int = 0
    history: list[EpochMetrics] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """Reverse ``dataclasses.asdict``; raise KeyError, TypeError or ValueError if the values are invalid."""
        progress = cls(**{**values, "history": [EpochMetrics(**metrics) for metrics in values["history"]]})
        measured: list[Progress | EpochMetrics] = [progress, *progress.history]
        for part in measured:
            for each in fields(part):
                value = getattr(part, each.name)
                most = 2**63 if each.type is int else math.inf
                if each.type in (int, float) and not (type(value) is each.type and 0 <= value < most):
                    raise ValueError(f"{each.name} = {value!r}")
                if each.type == int | None and not (value is None or (type(value) is int and 0 <= value < 2**63)):
                    raise ValueError(f"{each.name} = {value!r}")
                if each.type == float | None and not (value is None or (type(value) is float and -1 <= value <= 1)):
                    raise ValueError(f"{each.name} = {value!r}")
        return progress

    def ranks(self, figure: Figure) -> list[float]:
        """The figure on dev of each finished epoch; higher is better."""
        return [figure.rank(getattr(metrics, f"dev_{figure.field}")) for metrics in self.history]

    def best(self, figure: Figure) -> EpochMetrics | None:
        """The epoch with the best figure on dev; of several, the one with the lowest dev loss."""
        ranked = zip(self.ranks(figure), self.history, strict=True)
        _, best = max(ranked, key=lambda epoch: (epoch[0], -epoch[1].dev_loss), default=(None, None))
        return best

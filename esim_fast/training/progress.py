"""How far a run has come, and what it has measured."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from .figures import Figure


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``; accuracies are fractions of one, training figures are taken with dropout.

    Losses are mean cross entropies, in regression mean squared errors; label smoothing and class weights are in that of
    training alone. What was not measured, or is not defined, is None here and left out there.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None  # of scores there is none
    dev_loss: float
    dev_accuracy: float | None
    learning_rate: float
    seconds: float
    # Where the recipe chooses the best epoch by it.
    dev_macro_f1: float | None = None
    dev_f1: float | None = None  # of one label
    dev_auc: float | None = None
    # Of scores.
    dev_pearson: float | None = None
    dev_spearman: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """What was measured, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class StepMetrics(NamedTuple):
    """What one training step measured, with dropout; of several processes, by the one that leads."""

    step: int  # of the run, counted from 1
    pairs: int
    loss_sum: float  # over these pairs
    learning_rate: float
    gradient_norm: float  # before clipping, of the whole batch


@dataclass
class Progress:
    """Where a run is between two steps."""

    epoch: int = 1  # in hand
    batch: int = 0  # batches of it that are done
    steps: int = 0  # in all
    loss_sum: float = 0.0  # in this epoch, over this process's pairs, as the next two
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    history: list[EpochMetrics] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        """From what ``dataclasses.asdict`` made of one; raises KeyError, TypeError or ValueError for anything else."""
        progress = cls(**{**values, "history": [EpochMetrics(**metrics) for metrics in values["history"]]})
        measured: list[Progress | EpochMetrics] = [progress, *progress.history]
        for part in measured:
            for each in fields(part):
                value = getattr(part, each.name)
                most = 2**63 if each.type is int else math.inf
                if each.type in (int, float) and not (type(value) is each.type and 0 <= value < most):
                    raise ValueError(f"{each.name} = {value!r}")
                if each.type == float | None and not (value is None or (type(value) is float and -1 <= value <= 1)):
                    raise ValueError(f"{each.name} = {value!r}")
        return progress

    def ranks(self, figure: Figure) -> list[float]:
        """A figure on dev, of the epochs that are done: higher is better."""
        return [figure.rank(getattr(metrics, f"dev_{figure.field}")) for metrics in self.history]

    def best(self, figure: Figure) -> EpochMetrics | None:
        """The epoch that is best by a figure on dev; of several, that with the lowest dev loss."""
        ranked = zip(self.ranks(figure), self.history, strict=True)
        _, best = max(ranked, key=lambda epoch: (epoch[0], -epoch[1].dev_loss), default=(None, None))
        return best

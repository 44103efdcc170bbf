"""How far a run has come, and what it has measured."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``; accuracies are fractions of one, training figures are taken with dropout."""

    epoch: int
    train_loss: float
    train_accuracy: float
    dev_loss: float
    dev_accuracy: float
    learning_rate: float
    seconds: float


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
                if each.type in (int, float) and not (type(value) is each.type and 0 <= value < 2**63):
                    raise ValueError(f"{each.name} = {value!r}")
        return progress

    @property
    def accuracies(self) -> list[float]:
        """On dev, of the epochs that are done."""
        return [metrics.dev_accuracy for metrics in self.history]

    @property
    def best(self) -> EpochMetrics | None:
        """The epoch with the best dev accuracy; of several, that with the lowest dev loss."""
        return max(self.history, key=lambda metrics: (metrics.dev_accuracy, -metrics.dev_loss), default=None)

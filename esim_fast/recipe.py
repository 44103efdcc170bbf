"""Training recipes: the paper's, and presets for small data and large batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from typing import Any

from .config import PRECISIONS, check_int, check_number

BEST_BY = ("accuracy", "macro-f1", "auc", "loss", "pearson", "spearman")  # or f1:LABEL
_LATER = ("class_weights", "best_by")  # omitted when None, so that recipes saved before these options compare equal


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters; the defaults are the paper's.

    A batch may be split into parts, across processes or by gradient accumulation, without changing the training steps.

    Attributes:
        epochs: largest number of passes over the training pairs.
        patience: stop after this many epochs without a better dev metric (``best_by``); None runs all epochs.
        batch_size: pairs per batch, over all processes.
        max_tokens: tokens per batch; the number of pairs then varies.
        accumulate: number of parts that a batch is processed in, one after another, to save memory.
        learning_rate: learning rate of Adam.
        warmup_steps: steps over which the learning rate rises linearly to ``learning_rate``.
        lr_decay: factor for the learning rate after each epoch without a better dev metric.
        weight_decay: decoupled weight decay (AdamW) of all parameters except word vectors.
        label_smoothing: share of each target that is spread evenly over all labels.
        ema_decay: decay per step of the moving average of the weights, which is evaluated and saved; 0 disables it.
        max_grad_norm: largest norm of the gradient.
        seed: seed of the order of the pairs and of dropout.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` under autocast.
        class_weights: weights of the labels in the loss, as a dict (labels that it does not name have weight 1); or
            ``"balanced"``: pairs / (labels * pairs with that label), so that all labels count equally. The loss of a
            batch is the weighted sum divided by its number of pairs, however the batch is split.
        best_by: the dev metric that selects the best epoch: ``"accuracy"``, ``"macro-f1"``, ``"f1:LABEL"``, ``"auc"``
            or ``"loss"``; in regression ``"spearman"``, ``"pearson"`` or ``"loss"``. None is accuracy, in regression
            Spearman's correlation.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of range or unknown.
    """

    epochs: int = 20
    patience: int | None = 3
    batch_size: int = 32
    max_tokens: int | None = None
    accumulate: int = 1
    learning_rate: float = 4e-4
    warmup_steps: int = 0
    lr_decay: float = 0.5
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    max_grad_norm: float = 10.0
    seed: int = 0
    precision: str = "fp32"
    class_weights: str | Mapping[str, float] | None = field(default=None, hash=False)
    best_by: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "max_tokens", "accumulate", "warmup_steps", "seed"):
            value, least = getattr(self, name), 0 if name in ("warmup_steps", "seed") else 1
            if value is not None or name not in ("patience", "max_tokens"):
                check_int(name, value, least)
        if self.seed >= 2**63:
            raise ValueError(f"seed must lie between 0 and 2**63 - 1, got {self.seed}")
        for name in ("learning_rate", "max_grad_norm", "lr_decay"):
            if not 0 < check_number(name, getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.lr_decay > 1:
            raise ValueError(f"lr_decay must be at most 1, got {self.lr_decay}")
        if not 0 <= check_number("weight_decay", self.weight_decay) < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= check_number(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must be 0 or more and below 1, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if isinstance(self.class_weights, Mapping):
            for label, weight in self.class_weights.items():
                if not 0 < check_number(f"class_weights[{label!r}]", weight) < math.inf:
                    raise ValueError(f"class_weights[{label!r}] must be positive, got {weight}")
            plain = {str(label): float(weight) for label, weight in self.class_weights.items()}
            object.__setattr__(self, "class_weights", plain)
        elif self.class_weights not in (None, "balanced"):
            raise ValueError(f'class_weights must be "balanced" or a dict of weights, got {self.class_weights!r}')
        for each in fields(self):  # checkpoints must not contain NumPy's subclass of float
            if isinstance(value := getattr(self, each.name), float):
                object.__setattr__(self, each.name, float(value))
        if self.best_by not in (None, *BEST_BY) and not str(self.best_by).startswith("f1:"):
            raise ValueError(f"best_by must be one of {', '.join(BEST_BY)} or f1:LABEL, got {self.best_by!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values; ``class_weights`` and ``best_by`` are omitted if None."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _LATER}

    def rate(self, step: int, figures: Sequence[float]) -> float:
        """Return the learning rate of a step.

        Args:
            step: the step, counted from 0.
            figures: dev metrics of the epochs so far, higher is better.
        """
        rate = self.learning_rate * self.lr_decay ** sum(not better for better in _improvements(figures))
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate

    def is_over(self, figures: Sequence[float]) -> bool:
        """Whether a run ends after epochs with these dev metrics, where higher is better."""
        if len(figures) >= self.epochs:
            return True
        return self.patience is not None and not any(_improvements(figures)[-self.patience :] or [True])


def _improvements(figures: Sequence[float]) -> list[bool]:
    """Return for each epoch whether it is better than all before it."""
    best = accumulate(figures, max, initial=-math.inf)
    return [figure > before for figure, before in zip(figures, best, strict=False)]


# For large batches, the learning rate grows with the square root of the batch size and is warmed up.
PRESETS = {
    "paper": Recipe(),
    "small-data": Recipe(learning_rate=1e-3, ema_decay=0.999),
    "batch-128": Recipe(batch_size=128, learning_rate=8e-4, warmup_steps=200),
    "batch-512": Recipe(batch_size=512, learning_rate=1.6e-3, warmup_steps=400),
    "batch-1024": Recipe(batch_size=1024, learning_rate=2.3e-3, warmup_steps=400),
}


@dataclass(frozen=True)
class ModelOptions:
    """The network's options, except the sizes that follow from the data."""

    hidden_size: int = 300
    embedding_dim: int = 300  # used only without pretrained vectors
    dropout: float = 0.5
    embedding_dropout: float | None = None
    freeze_embedding: bool = False
    forget_bias: float = 1.0


# With only tens of thousands of pairs, dropping half of each word vector leaves too little to learn from.
PRESET_MODELS = {"small-data": ModelOptions(embedding_dropout=0.2)}

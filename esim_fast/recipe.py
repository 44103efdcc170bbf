"""How to train: the paper's recipe, and others for large batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from typing import Any

from .config import PRECISIONS, check_int, check_number

BEST_BY = ("accuracy", "macro-f1", "auc", "loss", "pearson", "spearman")  # or f1:LABEL
_LATER = ("class_weights", "best_by")  # of later versions: recipes without them look as they always have


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's.

    A batch may be split into parts, for several processes or one after the other: the steps stay the same.

    Attributes:
        epochs: passes over the training pairs, at most.
        patience: so many epochs without a better figure on dev (``best_by``) end the run; None: all epochs are run.
        batch_size: pairs of a batch, of all processes together.
        max_tokens: tokens of a batch, whose number of pairs is then as it comes.
        accumulate: parts that a batch is divided into, one after the other, where memory is short.
        learning_rate: of Adam.
        warmup_steps: steps over which the learning rate rises to that.
        lr_decay: the learning rate is multiplied by it after each epoch without a better figure on dev.
        weight_decay: of all parameters but word vectors, decoupled (AdamW).
        label_smoothing: share of each target that goes to all labels alike.
        ema_decay: decay a step of the moving average of the weights, which is what is evaluated and saved; 0 for none.
        max_grad_norm: largest norm of the gradient.
        seed: of the order of the pairs and of dropout.
        precision: "fp32", or "bf16" or "fp16" under autocast.
        class_weights: how much the pairs of each label count in training: weights by label, 1 for those that are not
            named; or "balanced": pairs / (labels * pairs of that label), so that all labels count alike. The loss of a
            batch is the weighted sum divided by the number of its pairs, however it is divided.
        best_by: the figure on dev that chooses the best epoch: "accuracy", "macro-f1", "f1:LABEL", "auc" or "loss", in
            regression "spearman", "pearson" or "loss". None: accuracy, in regression Spearman's correlation.

    Raises:
        TypeError: a value is no number.
        ValueError: a value makes no sense.
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
            raise ValueError(f'class_weights must be "balanced" or weights by label, got {self.class_weights!r}')
        for each in fields(self):  # NumPy's floats are none to those who read checkpoints
            if isinstance(value := getattr(self, each.name), float):
                object.__setattr__(self, each.name, float(value))
        if self.best_by not in (None, *BEST_BY) and not str(self.best_by).startswith("f1:"):
            raise ValueError(f"best_by must be one of {', '.join(BEST_BY)} or f1:LABEL, got {self.best_by!r}")

    def as_dict(self) -> dict[str, Any]:
        """By name, as JSON has it; ``class_weights`` and ``best_by`` only where they are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _LATER}

    def rate(self, step: int, figures: Sequence[float]) -> float:
        """The learning rate of a step, counted from 0, after epochs of these figures on dev, higher for better."""
        rate = self.learning_rate * self.lr_decay ** sum(not better for better in _improvements(figures))
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate

    def is_over(self, figures: Sequence[float]) -> bool:
        """Whether a run with epochs of these figures on dev has come to its end."""
        if len(figures) >= self.epochs:
            return True
        return self.patience is not None and not any(_improvements(figures)[-self.patience :] or [True])


def _improvements(figures: Sequence[float]) -> list[bool]:
    """Of each epoch: whether it is better than all before it."""
    best = accumulate(figures, max, initial=-math.inf)
    return [figure > before for figure, before in zip(figures, best, strict=False)]


# By name, for `--preset`. Adam's rate grows with the root of the batch, and rises to that over the first steps.
PRESETS = {
    "paper": Recipe(),
    "small-data": Recipe(learning_rate=1e-3, ema_decay=0.999),
    "batch-128": Recipe(batch_size=128, learning_rate=8e-4, warmup_steps=200),
    "batch-512": Recipe(batch_size=512, learning_rate=1.6e-3, warmup_steps=400),
    "batch-1024": Recipe(batch_size=1024, learning_rate=2.3e-3, warmup_steps=400),
}


@dataclass(frozen=True)
class ModelOptions:
    """What is left open of the network, but for the sizes that the data give."""

    hidden_size: int = 300
    embedding_dim: int = 300  # without vectors
    dropout: float = 0.5
    embedding_dropout: float | None = None
    freeze_embedding: bool = False
    forget_bias: float = 1.0


# Of tens of thousands of pairs, dropping half of each word leaves too little to learn from.
PRESET_MODELS = {"small-data": ModelOptions(embedding_dropout=0.2)}

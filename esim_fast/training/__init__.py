"""Training: the recipe, the run, and checkpoints to go on from.

From a script, with a :class:`esim_fast.Classifier` and pairs of :mod:`esim_fast.data`::

    initialize(model.net)
    history = Trainer(model, train, dev, Recipe(epochs=10), "model").run()
    best = esim_fast.Classifier.from_pretrained("model")

For a loop of your own there are :func:`training_step` and :func:`evaluate`.
"""

from ..config import PRECISIONS
from ..recipe import PRESETS, Recipe
from .checkpoint import Checkpoint
from .initialization import initialize
from .progress import EpochMetrics
from .steps import Score, StepResult, evaluate, training_step
from .trainer import NotFiniteError, Trainer

__all__ = [
    "PRECISIONS",
    "PRESETS",
    "Checkpoint",
    "EpochMetrics",
    "NotFiniteError",
    "Recipe",
    "Score",
    "StepResult",
    "Trainer",
    "evaluate",
    "initialize",
    "training_step",
]

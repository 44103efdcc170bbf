"""Training: the recipe, the run, and checkpoints to go on from.

From a script, with a :class:`esim_fast.Classifier` and pairs of :mod:`esim_fast.data`::

    initialize(model.net)
    history = Trainer(model, train, dev, Recipe(epochs=10), "model").run()
    best = esim_fast.Classifier.from_pretrained("model")

For a loop of your own there are :func:`training_step` and :func:`evaluate`.
"""

from .checkpoint import Checkpoint
from .directory import RunDirectory
from .distributed import Worker, joined, lost_connection, started_by_torchrun, this_worker
from .initialization import initialize
from .progress import EpochMetrics
from .recipe import PRECISIONS, PRESETS, Recipe
from .steps import Score, StepResult, evaluate, training_step
from .trainer import NotFiniteError, OtherSettingsError, Trainer

__all__ = [
    "PRECISIONS",
    "PRESETS",
    "Checkpoint",
    "EpochMetrics",
    "NotFiniteError",
    "OtherSettingsError",
    "Recipe",
    "RunDirectory",
    "Score",
    "StepResult",
    "Trainer",
    "Worker",
    "evaluate",
    "initialize",
    "joined",
    "lost_connection",
    "started_by_torchrun",
    "this_worker",
    "training_step",
]

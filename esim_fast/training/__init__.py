"""Training: the recipe, the run, and checkpoints to go on from.

From a script, with a :class:`esim_fast.Classifier` and pairs of :mod:`esim_fast.data`::

    initialize(model.net)
    history = Trainer(model, train, dev, Recipe(epochs=10), "model").run()
    best = esim_fast.Classifier.from_pretrained("model")

For a loop of your own there are :func:`training_step` and :func:`evaluate`; for the probabilities of a trained model
:func:`calibrate` and :func:`choose_threshold`.
"""

from ..config import PRECISIONS
from ..recipe import PRESETS, Recipe
from .calibration import Calibration, calibrate
from .checkpoint import Checkpoint
from .initialization import initialize
from .progress import EpochMetrics
from .steps import Score, StepResult, evaluate, training_step
from .threshold import Threshold, choose_threshold
from .trainer import NotFiniteError, Trainer

__all__ = [
    "PRECISIONS",
    "PRESETS",
    "Calibration",
    "Checkpoint",
    "EpochMetrics",
    "NotFiniteError",
    "Recipe",
    "Score",
    "StepResult",
    "Threshold",
    "Trainer",
    "calibrate",
    "choose_threshold",
    "evaluate",
    "initialize",
    "training_step",
]

"""Training: recipes, runs, and checkpoints to resume from.

Train an ``esim_fast.Classifier`` on pairs encoded by ``esim_fast.data``:

    initialize(model.net)
    history = Trainer(model, train, dev, Recipe(epochs=10), "model").run()
    best = esim_fast.Classifier.from_pretrained("model")

``training_step`` and ``evaluate`` are the building blocks of a custom loop. ``calibrate`` and ``choose_threshold``
adjust the probabilities and the decisions of a trained model.
"""

from ..config import PRECISIONS
from ..recipe import PRESETS, Recipe
from .calibration import Calibration, calibrate
from .capacities import Size, plan_capacities, step_sizes
from .capture import CapturedStep
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
    "CapturedStep",
    "Checkpoint",
    "EpochMetrics",
    "NotFiniteError",
    "Recipe",
    "Score",
    "Size",
    "StepResult",
    "Threshold",
    "Trainer",
    "calibrate",
    "choose_threshold",
    "evaluate",
    "initialize",
    "plan_capacities",
    "step_sizes",
    "training_step",
]

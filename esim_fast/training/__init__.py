"""Training: the recipe, the loop, and checkpoints to resume from."""

from .checkpoint import Checkpoint
from .trainer import EpochMetrics, Recipe, accuracy, fit, training_step

__all__ = ["Checkpoint", "EpochMetrics", "Recipe", "accuracy", "fit", "training_step"]

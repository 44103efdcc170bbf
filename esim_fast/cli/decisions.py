"""What ``esim-fast train`` decides on dev after training: temperature and threshold of the best model."""

import argparse

from ..classifier import Classifier
from ..data import EncodedPairs
from ..labels import positive_or_second
from ..training import calibrate, choose_threshold
from .corpora import TrainingData
from .options import UsageError


def check(options: argparse.Namespace, data: TrainingData) -> None:
    """Raises UsageError for what would fail after hours of training."""
    if options.calibrate and data.has_scores:
        raise UsageError("--calibrate is for classes: scores have no probabilities")
    if options.threshold is None:
        return
    if len(data.labels) != 2:
        what = "scores have no probabilities" if data.has_scores else f"there are {len(data.labels)}"
        raise UsageError(f"--threshold is for two labels: {what}")
    positive = str(positive_or_second(data.labels))  # there is one of two labels
    if options.threshold == "f1" and not data.dev.label_counts().get(positive):
        raise UsageError(f"--threshold f1: no pair of {data.dev.path} has the label {positive}")


def decide(model: Classifier, dev: EncodedPairs, options: argparse.Namespace) -> list[str]:
    """Gives a model what the options ask for.

    Returns:
        What to say about it, by lines. ``model.training`` keeps the same.
    """
    lines, kept = [], dict(model.training or {})
    if options.calibrate:
        calibration = calibrate(model, dev)
        kept["calibration"] = calibration.as_dict()
        loss, error = calibration.log_loss, calibration.expected_calibration_error
        lines.append(
            f"calibrated on dev: temperature {calibration.temperature:.4g}, log loss {loss[0]:.4f} -> {loss[1]:.4f}, "
            f"expected calibration error {error[0]:.2%} -> {error[1]:.2%}"
        )
        if calibration.temperature == 1:
            lines[-1] += " (none is the best: every pair is right, or the model is worse than chance)"
    if options.threshold is not None:
        chosen = choose_threshold(model, dev, options.threshold)
        figure = "accuracy" if options.threshold == "accuracy" else f"F1 of {chosen.label}"
        kept["threshold"] = {"label": chosen.label, "figure": figure, "before": chosen.before, "after": chosen.after}
        lines.append(
            f"threshold {chosen.threshold:.4g}: {chosen.label} is given from this probability on; dev {figure} "
            f"{chosen.before:.2%} -> {chosen.after:.2%}"
        )
    model.training = kept
    return lines

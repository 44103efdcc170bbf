"""What ``esim-fast train`` fits on dev after training: the best model's temperature and threshold."""

import argparse

from ..classifier import Classifier
from ..data import EncodedPairs
from ..labels import positive_or_second
from ..training import calibrate, choose_threshold
from .corpora import TrainingData
from .options import UsageError


def check(options: argparse.Namespace, data: TrainingData) -> None:
    """Raise UsageError for what would fail only after hours of training."""
    if options.calibrate and data.has_scores:
        raise UsageError("--calibrate needs classes; scores have no probabilities")
    if options.threshold is None:
        return
    if len(data.labels) != 2:
        what = "scores have no probabilities" if data.has_scores else f"there are {len(data.labels)}"
        raise UsageError(f"--threshold needs two labels; {what}")
    positive = str(positive_or_second(data.labels))  # never None with two labels
    if options.threshold == "f1" and not data.dev.label_counts().get(positive):
        raise UsageError(f"--threshold f1: no pair of {data.dev.path} has the label {positive}")


def decide(model: Classifier, dev: EncodedPairs, options: argparse.Namespace) -> list[str]:
    """Fit the temperature and the threshold that the options ask for, and note them in ``model.training``.

    Returns:
        Lines to print.
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
            lines[-1] += " (no temperature is better: every pair is right, or the model is worse than chance)"
    if options.threshold is not None:
        chosen = choose_threshold(model, dev, options.threshold)
        figure = "accuracy" if options.threshold == "accuracy" else f"F1 of {chosen.label}"
        kept["threshold"] = {"label": chosen.label, "figure": figure, "before": chosen.before, "after": chosen.after}
        lines.append(
            f"threshold {chosen.threshold:.4g}: {chosen.label} is predicted from this probability on; dev {figure} "
            f"{chosen.before:.2%} -> {chosen.after:.2%}"
        )
    model.training = kept
    return lines

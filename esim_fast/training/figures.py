"""Figures on dev that choose a run's best epoch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..classifier import Classifier
from ..data import EncodedPairs
from ..errors import listed
from ..metrics import accuracy, macro_f1, pearson, precision_recall_f1, roc_auc, spearman
from .distributed import ALONE, Worker
from .steps import evaluate


@dataclass(frozen=True)
class Figure:
    """A figure, measured on dev after each epoch.

    Attributes:
        name: its name in messages.
        field: its attribute of ``esim_fast.training.EpochMetrics``, without ``dev_``.
        form: format specification of a value.
        label: id of the label, for the F1 of one label.
    """

    name: str
    field: str
    form: str = ".4f"
    label: int | None = None

    def rank(self, value: float | None) -> float:
        """A number that is higher for better values, and lowest for an undefined one."""
        if value is None:
            return -math.inf
        return -value if self.field == "loss" else value

    def text(self, value: float | None) -> str:
        """Name and value, for a message."""
        return f"{self.name} {'undefined' if value is None else format(value, self.form)}"

    def shown(self, values: Mapping[str, Any]) -> "dict[str, Figure]":
        """The figures to show, by field: the usual ones if measured, and this one."""
        usual = [figure for figure in (_ACCURACY, *_OF_SCORES.values()) if values.get(figure.field) is not None]
        return {figure.field: figure for figure in [*usual, self]}

    def texts(self, values: Mapping[str, Any]) -> list[str]:
        """Names and values of the figures to show."""
        return [figure.text(values[field]) for field, figure in self.shown(values).items()]


_ACCURACY = Figure("accuracy", "accuracy", ".2%")
_LOSS = Figure("loss", "loss")
_SPEARMAN = Figure("Spearman", "spearman")
_OF_CLASSES = {"accuracy": _ACCURACY, "macro-f1": Figure("macro-F1", "macro_f1", ".2%"), "auc": Figure("AUC", "auc")}
_OF_SCORES = {"spearman": _SPEARMAN, "pearson": Figure("Pearson", "pearson")}


def figure_of(best_by: str | None, labels: Sequence[str]) -> Figure:
    """The figure that ``Recipe.best_by`` names, for a model with these labels.

    Raises:
        ValueError: such a model does not have this figure.
    """
    is_regression = len(labels) == 1
    if best_by is None:
        return _SPEARMAN if is_regression else _ACCURACY
    if best_by == "loss":
        return _LOSS
    known = _OF_SCORES if is_regression else _OF_CLASSES
    kind, _, label = best_by.partition(":")
    if kind == "f1" and not is_regression:
        if label not in labels:
            raise ValueError(f"best_by: there is no label {label!r}, only {listed(labels)}")
        return Figure(f"F1 of {label}", "f1", ".2%", labels.index(label))
    if best_by not in known:
        task = "regression" if is_regression else "classification"
        names = ", ".join([*known, "loss", *([] if is_regression else ["f1:LABEL"])])
        raise ValueError(f"best_by: {task} has {names}, but no {best_by}")
    if best_by == "auc" and len(labels) != 2:
        raise ValueError(f"best_by: the AUC needs two labels, and there are {len(labels)}: {listed(labels)}")
    return known[best_by]


def check_dev(figure: Figure, model: Classifier, dev: EncodedPairs) -> None:
    """Raise ValueError if the figure is not defined on the dev pairs."""
    gold = np.asarray(dev.labels)
    if figure.field in ("pearson", "spearman") and gold.min() == gold.max():
        raise ValueError(f"dev: expected scores that differ, got only {gold[0]:g}")
    needed = [0, 1] if figure.field == "auc" else [] if figure.label is None else [figure.label]
    for label in needed:
        if label not in gold:
            raise ValueError(f"dev: no pair has the label {model.labels[label]}, so {figure.name} is not defined")


def assess(
    figure: Figure, model: Classifier, pairs: EncodedPairs, *, worker: Worker = ALONE, **options: Any
) -> dict[str, Any]:
    """Measure a model on labeled pairs, as a dictionary by field.

    It always has ``loss`` and ``accuracy``, and in regression both correlations.

    Args:
        figure: another figure to measure.
        model: the model.
        pairs: labeled pairs, in its word ids.
        worker: as in ``evaluate``.
        **options: ``batch_size``, ``max_tokens`` and ``forward``, as in ``evaluate``.
    """
    is_regression, gold = model.task == "regression", np.asarray(pairs.labels)
    logits = None
    if is_regression or figure not in (_ACCURACY, _LOSS) or model.threshold is not None:
        device = model.net.device if worker.count > 1 else "cpu"
        logits = torch.zeros(len(pairs), len(model.labels), device=device)
    loss, share = evaluate(model.net, pairs, worker=worker, logits=logits, **options)
    if logits is None or not math.isfinite(loss):
        return {"loss": loss, "accuracy": share}
    logits = logits.cpu()
    if is_regression:
        scores = logits[:, 0].numpy()
        return {"loss": loss, "accuracy": None, "pearson": pearson(gold, scores), "spearman": spearman(gold, scores)}
    answers = model.decide(model.probabilities(logits)).numpy()
    found: dict[str, Any] = {"loss": loss, "accuracy": accuracy(gold, answers)}
    if figure.field == "macro_f1":
        found["macro_f1"] = macro_f1(gold, answers, len(model.labels))
    elif figure.label is not None:
        found["f1"] = float(precision_recall_f1(gold, answers, len(model.labels)).f1[figure.label])
    elif figure.field == "auc" and model.positive is not None:
        # Ranks like the probabilities, many of which round to 1.
        surplus = logits[:, model.positive].double() - logits[:, 1 - model.positive].double()
        found["auc"] = roc_auc(gold == model.positive, surplus.numpy())
    return found

"""Losses: cross entropy for labels, optionally weighted, and squared error for scores."""

import math

import numpy as np
import torch
from torch import Tensor

from ..classifier import Classifier
from ..data import EncodedPairs
from ..errors import listed
from ..ops.cross_entropy import NO_LABEL, cross_entropy
from ..recipe import Recipe


def summed_loss(
    logits: Tensor,
    targets: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss summed over pairs, and the number of correct answers (int64; 0 in regression), both scalars.

    Args:
        logits: ``[B, number of labels]``; in regression, ``[B, 1]``.
        targets: int64 ``[B]`` label ids or float32 ``[B]`` scores. Pairs with the target ``no_target`` are ignored.
        smoothing: label smoothing, the share of each target that is spread evenly over all labels.
        class_weights: float32 ``[number of labels]``.
        backend: of ``esim_fast.ops.cross_entropy``.
    """
    if targets.is_floating_point():
        errors = torch.where(targets.isnan(), 0.0, logits[:, 0].float() - targets)
        return errors.square().sum(), targets.new_zeros((), dtype=torch.int64)
    return cross_entropy(logits, targets, smoothing, class_weights, backend=backend)


def no_target(targets: Tensor) -> Tensor:
    """A target ``[1]``, in the dtype of ``targets``, that the loss ignores."""
    return targets.new_full((1,), math.nan if targets.is_floating_point() else NO_LABEL)


def check_targets(name: str, pairs: EncodedPairs, model: Classifier) -> None:
    """Raise ValueError if a model cannot learn from these pairs, or be measured on them.

    Args:
        name: the pairs' name in messages.
        pairs: the pairs.
        model: the model.
    """
    targets = pairs.labels
    if not len(pairs) or targets is None:
        raise ValueError(f"{name}: expected labeled pairs, got {'none' if not len(pairs) else 'no labels'}")
    if model.task == "regression":
        if targets.dtype.kind != "f":
            raise ValueError(f"{name}: the network has one output and learns scores: expected floats, got ids")
        if not np.isfinite(targets).all():
            index = int(np.flatnonzero(~np.isfinite(targets))[0])
            raise ValueError(f"{name}: expected finite scores, got {targets[index]} at index {index}")
    elif targets.dtype.kind == "f":
        count = len(model.labels)
        hint = "a network that learns scores has one output"
        raise ValueError(f"{name}: the network has {count} outputs: expected label ids, got floats ({hint})")
    elif not 0 <= targets.min() <= targets.max() < len(model.labels):
        raise ValueError(f"{name}: expected label ids from 0 to {len(model.labels) - 1}, got {targets.max()}")


def class_weights(recipe: Recipe, model: Classifier, train: EncodedPairs) -> Tensor | None:
    """The class weights that a recipe asks for: float32 ``[number of labels]``, on the model's device.

    Raises:
        ValueError: the recipe names a label that the model does not have, or has class weights or label smoothing for
            a regression model.
    """
    if model.task == "regression":
        for name in ("class_weights", "label_smoothing"):
            if getattr(recipe, name):
                raise ValueError(f"{name}: scores have no classes")
        return None
    wanted = recipe.class_weights
    if wanted is None:
        return None
    if isinstance(wanted, str):  # "balanced"
        counts = np.bincount(np.asarray(train.labels), minlength=len(model.labels))
        weights = (len(train) / (len(model.labels) * np.maximum(1, counts))).tolist()
    else:
        for label in wanted:
            if label not in model.labels:
                raise ValueError(f"class_weights: there is no label {label!r}, only {listed(model.labels)}")
        weights = [wanted.get(label, 1.0) for label in model.labels]
    return torch.tensor(weights, dtype=torch.float32, device=model.net.device)

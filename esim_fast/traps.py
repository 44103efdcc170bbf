"""Warn of mistakes in padded token ids that raise no error but degrade results.

Every batch is checked, so the checks must be fast. They also need to avoid false alarms: sentences may end in "!!" or
"哈哈哈".
"""

import sys
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_OTHER_PADDING = (
    "many sentences begin or end with one repeated id, which is treated as words: if it is padding, pass it as "
    "padding_idx, as in ESIM(..., padding_idx=0)"
)
_TIME_MAJOR = (
    "token ids look time-major, [length, batch], but ESIM expects [batch, length]: pass p.T and h.T, or create them "
    "with batch_first=True"
)
_FEW = 3  # rows that may have padding between their words by chance


def warn_of_traps(p: Tensor, h: Tensor, padding_idx: int) -> None:
    """Check ``p [B, Lp]`` and ``h [B, Lh]`` on the CPU, given without lengths. A single pair is too little to tell."""
    if len(p) < 2 or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    sides = [ids.numpy() for ids in (p, h) if type(ids) is Tensor and ids.shape[1] > 1]
    if _padded_with_another_id(sides, padding_idx):
        warn(_OTHER_PADDING)
    elif _time_major(sides, padding_idx):
        warn(_TIME_MAJOR)


def _padded_with_another_id(sides: Sequence[np.ndarray], padding_idx: int) -> bool:
    views = [view for ids in sides for view in (ids[:, ::-1], ids)]
    if any((view[:, 0] == padding_idx).any() for view in views):
        return False  # padded correctly
    doubled = [view[view[:, 0] == view[:, 1], 0] for view in views]  # ids that are repeated at the end of a row
    return any(len(ids) > 1 and _is_padding(view, ids) for view, ids in zip(views, doubled, strict=True))


def _is_padding(view: np.ndarray, doubled: np.ndarray) -> bool:
    """Whether rows begin with a padding id: it occurs nowhere else, and not equally often in every row."""
    candidate = np.sort(doubled)[len(doubled) // 2]
    found = view == candidate
    lengths = np.logical_and.accumulate(found, axis=1).sum(1)
    runs = lengths[lengths > 1]
    if candidate == 0:  # the most common padding id needs less evidence
        enough = len(runs) >= max(2, len(view) / 4)
    else:
        enough = len(runs) >= max(4, len(view) / 2) and runs.min() < runs.max()
    return enough and lengths.sum() == found.sum() and bool((view != view[0]).any())


def _time_major(sides: Sequence[np.ndarray], padding_idx: int) -> bool:
    """Whether every column is words followed by padding, but many rows are not, in either direction."""
    scattered = 0
    for ids in sides:
        words = ids != padding_idx
        if (words[1:] > words[:-1]).any():
            return False
        scattered += int(((words[:, 1:] != words[:, :-1]).sum(1) > 1).sum())
    return len(sides) == 2 and len(sides[0]) > _FEW and scattered >= _FEW


def warn(message: str) -> None:
    """Warn at the first stack frame outside esim_fast and torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("esim_fast", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

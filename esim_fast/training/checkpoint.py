"""What a run needs to go on after an interruption: one file, replaced when the next is complete."""

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..classifier import replace_file
from ..data import DataError


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        settings: what the run was started with; a run resumes only with the same.
        epoch: how many epochs are done.
        best_accuracy: on dev, so far.
        metrics: one dictionary for each epoch.
        states: state dicts of network, optimiser, scheduler and scaler, and random number generators' states.
    """

    settings: dict[str, Any]
    epoch: int
    best_accuracy: float
    metrics: list[dict[str, float]]
    states: dict[str, Any]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial: torch.save(vars(self), partial))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Reads a checkpoint; nothing in it is executed.

        Raises:
            DataError: the file is no checkpoint.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast") from error

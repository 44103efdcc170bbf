"""What a run needs to go on after an interruption: one file, replaced when the next is complete."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..data import DataError
from ..files import first_line, replace_file


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        settings: what the run was started with; a run resumes only with the same.
        epoch: how many epochs are done.
        best_accuracy: on dev, so far.
        metrics: one dictionary for each epoch.
        states: state dicts of whatever has one, by name.
        random: states of torch's random number generators, by device type.
    """

    settings: dict[str, Any]
    epoch: int
    best_accuracy: float
    metrics: list[dict[str, float]]
    states: dict[str, Any]
    random: dict[str, Any]

    @classmethod
    def take(cls, owners: dict[str, Any], device: torch.device, **progress: Any) -> "Checkpoint":
        """The present state of ``owners``, objects with a ``state_dict``, and of the generators in use."""
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return cls(**progress, states={name: owner.state_dict() for name, owner in owners.items()}, random=random)

    def restore(self, owners: dict[str, Any], device: torch.device) -> None:
        """Puts ``owners`` and generators back; one that this checkpoint does not know, on another device, stays.

        Raises:
            DataError: the checkpoint belongs to something else.
        """
        try:
            for name, owner in owners.items():
                owner.load_state_dict(self.states[name])
            torch.set_rng_state(self.random["cpu"])
            if device.type == "cuda" and "cuda" in self.random:
                torch.cuda.set_rng_state(self.random["cuda"], device)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"the checkpoint does not fit this run: {reason}") from error

    def save(self, path: Path) -> None:
        """Writes the checkpoint; the one that was there is replaced only by a complete one.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            replace_file(
                path, lambda partial: torch.save({f.name: getattr(self, f.name) for f in fields(self)}, partial)
            )
        except RuntimeError as error:  # torch's way to say that the disk is full
            raise OSError(f"{path}: cannot be written: {first_line(error)}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Reads a checkpoint; nothing in it is executed.

        Raises:
            DataError: the file is no checkpoint.
        """
        try:
            checkpoint = cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged file makes torch.load raise anything
            raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast") from error
        expected = {
            "settings": dict,
            "epoch": int,
            "best_accuracy": float,
            "metrics": list,
            "states": dict,
            "random": dict,
        }
        for name, kind in expected.items():
            if not isinstance(getattr(checkpoint, name), kind):
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast: {name} is no {kind.__name__}")
        return checkpoint

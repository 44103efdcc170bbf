"""What a run needs to go on after an interruption: one file, replaced when the next is complete."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DataError
from ..files import first_line, replace_file


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        settings: what the run was started with; a run resumes only with the same.
        progress: where in which epoch the run is, and what it has measured.
        states: state dicts of whatever has one, by name.
        random: states of torch's random number generators by device type, of each process that trains.
    """

    settings: dict[str, Any]
    progress: dict[str, Any]
    states: dict[str, Any]
    random: list[dict[str, Tensor]]

    def restore(self, owners: dict[str, Any], device: torch.device, rank: int = 0) -> None:
        """Puts ``owners`` and generators back; one that this checkpoint does not know stays as it is.

        Raises:
            DataError: the checkpoint belongs to something else.
        """
        try:
            for name, owner in owners.items():
                owner.load_state_dict(self.states[name])
            random = self.random[rank] if rank < len(self.random) else {}
            if "cpu" in random:
                torch.set_rng_state(random["cpu"])
            if device.type == "cuda" and "cuda" in random:
                torch.cuda.set_rng_state(random["cuda"], device)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"the checkpoint does not fit this run: {reason}") from error

    def save(self, path: Path) -> None:
        """Writes the checkpoint; the one that was there is replaced only by a complete one.

        Raises:
            OSError: it cannot be written.
        """

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                try:
                    torch.save({field.name: getattr(self, field.name) for field in fields(self)}, file)
                except RuntimeError as error:  # of torch, which hides what the system said: that the disk is full
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise

        replace_file(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Reads a checkpoint; nothing in it is executed.

        Raises:
            DataError: the file is no checkpoint.
            OSError: it cannot be opened.
        """
        with open(path, "rb") as file:
            try:
                checkpoint = cls(**torch.load(file, map_location="cpu", weights_only=True))
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes torch.load raise anything
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast") from error
        for name, kind in {"settings": dict, "progress": dict, "states": dict, "random": list}.items():
            if not isinstance(getattr(checkpoint, name), kind):
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast: {name} is no {kind.__name__}")
        return checkpoint


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators, of the CPU and of a GPU that is ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states

"""What a run needs to go on after an interruption: one file, replaced when the next is complete."""

import os
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import DataError, kind_and_reason
from ..files import check_kind, load_saved, replace_file


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

    def restore(self, owners: dict[str, Any], device: torch.device, rank: int = 0) -> dict[str, Tensor]:
        """Puts ``owners`` back.

        Returns:
            The states of the generators of this process, for :func:`set_random_states`; those of a process that this
            checkpoint does not know are none.

        Raises:
            DataError: the checkpoint belongs to something else.
        """
        try:
            for name, owner in owners.items():
                load = partial(_load_optimizer, owner) if isinstance(owner, Optimizer) else owner.load_state_dict
                load(self.states[name])
            random = self.random[rank] if rank < len(self.random) else {}
            random = {kind: random[kind] for kind in ("cpu", device.type) if kind in random}
            for kind, state in random.items():
                torch.Generator(kind).set_state(state)  # which says whether it is one
        except MemoryError:
            raise
        except Exception as error:  # what somebody else wrote makes torch raise anything
            raise DataError(f"the checkpoint does not fit this run: {kind_and_reason(error)}") from error
        return random

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
        check_kind(path)
        with open(path, "rb") as file:
            try:
                checkpoint = cls(**load_saved(file))
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes torch.load raise anything
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast") from error
        for name, kind in {"settings": dict, "progress": dict, "states": dict, "random": list}.items():
            if not isinstance(getattr(checkpoint, name), kind):
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast: {name} is no {kind.__name__}")
        return checkpoint


def _load_optimizer(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Puts the averages of an AdamW back; its options stay this run's.

    Torch looks at no shapes here, and its fused steps write where the parameters' shapes lead.
    """
    options = [{name: value for name, value in own.items() if name != "params"} for own in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if state.keys() not in (set(), {"step", "exp_avg", "exp_avg_sq"}):
                raise ValueError(f"the optimizer has {', '.join(map(repr, state))} of a parameter")
            for name, value in state.items():
                like = value.new_empty(()) if name == "step" else parameter
                for what in ("dtype", "shape", "layout"):
                    if getattr(value, what) != getattr(like, what):
                        raise ValueError(f"{name} has the {what} {getattr(value, what)}, not {getattr(like, what)}")
                if value.stride() != like.stride():
                    raise ValueError(f"{name} has the strides {value.stride()}, not {like.stride()}")


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of this process's generators, of the CPU and of a GPU that is ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what :func:`random_states` returned; a generator of which nothing is known stays as it is."""
    for kind, state in states.items():
        torch.cuda.set_rng_state(state, device) if kind == "cuda" else torch.set_rng_state(state)

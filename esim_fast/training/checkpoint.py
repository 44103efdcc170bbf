"""Checkpoints, from which an interrupted run resumes."""

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
        settings: the run's settings; it resumes only with equal ones.
        progress: the current epoch and batch, and the metrics so far.
        states: state dicts by name, such as those of the network and the optimizer.
        random: for each process, the states of torch's random number generators by device type.
    """

    settings: dict[str, Any]
    progress: dict[str, Any]
    states: dict[str, Any]
    random: list[dict[str, Tensor]]

    def restore(self, owners: dict[str, Any], device: torch.device, rank: int = 0) -> dict[str, Tensor]:
        """Load the state dicts into ``owners``.

        Returns:
            The states of this process's generators, for ``set_random_states``; empty if the checkpoint was written by
            fewer processes.

        Raises:
            DataError: the checkpoint does not fit.
        """
        try:
            for name, owner in owners.items():
                load = partial(_load_optimizer, owner) if isinstance(owner, Optimizer) else owner.load_state_dict
                load(self.states[name])
            random = self.random[rank] if rank < len(self.random) else {}
            random = {kind: random[kind] for kind in ("cpu", device.type) if kind in random}
            for kind, state in random.items():
                torch.Generator(kind).set_state(state)  # raises if the state is invalid
        except MemoryError:
            raise
        except Exception as error:  # on a foreign file torch may raise anything
            raise DataError(f"the checkpoint does not fit this run: {kind_and_reason(error)}") from error
        return random

    def save(self, path: Path) -> None:
        """Write the checkpoint, replacing an earlier one atomically.

        Raises:
            OSError: the file cannot be written.
        """

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                try:
                    torch.save({field.name: getattr(self, field.name) for field in fields(self)}, file)
                except RuntimeError as error:  # torch hides the system's error, such as a full disk
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise

        replace_file(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Read a checkpoint, without executing anything in it.

        Raises:
            DataError: the file is not a checkpoint.
            OSError: the file cannot be opened.
        """
        check_kind(path)
        with open(path, "rb") as file:
            try:
                checkpoint = cls(**load_saved(file))
            except MemoryError:
                raise
            except Exception as error:  # on a damaged file torch.load may raise anything
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast") from error
        for name, kind in {"settings": dict, "progress": dict, "states": dict, "random": list}.items():
            if not isinstance(getattr(checkpoint, name), kind):
                raise DataError(f"{os.fspath(path)}: not a checkpoint of esim-fast: {name} is not a {kind.__name__}")
        return checkpoint


def _load_optimizer(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load an AdamW's averages, keeping this run's options.

    Torch checks no shapes here, and a fused step would write out of bounds.
    """
    options = [{name: value for name, value in own.items() if name != "params"} for own in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if state.keys() not in (set(), {"step", "exp_avg", "exp_avg_sq"}):
                raise ValueError(f"the optimizer's state of a parameter has {', '.join(map(repr, state))}")
            for name, value in state.items():
                like = value.new_empty(()) if name == "step" else parameter
                for what in ("dtype", "shape", "layout"):
                    if getattr(value, what) != getattr(like, what):
                        raise ValueError(f"{name} has the {what} {getattr(value, what)}, not {getattr(like, what)}")
                if value.stride() != like.stride():
                    raise ValueError(f"{name} has the strides {value.stride()}, not {like.stride()}")


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of this process's generators, by device type: the CPU's, and a GPU's if ``device`` is one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore what ``random_states`` returned; other generators keep their states."""
    for kind, state in states.items():
        torch.cuda.set_rng_state(state, device) if kind == "cuda" else torch.set_rng_state(state)

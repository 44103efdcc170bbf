"""The options that build a network, and the precisions it runs in.

The command line's parsers import this module, so it must not import torch, which takes seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

from .errors import first_line

FROM_VARIANT = "variant"  # use the variant's activation
# Activations, and whether embeddings and the classifier's hidden layer have dropout. "notebook" is the course
# notebook's mathematics with its recurrence corrected.
_VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"projection_activation": "relu", "classifier_activation": "tanh", "feedforward_dropout": True},
    "notebook": {"projection_activation": None, "classifier_activation": "relu", "feedforward_dropout": False},
}
_ACTIVATIONS = (None, "relu", "tanh")
_SIZES = ("hidden_size", "embedding_dim", "vocab_size", "num_labels")

PRECISIONS = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}  # name of the torch dtype for autocast
INFERENCE_PRECISIONS = (*PRECISIONS, "int8", "auto")  # auto: int8 where supported, else fp32


@dataclass(frozen=True)
class ESIMConfig:
    """The options needed to rebuild a saved ``esim_fast.ESIM``, validated and completed.

    The attributes are the arguments of ``esim_fast.ESIM`` with the same names. If ``embedding_dropout`` or an
    activation is not given, ``variant`` and ``dropout`` determine it.

    Raises:
        TypeError: a size or ``padding_idx`` is not an integer, or another option has the wrong type.
        ValueError: a size is not positive, ``padding_idx`` is not a row of the embedding, a dropout lies outside 0..1,
            or a name is unknown.
    """

    hidden_size: int
    embedding_dim: int
    vocab_size: int
    num_labels: int
    padding_idx: int | None = 1
    dropout: float = 0.5
    embedding_dropout: float | None = None
    variational_dropout: bool = False
    variant: str = "paper"
    projection_activation: str | None = FROM_VARIANT
    classifier_activation: str | None = FROM_VARIANT
    freeze_embedding: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            check_int(name, getattr(self, name), least=1)
        if self.padding_idx is not None:
            check_int("padding_idx", self.padding_idx, least=0, kind="an int or None")
            if self.padding_idx >= self.vocab_size:
                raise ValueError(
                    f"padding_idx = {self.padding_idx} must lie between 0 and vocab_size - 1 = {self.vocab_size - 1}"
                )
        for name in ("freeze_embedding", "variational_dropout"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        self._check_choice("variant", tuple(_VARIANTS))
        # The dataclass is frozen, so plain assignment would raise.
        if self.embedding_dropout is None:
            object.__setattr__(self, "embedding_dropout", self.feedforward_dropout)
        for name in ("projection_activation", "classifier_activation"):
            if getattr(self, name) == FROM_VARIANT:
                object.__setattr__(self, name, _VARIANTS[self.variant][name])
            self._check_choice(name, _ACTIVATIONS)
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= check_number(name, getattr(self, name)) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")

    @property
    def feedforward_dropout(self) -> float:
        """The dropout probability after the classifier's hidden layer."""
        return self.dropout if _VARIANTS[self.variant]["feedforward_dropout"] else 0.0

    def _check_choice(self, name: str, known: tuple[str | None, ...]) -> None:
        if getattr(self, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")


def check_int(name: str, value: object, least: int, kind: str = "an int") -> None:
    """Check that an option is an integer of at least ``least``, which must be 0 or 1.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {'positive' if least else '0 or more'}, got {value}")


def check_number(name: str, value: Any) -> float:
    """Return an option that must be a number; raise TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def check_precision(precision: str, device: torch.device, known: Iterable[str] = PRECISIONS) -> None:
    """Check that a network can run in a precision on a device.

    Raises:
        ValueError: the precision is unknown, or the device does not support it.
    """
    if precision not in known:
        raise ValueError(f"precision must be one of {', '.join(map(repr, known))}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU")


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return autocast's dtype for a precision, or None if the precision does not use autocast."""
    import torch  # slow to import

    name = PRECISIONS[precision]
    return None if name is None else getattr(torch, name)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a network runs in a precision; its parameters stay as they are.

    Raises:
        ValueError: the precision is unknown, or the device does not support it.
    """
    import torch  # slow to import

    check_precision(precision, device)
    dtype = autocast_dtype(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device that exists here; raise ValueError for any other."""
    import torch  # slow to import

    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: {first_line(error)}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch finds no usable GPU here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device}: torch finds {torch.cuda.device_count()} GPUs here")
    return device

"""The floating-point formats that a network runs in."""

import contextlib

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Whether a network can run so.

    Raises:
        ValueError: the precision is unknown, or the device cannot do it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU: torch has no fp16 LSTM for the CPU")


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which a network runs in a precision, with its parameters as they are.

    Raises:
        ValueError: as :func:`check_precision`.
    """
    check_precision(precision, device)
    dtype = PRECISIONS[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)

"""Whether Triton's kernels can run here, and what all their launches have in common.

Importing Triton takes a while, so it is imported only where its kernels can run: with a CUDA build of torch, or
interpreted on CPU tensors (``TRITON_INTERPRET=1``).
"""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import constant_when_compiled

AVAILABLE = find_spec("triton") is not None and bool(
    torch.version.cuda or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
)
INTERPRETED = False  # whether kernels run on CPU tensors, in Python
if AVAILABLE:
    import triton

    INTERPRETED = triton.knobs.runtime.interpret

_library = torch.library.Library("esim_fast", "FRAGMENT")


@constant_when_compiled
def can_run(device: torch.device) -> bool:
    """Whether the kernels take this device's tensors: NVIDIA GPUs from compute capability 8.0 on do, as Triton does."""
    if not AVAILABLE:
        return False
    if device.type == "cpu":
        return INTERPRETED
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def register(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Makes ``function`` the operator of this schema, ``torch.ops.esim_fast.<name>``, where the kernels can run."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        _library.impl(name, function, device)
    torch.library.register_fake(f"esim_fast::{name}")(fake)


class Config(NamedTuple):
    """How a kernel is cut up and compiled.

    Attributes:
        block_k: terms at a time, in sums over features or units.
        block_d: features or units of the result at a time.
        num_warps, num_stages: of a program; how far its loads run ahead.
        tile: tokens at a time, where a pair takes many tiles.
        max_registers: of a thread. Where the compiler is not told, it aims at more threads at once and may spill a few.
    """

    block_k: int
    block_d: int
    num_warps: int
    num_stages: int
    tile: int = 0
    max_registers: int | None = None

    @cache  # noqa: B019 (there are a few dozen)
    def fitting(self, width: int) -> "Config":
        """The same with no block wider than ``width`` features are."""
        widest = max(16, power_of_2(width))
        return self._replace(block_k=min(self.block_k, widest), block_d=min(self.block_d, widest))

    def options(self) -> dict[str, Any]:
        """What the compiler is told."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options | ({"maxnreg": self.max_registers} if self.max_registers else {})


class Launch(NamedTuple):
    """A kernel with all it needs: to be started, or, without a GPU, to be compiled and looked at."""

    kernel: Any
    programs: int
    arguments: tuple
    constants: dict[str, Any]
    options: dict[str, Any]

    def start(self) -> None:
        if self.programs:
            self.kernel[(self.programs,)](*self.arguments, **self.constants, **self.options)


# Triton has these two as well, made for kernels: on the host they take as long as a launch.
def blocks_in(size: int, block: int) -> int:
    """How many blocks cover ``size``."""
    return -(-size // block)


def power_of_2(size: int) -> int:
    """The least one that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def aligned(address: Any) -> Any:
    """A part of a larger tensor may begin anywhere, and Triton would compile anew for each pattern of that."""
    return address.clone() if isinstance(address, Tensor) and address.data_ptr() % 16 else address

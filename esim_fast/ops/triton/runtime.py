"""Whether Triton kernels can run here, and what all launches share.

Triton is slow to import, so it is imported only if its kernels can run: with a CUDA build of torch, or interpreted on
CPU tensors (``TRITON_INTERPRET=1``).
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
    """Whether the kernels support this device: NVIDIA GPUs with compute capability 8.0 or higher, Triton's minimum."""
    if not AVAILABLE:
        return False
    if device.type == "cpu":
        return INTERPRETED
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def register(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register ``function`` as the operator ``torch.ops.esim_fast.<name>`` for the devices on which the kernels can
    run.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for device in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        _library.impl(name, function, device)
    torch.library.register_fake(f"esim_fast::{name}")(fake)


class Config(NamedTuple):
    """How a kernel is split into blocks and compiled.

    Attributes:
        block_k: terms per block in sums over features or units.
        block_d: features or units of the result per block.
        num_warps: warps per program.
        num_stages: stages of the software pipeline for loads.
        tile: tokens per tile, in kernels with many tiles.
        max_registers: registers per thread. If None, the compiler aims for more concurrent threads and may spill a few.
    """

    block_k: int
    block_d: int
    num_warps: int
    num_stages: int
    tile: int = 0
    max_registers: int | None = None

    @cache  # noqa: B019 (there are a few dozen)
    def fitting(self, width: int) -> "Config":
        """Return this configuration with blocks no wider than ``width`` features need."""
        widest = max(16, power_of_2(width))
        return self._replace(block_k=min(self.block_k, widest), block_d=min(self.block_d, widest))

    def options(self) -> dict[str, Any]:
        """Return the compiler's options."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options | ({"maxnreg": self.max_registers} if self.max_registers else {})


class Launch(NamedTuple):
    """A kernel with everything it needs to be started or, without a GPU, compiled for inspection."""

    kernel: Any
    programs: int
    arguments: tuple
    constants: dict[str, Any]
    options: dict[str, Any]

    def start(self) -> None:
        if self.programs:
            self.kernel[(self.programs,)](*self.arguments, **self.constants, **self.options)


# Triton's own versions of these two take as long as a launch when called on the host.
def blocks_in(size: int, block: int) -> int:
    """Return how many blocks cover ``size``."""
    return -(-size // block)


def power_of_2(size: int) -> int:
    """Return the smallest power of 2 that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


@cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def aligned(address: Any) -> Any:
    """Copy a tensor that is not aligned to 16 bytes: Triton would compile a kernel for each alignment pattern."""
    return address.clone() if isinstance(address, Tensor) and address.data_ptr() % 16 else address

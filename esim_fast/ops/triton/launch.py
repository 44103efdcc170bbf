"""Which kernels serve a batch, cut up how, and their launches: the operators' implementation.

Nothing here reads a length back from a GPU: tiles follow from the longest sentence as the caller knows it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import many_tiles, one_tile
from .tokens import Tokens

INTERPRETED = triton.knobs.runtime.interpret


class Config(NamedTuple):
    """How a kernel is cut up.

    Attributes:
        block_k: features at a time in sums over all of them.
        block_d: features of the result at a time.
        num_warps, num_stages: of a program; how far its loads run ahead.
        tile: tokens at a time, in many_tiles.
    """

    block_k: int
    block_d: int
    num_warps: int
    num_stages: int
    tile: int = 0


TILES = (16, 32, 64)  # sides of the tile of scores that a program can hold as a whole
# By kernel, bytes of an element, and the larger side of the tile.
ONE_TILE = {
    ("forward", 4, 16): Config(64, 64, 4, 2),
    ("forward", 4, 32): Config(64, 64, 4, 2),
    ("forward", 4, 64): Config(32, 32, 4, 2),
    ("forward", 2, 16): Config(64, 64, 4, 2),
    ("forward", 2, 32): Config(64, 64, 4, 2),
    ("forward", 2, 64): Config(64, 64, 4, 2),
    ("backward", 4, 16): Config(32, 64, 4, 2),
    ("backward", 4, 32): Config(32, 64, 4, 2),
    ("backward", 4, 64): Config(32, 32, 8, 2),
    ("backward", 2, 16): Config(64, 64, 4, 2),
    ("backward", 2, 32): Config(64, 64, 4, 2),
    ("backward", 2, 64): Config(32, 32, 8, 2),
}
# By kernel and bytes of an element. What backward_statistics and backward make of a tile must be the same numbers.
MANY_TILES = {
    ("forward", 4): Config(32, 64, 4, 2, tile=32),
    ("forward", 2): Config(64, 128, 8, 2, tile=64),
    ("backward_statistics", 4): Config(32, 0, 4, 2, tile=32),
    ("backward_statistics", 2): Config(32, 0, 8, 2, tile=64),
    ("backward", 4): Config(32, 32, 4, 2, tile=32),
    ("backward", 2): Config(32, 64, 8, 2, tile=64),
}


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


class Side(NamedTuple):
    """The sentences of one side, and what the host knows of them."""

    tokens: Tokens
    length: int  # L of padded input, the longest sentence of row-addressed one
    batch_stride: int
    longest: int

    @property
    def pairs(self) -> int:
        return len(self.tokens.x if self.tokens.start is None else self.tokens.start)

    @property
    def tile(self) -> int | None:
        """The smallest tile that all sentences fit in, if there is one."""
        return next((tile for tile in TILES if self.longest <= tile), None)


def sides_of(a: Tensor, b: Tensor | None, addresses: Sequence[Any]) -> tuple[Side, Side]:
    """From the operators' arguments: start, step, lengths and mask of a, the same of b, and the longest of both."""
    *addresses, a_longest, b_longest, _ = addresses
    return _side(a, *addresses[:4], a_longest), _side(a if b is None else b, *addresses[4:], b_longest)


def _side(x: Tensor, start: Tensor | None, step: Tensor | None, lengths, mask, longest: int) -> Side:
    if start is None:
        return Side(Tokens(x, None, None, lengths, mask, x.stride(1)), x.shape[1], x.stride(0), longest)
    return Side(Tokens(x, start, step, lengths, mask, 0), longest, 0, longest)


def forward(a: Tensor, b: Tensor | None, *addresses: Any) -> tuple[Tensor, Tensor]:
    """``esim_fast::local_inference_triton``: m_a and m_b."""
    m_a, m_b = new_results(a, b, *addresses)
    with torch.cuda.device_of(a):
        for launch in plan_forward(*sides_of(a, b, addresses), m_a, m_a if b is None else m_b):
            launch.start()
    return m_a, m_b


def backward(grad_m_a: Tensor, grad_m_b: Tensor, a: Tensor, b: Tensor | None, *addresses: Any) -> tuple[Tensor, Tensor]:
    """``esim_fast::local_inference_triton_backward``: the gradients of a and b."""
    grad_a, grad_b = new_gradients(grad_m_a, grad_m_b, a, b, *addresses)
    grad_m_a = grad_m_a.contiguous()
    grad_m = (grad_m_a, grad_m_a if b is None else grad_m_b.contiguous())
    with torch.cuda.device_of(a):
        gradients = (grad_a, grad_a if b is None else grad_b)
        for launch in plan_backward(*sides_of(a, b, addresses), *grad_m, *gradients):
            launch.start()
    return grad_a, grad_b


def new_results(a: Tensor, b: Tensor | None, *addresses: Any) -> tuple[Tensor, Tensor]:
    """What :func:`forward` returns, before anything is computed. Where b is None, the first tensor holds both."""
    return _like(a, b, addresses, times=4)


def new_gradients(
    grad_m_a: Tensor, grad_m_b: Tensor, a: Tensor, b: Tensor | None, *addresses: Any
) -> tuple[Tensor, Tensor]:
    """What :func:`backward` returns, before anything is computed. Where b is None, the first tensor holds both."""
    return _like(a, b, addresses, times=1)


def _like(a: Tensor, b: Tensor | None, addresses: Sequence[Any], times: int) -> tuple[Tensor, Tensor]:
    """Tensors like a and b, ``times`` as wide, and cleared unless the kernels write all of them."""
    sides = sides_of(a, b, addresses)
    every_row = addresses[-1]

    def new(side: Side) -> Tensor:
        x = side.tokens.x
        padded = side.tokens.start is None
        all_written = (not _fit_one_tile(*sides) or side.length <= side.tile) if padded else every_row
        shape = (*x.shape[:-1], times * x.shape[-1])
        return x.new_empty(shape) if all_written and side.pairs else x.new_zeros(shape)

    return new(sides[0]), a.new_empty(0) if b is None else new(sides[1])


def plan_forward(a: Side, b: Side, m_a: Tensor, m_b: Tensor) -> list[Launch]:
    if _fit_one_tile(a, b):
        return [_one_tile("forward", a, b, m_a, m_b)]
    return [_many_tiles("forward", a, b, m_a), _many_tiles("forward", b, a, m_b)]


def plan_backward(a: Side, b: Side, grad_m_a: Tensor, grad_m_b: Tensor, grad_a: Tensor, grad_b: Tensor) -> list[Launch]:
    if _fit_one_tile(a, b):
        return [_one_tile("backward", a, b, grad_m_a, grad_m_b, grad_a, grad_b)]
    of_a, of_b = (grad_m_a.new_empty(3, side.pairs, side.length, dtype=torch.float32) for side in (a, b))
    return [
        _many_tiles("backward_statistics", a, b, grad_m_a, of_a, a.pairs, SWAPPED=False),
        _many_tiles("backward_statistics", b, a, grad_m_b, of_b, a.pairs, SWAPPED=True),
        _many_tiles("backward", a, b, grad_m_a, grad_m_b, of_a, of_b, grad_a, a.pairs, SWAPPED=False),
        _many_tiles("backward", b, a, grad_m_b, grad_m_a, of_b, of_a, grad_b, a.pairs, SWAPPED=True),
    ]


def _fit_one_tile(a: Side, b: Side) -> bool:
    return a.tile is not None and b.tile is not None


def _one_tile(kernel: str, a: Side, b: Side, *tensors: Tensor) -> Launch:
    x = a.tokens.x
    config = ONE_TILE[kernel, x.element_size(), max(a.tile, b.tile)]
    blocks = max(1, triton.cdiv(x.shape[-1], config.block_d))
    # Two programs for each multiprocessor, as far as there are features to share out, and as evenly as they go.
    wanted = max(1, min(blocks, 2 * _multiprocessors(x.device) // max(1, a.pairs)))
    splits = triton.cdiv(blocks, triton.cdiv(blocks, wanted))
    constants = {"A_TILE": a.tile, "B_TILE": b.tile, "SPLITS": splits}
    arguments = (a.tokens, b.tokens, a.length, b.length, a.batch_stride, b.batch_stride, *tensors)
    return _launch(getattr(one_tile, kernel), config, a.pairs * splits, a, b, arguments, constants)


def _many_tiles(kernel: str, x: Side, y: Side, *others: Any, **constants: Any) -> Launch:
    config = MANY_TILES[kernel, x.tokens.x.element_size()]
    blocks = triton.cdiv(x.tokens.x.shape[-1], config.block_d) if config.block_d else 1
    programs = x.pairs * triton.cdiv(x.length, config.tile) * blocks
    arguments = (x.tokens, y.tokens, x.length, y.length, x.batch_stride, y.batch_stride, *others)
    return _launch(getattr(many_tiles, kernel), config, programs, x, y, arguments, {**constants, "TILE": config.tile})


def _launch(kernel, config: Config, programs: int, a: Side, b: Side, arguments: tuple, constants: dict) -> Launch:
    x = a.tokens.x
    width, vector = x.shape[-1], 16 // x.element_size()
    strides = [stride for side in (a, b) for stride in (side.batch_stride, side.tokens.time_stride)]
    constants |= {
        "D": width,
        # Whether every token begins at a multiple of 16 bytes, if the tensors do.
        "VECTOR": 1 if any(of % vector for of in (width, *strides)) else vector,
        "PRECISION": _precision(x.dtype),
        "BLOCK_K": config.block_k,
    }
    if config.block_d:
        constants["BLOCK_D"] = config.block_d
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return Launch(kernel, programs if width else 0, arguments, constants, options)


def _precision(dtype: torch.dtype) -> str:
    """How tiles are multiplied: fp32 in TF32 where PyTorch does so, else in three TF32 products, which are fp32's."""
    if dtype != torch.float32:
        return "ieee"
    # torch.set_float32_matmul_precision sets this too; asking for what it set raises once somebody has set this.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

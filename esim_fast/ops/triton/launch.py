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
from .arguments import check_arguments, check_gradients
from .tokens import Tokens

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: kernels run on CPU tensors, in Python


class Config(NamedTuple):
    """How a kernel is cut up.

    Attributes:
        block_k: features at a time in sums over all of them.
        block_d: features of the result at a time.
        num_warps, num_stages: of a program; how far its loads run ahead.
        tile: tokens at a time, in many_tiles.
        max_registers: of a thread. Where the compiler is not told, it aims at more threads at once and may spill a few.
    """

    block_k: int
    block_d: int
    num_warps: int
    num_stages: int
    tile: int = 0
    max_registers: int | None = None


# Chosen by what the compiler makes of them for every GPU supported (tools/kernel_resources.py prints it): no register
# goes to memory, and as much is loaded at a time as that leaves room for. (With Triton 3.6 a few of fp32's 64 by 64,
# forward, do before compute capability 9.0.) In half precision those of 16 by 16 and 32 by 16 tokens, and forward of 64
# by 16 and 64 by 32, are the fastest of 65 on an H100 (`python -m benchmarks.sweep`, 2026-11-24). The others have not
# been timed against each other.
# By kernel, arithmetic, and the sides of the tile of scores that a program holds as a whole, the larger first.
ONE_TILE = {
    ("forward", "half", 16, 16): Config(128, 64, 4, 3),
    ("forward", "half", 32, 16): Config(64, 64, 4, 4),
    ("forward", "half", 32, 32): Config(128, 64, 8, 3),
    ("forward", "half", 64, 16): Config(64, 32, 4, 3),
    ("forward", "half", 64, 32): Config(128, 64, 8, 1),
    ("forward", "half", 64, 64): Config(128, 64, 8, 1),
    ("forward", "tf32", 16, 16): Config(64, 64, 4, 3),
    ("forward", "tf32", 32, 16): Config(64, 64, 8, 2),
    ("forward", "tf32", 32, 32): Config(64, 64, 8, 2),
    ("forward", "tf32", 64, 16): Config(32, 32, 8, 2),
    ("forward", "tf32", 64, 32): Config(32, 32, 8, 2),
    ("forward", "tf32", 64, 64): Config(32, 32, 8, 2),
    ("forward", "ieee", 16, 16): Config(64, 64, 4, 3),
    ("forward", "ieee", 32, 16): Config(64, 64, 8, 3),
    ("forward", "ieee", 32, 32): Config(64, 64, 8, 3),
    ("forward", "ieee", 64, 16): Config(32, 16, 8, 2),
    ("forward", "ieee", 64, 32): Config(32, 16, 8, 2),
    ("forward", "ieee", 64, 64): Config(32, 16, 8, 2),
    ("backward", "half", 16, 16): Config(32, 64, 1, 4),
    ("backward", "half", 32, 16): Config(32, 64, 2, 3),
    ("backward", "half", 32, 32): Config(32, 64, 4, 3),
    ("backward", "half", 64, 16): Config(32, 64, 4, 3),
    ("backward", "half", 64, 32): Config(16, 32, 4, 2),
    ("backward", "half", 64, 64): Config(16, 16, 8, 2),
    ("backward", "tf32", 16, 16): Config(32, 64, 4, 2),
    ("backward", "tf32", 32, 16): Config(32, 64, 8, 2),
    ("backward", "tf32", 32, 32): Config(32, 64, 8, 2),
    ("backward", "tf32", 64, 16): Config(32, 32, 8, 2),
    ("backward", "ieee", 16, 16): Config(32, 32, 4, 3),
    ("backward", "ieee", 32, 16): Config(32, 64, 8, 2),
    # The other gradients in fp32 do not fit the registers: many_tiles takes them.
}
# By kernel and arithmetic. What a kernel does not block is 0.
MANY_TILES = {
    ("scores", "half"): Config(64, 0, 8, 3, tile=64),
    ("scores", "tf32"): Config(32, 0, 4, 3, tile=64, max_registers=168),
    ("scores", "ieee"): Config(32, 0, 8, 2, tile=64),
    ("forward", "half"): Config(0, 128, 4, 2, tile=32, max_registers=168),
    ("forward", "tf32"): Config(0, 64, 8, 2, tile=64),
    ("forward", "ieee"): Config(0, 64, 4, 2, tile=32, max_registers=224),
    ("backward_enhance", "half"): Config(0, 128, 4, 1, tile=16),
    ("backward_enhance", "tf32"): Config(0, 64, 4, 1, tile=16),
    ("backward_enhance", "ieee"): Config(0, 64, 4, 1, tile=16),
    ("products", "half"): Config(32, 0, 8, 2, tile=64),
    ("products", "tf32"): Config(32, 0, 8, 2, tile=32),
    ("products", "ieee"): Config(16, 0, 4, 2, tile=32),
    ("backward_softmax", "half"): Config(0, 0, 4, 2, tile=32, max_registers=128),
    ("backward_softmax", "tf32"): Config(0, 0, 4, 2, tile=32, max_registers=128),
    ("backward_softmax", "ieee"): Config(0, 0, 4, 2, tile=32, max_registers=128),
    ("backward", "half"): Config(0, 64, 4, 2, tile=32),
    ("backward", "tf32"): Config(0, 64, 4, 2, tile=32),
    ("backward", "ieee"): Config(0, 64, 8, 2, tile=32, max_registers=224),
}
TILES = (16, 32, 64)
PRECISIONS = {"half": "ieee", "tf32": "tf32", "ieee": "tf32x3"}
PROGRAMS_PER_MULTIPROCESSOR = 4  # that a small batch is split into, so that enough loads are under way


# Triton has these, too, made for kernels: on the host they take as long as a launch.
def blocks_in(size: int, block: int) -> int:
    """How many blocks cover ``size``."""
    return -(-size // block)


def power_of_2(size: int) -> int:
    """The least one that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


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
    longest: int  # sentence, if the caller knows; at most length

    @property
    def width(self) -> int:
        return self.tokens.x.shape[-1]

    @property
    def pairs(self) -> int:
        return len(self.tokens.x if self.tokens.start is None else self.tokens.start)

    @property
    def tile(self) -> int:
        """The smallest tile that all sentences fit in, 0 if there is none."""
        return next((tile for tile in TILES if self.longest <= tile), 0)


def sides_of(a: Tensor, b: Tensor | None, addresses: Sequence[Any]) -> tuple[Side, Side]:
    """From the operators' arguments: start, step, lengths and mask of a, the same of b, and the longest of both."""
    *addresses, a_longest, b_longest, _ = addresses
    return _side(a, addresses[:4], a_longest), _side(a if b is None else b, addresses[4:], b_longest)


def _side(x: Tensor, addresses: Sequence[Any], longest: int) -> Side:
    start, step, lengths, mask = addresses
    if start is None:
        longest = max(0, min(longest, x.shape[1]))
        return Side(Tokens(x, None, None, lengths, mask, x.stride(1)), x.shape[1], x.stride(0), longest)
    return Side(Tokens(x, start, step, lengths, mask, 0), longest, 0, longest)


def forward(a: Tensor, b: Tensor | None, *addresses: Any) -> tuple[Tensor, Tensor]:
    """``esim_fast::local_inference_triton``: m_a and m_b."""
    check_arguments(a, b, addresses)
    m_a, m_b = new_results(a, b, *addresses)
    aligned = [_aligned(of) for of in addresses]
    with torch.cuda.device_of(a):
        for launch in plan_forward(*sides_of(a, b, aligned), m_a, m_a if b is None else m_b):
            launch.start()
    return m_a, m_b


def backward(grad_m_a: Tensor, grad_m_b: Tensor, a: Tensor, b: Tensor | None, *addresses: Any) -> tuple[Tensor, Tensor]:
    """``esim_fast::local_inference_triton_backward``: the gradients of a and b."""
    check_arguments(a, b, addresses)
    check_gradients(grad_m_a, grad_m_b, a, b)
    grad_a, grad_b = new_gradients(grad_m_a, grad_m_b, a, b, *addresses)
    grad_m_a = grad_m_a.contiguous()
    grad_m = (grad_m_a, grad_m_a if b is None else grad_m_b.contiguous())
    aligned = [_aligned(of) for of in addresses]
    with torch.cuda.device_of(a):
        gradients = (grad_a, grad_a if b is None else grad_b)
        for launch in plan_backward(*sides_of(a, b, aligned), *grad_m, *gradients):
            launch.start()
    return grad_a, grad_b


def _aligned(address: Any) -> Any:
    """A part of a larger tensor may begin anywhere, and for each pattern of that Triton would compile anew."""
    return address.clone() if isinstance(address, Tensor) and address.data_ptr() % 16 else address


def new_results(a: Tensor, b: Tensor | None, *addresses: Any) -> tuple[Tensor, Tensor]:
    """What :func:`forward` returns, before anything is computed. Where b is None, the first tensor holds both."""
    return _like(a, b, addresses, "forward", times=4)


def new_gradients(
    grad_m_a: Tensor, grad_m_b: Tensor, a: Tensor, b: Tensor | None, *addresses: Any
) -> tuple[Tensor, Tensor]:
    """What :func:`backward` returns, before anything is computed. Where b is None, the first tensor holds both."""
    return _like(a, b, addresses, "backward", times=1)


def _like(a: Tensor, b: Tensor | None, addresses: Sequence[Any], kernel: str, times: int) -> tuple[Tensor, Tensor]:
    """Tensors like a and b, ``times`` as wide, and cleared unless the kernels write all of them."""
    sides = sides_of(a, b, addresses)
    every_row = addresses[-1]
    one = _one_tile_config(kernel, *sides)

    def new(side: Side) -> Tensor:
        x = side.tokens.x
        padded = side.tokens.start is None
        # Many tiles cover all padding, one need not.
        all_written = (one is None or side.length <= side.tile) if padded else every_row
        shape = (*x.shape[:-1], times * x.shape[-1])
        return x.new_empty(shape) if all_written and side.pairs else x.new_zeros(shape)

    return new(sides[0]), a.new_empty(0) if b is None else new(sides[1])


def plan_forward(a: Side, b: Side, m_a: Tensor, m_b: Tensor) -> list[Launch]:
    if config := _one_tile_config("forward", a, b):
        if a.tile < b.tile:  # the sides are alike, and with the larger first there are fewer kernels to compile
            a, b, m_a, m_b = b, a, m_b, m_a
        return [_one_tile(one_tile.forward, config, a, b, m_a, m_b)]
    scores = _pairs_of_words(a, b, torch.float32)
    return [
        _many_tiles(many_tiles.scores, a, b, scores),
        _many_tiles(many_tiles.forward, a, b, scores, m_a, SWAPPED=False),
        _many_tiles(many_tiles.forward, b, a, scores, m_b, SWAPPED=True),
    ]


def plan_backward(a: Side, b: Side, grad_m_a: Tensor, grad_m_b: Tensor, grad_a: Tensor, grad_b: Tensor) -> list[Launch]:
    if config := _one_tile_config("backward", a, b):
        if a.tile < b.tile:
            a, b, grad_m_a, grad_m_b, grad_a, grad_b = b, a, grad_m_b, grad_m_a, grad_b, grad_a
        return [_one_tile(one_tile.backward, config, a, b, grad_m_a, grad_m_b, grad_a, grad_b)]
    scores, grad_alpha, grad_beta = (_pairs_of_words(a, b, torch.float32) for _ in range(3))
    alpha, beta, grad_scores = (_pairs_of_words(a, b, a.tokens.x.dtype) for _ in range(3))
    of_a, of_b = (side.tokens.x.new_empty(side.tokens.x.shape) for side in (a, b))  # gradients of their alignments
    enhance, softmax, backward = many_tiles.backward_enhance, many_tiles.backward_softmax, many_tiles.backward
    return [
        _many_tiles(enhance, a, b, grad_m_a, of_a),
        _many_tiles(enhance, b, a, grad_m_b, of_b),
        _many_tiles(many_tiles.products, a, b, of_a, of_b, scores, grad_alpha, grad_beta),
        # The part of a in the gradient of the scores takes the place of what it is made of.
        _many_tiles(softmax, a, b, scores, grad_alpha, alpha, None, grad_alpha, SWAPPED=False),
        _many_tiles(softmax, b, a, scores, grad_beta, beta, grad_alpha, grad_scores, SWAPPED=True),
        _many_tiles(backward, a, b, grad_m_a, of_b, alpha, beta, grad_scores, grad_a, SWAPPED=False),
        _many_tiles(backward, b, a, grad_m_b, of_a, beta, alpha, grad_scores, grad_b, SWAPPED=True),
    ]


def _pairs_of_words(a: Side, b: Side, dtype: torch.dtype) -> Tensor:
    """For a number of each word of a with each of b; rows as many_tiles pads them."""
    return a.tokens.x.new_empty(a.pairs, a.longest, 16 * blocks_in(b.longest, 16), dtype=dtype)


def _one_tile_config(kernel: str, a: Side, b: Side) -> Config | None:
    """None where a pair takes many tiles."""
    if not a.tile or not b.tile:
        return None
    config = ONE_TILE.get((kernel, _arithmetic(a), max(a.tile, b.tile), min(a.tile, b.tile)))
    return config and _fitting(config, a.width)


@cache
def _fitting(config: Config, width: int) -> Config:
    """No blocks wider than the features are many."""
    widest = max(16, power_of_2(width))
    return config._replace(block_k=min(config.block_k, widest), block_d=min(config.block_d, widest))


def _arithmetic(side: Side) -> str:
    """How tiles are multiplied: fp32 in TF32 where PyTorch's matrix products may be, else exactly."""
    if side.tokens.x.element_size() == 2:
        return "half"
    # torch.set_float32_matmul_precision sets this too; asking for what it set raises once somebody has set this.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _one_tile(kernel: Any, config: Config, a: Side, b: Side, *tensors: Tensor) -> Launch:
    blocks = max(1, blocks_in(a.width, config.block_d))
    # As many programs as there are features to share out, if the batch is small, and as evenly as they go.
    wanted = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(a.tokens.x.device) // max(1, a.pairs)
    splits = blocks_in(blocks, blocks_in(blocks, max(1, min(blocks, wanted))))
    constants = {"A_TILE": a.tile, "B_TILE": b.tile, "SPLITS": splits, "BLOCK_D": config.block_d}
    return _launch(kernel, config, a.pairs * splits, a, b, tensors, constants)


def _many_tiles(kernel: Any, x: Side, y: Side, *others: Any, **constants: Any) -> Launch:
    config = _fitting(MANY_TILES[kernel.__name__, _arithmetic(x)], x.width)
    constants["TILE"] = config.tile
    # Padding is written by these two alone.
    length = x.length if kernel in (many_tiles.forward, many_tiles.backward) else x.longest
    programs = x.pairs * blocks_in(length, config.tile)
    if config.block_k:
        programs *= blocks_in(y.longest, config.tile)
    if config.block_d:
        constants["BLOCK_D"] = config.block_d
        programs *= blocks_in(x.width, config.block_d)
    return _launch(kernel, config, programs, x, y, (x.longest, y.longest, *others), constants)


def _launch(kernel: Any, config: Config, programs: int, a: Side, b: Side, others: tuple, constants: dict) -> Launch:
    arithmetic, vector = _arithmetic(a), 16 // a.tokens.x.element_size()
    strides = [stride for side in (a, b) for stride in (side.batch_stride, side.tokens.time_stride)]
    common = {
        "D": a.width,
        # Whether every token begins at a multiple of 16 bytes, if the tensors do.
        "VECTOR": 1 if any(of % vector for of in (a.width, *strides)) else vector,
        "PRECISION": PRECISIONS[arithmetic],
        "BLOCK_K": config.block_k,
    }
    constants |= {name: value for name, value in common.items() if name in kernel.arg_names}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    if config.max_registers:
        options["maxnreg"] = config.max_registers
    arguments = (a.tokens, b.tokens, a.length, b.length, a.batch_stride, b.batch_stride, *others)
    return Launch(kernel, programs if a.width else 0, arguments, constants, options)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

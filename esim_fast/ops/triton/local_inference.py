"""Select and launch the kernels of local inference: the implementation of the operators.

No length is read back from a GPU. Tiles are chosen by the longest sentence that the caller knows of.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import many_tiles, on_chip, one_tile, runtime
from .arguments import check_arguments, check_gradient, check_packed
from .runtime import Config, Launch, blocks_in
from .tokens import Tokens

# Chosen by compiler output for every supported GPU (see tools/kernel_resources.py): the largest loads without register
# spills. (Exception: with Triton 3.6, fp32 forward with 64 by 64 tokens spills a few below compute capability 9.0.) In
# half precision, 16 by 16 and 32 by 16 tokens, and forward with 64 by 16 and 64 by 32, are the fastest of 65 on an H100
# (`python -m benchmarks.sweep`, 2026-11-24). The others have not been timed.
# Keys: kernel, arithmetic, and the sides of the tile of scores that a program holds, the larger first.
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
    # many_tiles computes the other fp32 gradients.
}
# Like ONE_TILE, but programs keep all rows of their pair in registers. An entry is preferred to ONE_TILE's if rows have
# at most WIDEST_ON_CHIP features. There are none yet, because no GPU has timed the candidates below.
ON_CHIP: dict[tuple, Config] = {}
WIDEST_ON_CHIP = 640
# What `python -m benchmarks.sweep` compares with the entries above. It has never run on a GPU. A block_k of 0 is for
# ON_CHIP, all others are for ONE_TILE. Not listed, because registers spilled on some GPU in all that was tried (see
# benchmarks/NOTES.md): on chip, backward, half, 32 by 32 and 64 by 16 tokens; with one tile, backward, tf32 and ieee,
# 64 by 64. On chip, backward, 64 by 32 was not tried.
CANDIDATES: dict[tuple, tuple[Config, ...]] = {
    ("forward", "half", 16, 16): (Config(0, 64, 4, 1),),
    ("forward", "half", 32, 16): (Config(0, 64, 4, 1),),
    ("forward", "half", 32, 32): (Config(0, 64, 8, 1),),
    ("forward", "half", 64, 16): (Config(0, 64, 8, 1),),
    ("forward", "half", 64, 32): (Config(0, 32, 8, 1),),
    ("backward", "half", 16, 16): (Config(0, 64, 8, 1),),
    ("backward", "half", 32, 16): (Config(0, 64, 8, 1),),
    ("backward", "tf32", 64, 32): (Config(16, 16, 8, 2),),
    ("backward", "ieee", 32, 32): (Config(16, 16, 8, 1),),
    ("backward", "ieee", 64, 16): (Config(16, 32, 8, 2),),
    ("backward", "ieee", 64, 32): (Config(16, 16, 8, 2),),
}
# Keys: kernel and arithmetic. A block size is 0 if the kernel does not use it.
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
INPUT_PRECISION = {"half": "ieee", "tf32": "tf32", "ieee": "tf32x3"}
PROGRAMS_PER_MULTIPROCESSOR = 4  # target for small batches, so that enough loads are in flight


class Side(NamedTuple):
    """The sentences of one side, and what the host knows about them."""

    tokens: Tokens
    length: int  # L of padded input, or the longest sentence of row-addressed input
    batch_stride: int
    longest: int  # upper bound of the longest sentence, at most length

    @property
    def width(self) -> int:
        return self.tokens.x.shape[-1]

    @property
    def pairs(self) -> int:
        return len(self.tokens.x if self.tokens.start is None else self.tokens.start)

    @property
    def tile(self) -> int:
        """The smallest tile that fits all sentences, or 0."""
        return next((tile for tile in TILES if self.longest <= tile), 0)


def sides_of(a: Tensor, b: Tensor, addresses: Sequence[Any]) -> tuple[Side, Side]:
    """Build both sides from the operators' arguments: start, step, lengths and mask of a, then of b, and the longest of
    each.
    """
    *tensors, a_longest, b_longest, _ = addresses
    return _side(a, tensors[:4], a_longest), _side(b, tensors[4:], b_longest)


def _side(x: Tensor, addresses: Sequence[Any], longest: int) -> Side:
    start, step, lengths, mask = map(runtime.aligned, addresses)
    if start is None:
        longest = max(0, min(longest, x.shape[1]))
        return Side(Tokens(x, None, None, lengths, mask, x.stride(1)), x.shape[1], x.stride(0), longest)
    return Side(Tokens(x, start, step, lengths, mask, 0), longest, 0, longest)


def forward(a: Tensor, b: Tensor, *addresses: Any) -> tuple[Tensor, Tensor]:
    """Implement ``esim_fast::local_inference_triton``: return m_a and m_b."""
    check_arguments(a, b, addresses)
    sides = sides_of(a, b, addresses)
    m_a, m_b = _new_like("forward", sides, sides, addresses, times=4)
    _start(a, plan_forward(*sides, m_a, m_b))
    return m_a, m_b


def backward(grad_m_a: Tensor, grad_m_b: Tensor, a: Tensor, b: Tensor, *addresses: Any) -> tuple[Tensor, Tensor]:
    """Implement ``esim_fast::local_inference_triton_backward``: return the gradients of a and b."""
    check_arguments(a, b, addresses)
    check_gradient("grad_m_a", grad_m_a, a)
    check_gradient("grad_m_b", grad_m_b, b)
    sides = sides_of(a, b, addresses)
    grad_a, grad_b = _new_like("backward", sides, sides, addresses, times=1)
    _start(a, plan_backward(*sides, grad_m_a.contiguous(), grad_m_b.contiguous(), grad_a, grad_b))
    return grad_a, grad_b


def forward_packed(x: Tensor, *addresses: Any, filled: Tensor | None = None) -> Tensor:
    """Implement ``esim_fast::local_inference_packed_triton``: return m."""
    check_packed(x, addresses, filled)
    sides = sides_of(x, x, addresses)
    (m,) = _new_like("forward", sides, sides[:1], addresses, times=4, filled=filled)
    _start(x, plan_forward(*sides, m, m, filled))
    return m


def backward_packed(grad_m: Tensor, x: Tensor, *addresses: Any, filled: Tensor | None = None) -> Tensor:
    """Implement ``esim_fast::local_inference_packed_triton_backward``: return the gradient of x."""
    check_packed(x, addresses, filled)
    check_gradient("grad_m", grad_m, x)
    sides = sides_of(x, x, addresses)
    (grad,) = _new_like("backward", sides, sides[:1], addresses, times=1, filled=filled)
    grad_m = grad_m.contiguous()
    _start(x, plan_backward(*sides, grad_m, grad_m, grad, grad, filled))
    return grad


def _start(x: Tensor, launches: list[Launch]) -> None:
    with torch.cuda.device_of(x):
        for launch in launches:
            launch.start()


def _new_like(
    kernel: str,
    sides: tuple[Side, Side],
    wanted: Sequence[Side],
    addresses: Sequence[Any],
    times: int,
    filled: Tensor | None = None,
) -> list[Tensor]:
    """Allocate a tensor per wanted side, ``times`` as wide, zeroed unless the kernels write every element."""
    every_row = addresses[-1] or filled is not None
    one = _one_tile_config(kernel, *sides)

    def new(side: Side) -> Tensor:
        x = side.tokens.x
        padded = side.tokens.start is None
        # many_tiles writes all padding; a single tile may be shorter than the padded length.
        all_written = (one is None or side.length <= side.tile) if padded else every_row
        shape = (*x.shape[:-1], times * x.shape[-1])
        return x.new_empty(shape) if all_written and side.pairs else x.new_zeros(shape)

    return [new(side) for side in wanted]


def plan_forward(a: Side, b: Side, m_a: Tensor, m_b: Tensor, filled: Tensor | None = None) -> list[Launch]:
    """Plan ``m_a`` and ``m_b``. With ``filled`` they are one tensor, whose rows after that many are cleared."""
    rows = len(m_a)
    if config := _one_tile_config("forward", a, b):
        if _swapped(config, a, b):
            a, b, m_a, m_b = b, a, m_b, m_a
        kernel = one_tile.forward if config.block_k else on_chip.forward
        return [_one_tile(kernel, config, a, b, m_a, m_b, filled, rows)]
    scores = _pairs_of_words(a, b, torch.float32)
    return [
        _many_tiles(many_tiles.scores, a, b, scores),
        _many_tiles(many_tiles.forward, a, b, scores, m_a, filled, rows, SWAPPED=False),
        _many_tiles(many_tiles.forward, b, a, scores, m_b, filled, rows, SWAPPED=True),
    ]


def plan_backward(
    a: Side,
    b: Side,
    grad_m_a: Tensor,
    grad_m_b: Tensor,
    grad_a: Tensor,
    grad_b: Tensor,
    filled: Tensor | None = None,
) -> list[Launch]:
    """Plan ``grad_a`` and ``grad_b``, with ``filled`` as in ``plan_forward``."""
    rows = len(grad_a)
    if config := _one_tile_config("backward", a, b):
        if _swapped(config, a, b):
            a, b, grad_m_a, grad_m_b, grad_a, grad_b = b, a, grad_m_b, grad_m_a, grad_b, grad_a
        kernel = one_tile.backward if config.block_k else on_chip.backward
        return [_one_tile(kernel, config, a, b, grad_m_a, grad_m_b, grad_a, grad_b, filled, rows)]
    scores, grad_alpha, grad_beta = (_pairs_of_words(a, b, torch.float32) for _ in range(3))
    alpha, beta, grad_scores = (_pairs_of_words(a, b, a.tokens.x.dtype) for _ in range(3))
    # Gradients of the alignments.
    grad_a_aligned, grad_b_aligned = (side.tokens.x.new_empty(side.tokens.x.shape) for side in (a, b))
    of_a, of_b = (grad_m_a, grad_b_aligned, alpha, beta), (grad_m_b, grad_a_aligned, beta, alpha)
    enhance, softmax, backward = many_tiles.backward_enhance, many_tiles.backward_softmax, many_tiles.backward
    return [
        _many_tiles(enhance, a, b, grad_m_a, grad_a_aligned),
        _many_tiles(enhance, b, a, grad_m_b, grad_b_aligned),
        _many_tiles(many_tiles.products, a, b, grad_a_aligned, grad_b_aligned, scores, grad_alpha, grad_beta),
        # a's part of the gradient of the scores overwrites grad_alpha, which is not needed afterwards.
        _many_tiles(softmax, a, b, scores, grad_alpha, alpha, None, grad_alpha, SWAPPED=False),
        _many_tiles(softmax, b, a, scores, grad_beta, beta, grad_alpha, grad_scores, SWAPPED=True),
        _many_tiles(backward, a, b, *of_a, grad_scores, grad_a, filled, rows, SWAPPED=False),
        _many_tiles(backward, b, a, *of_b, grad_scores, grad_b, filled, rows, SWAPPED=True),
    ]


def _pairs_of_words(a: Side, b: Side, dtype: torch.dtype) -> Tensor:
    """Allocate a matrix over word pairs, with rows padded as in many_tiles."""
    return a.tokens.x.new_empty(a.pairs, a.longest, 16 * blocks_in(b.longest, 16), dtype=dtype)


def _one_tile_config(kernel: str, a: Side, b: Side) -> Config | None:
    """Return the configuration, or None if the pairs need many tiles."""
    if not a.tile or not b.tile:
        return None
    key = (kernel, _arithmetic(a), max(a.tile, b.tile), min(a.tile, b.tile))
    config = (ON_CHIP.get(key) if a.width <= WIDEST_ON_CHIP else None) or ONE_TILE.get(key)
    return config and config.fitting(a.width)


def _swapped(config: Config, a: Side, b: Side) -> bool:
    """Whether a and b, which are symmetric, change places: a fixed order halves the kernels to compile.

    The larger tile comes first, but on chip the smaller one does, because then products take fewer registers.
    """
    return a.tile < b.tile if config.block_k else b.tile < a.tile


def _arithmetic(side: Side) -> str:
    """Return how tiles are multiplied: fp32 in TF32 if PyTorch's matrix products may, else with fp32's accuracy."""
    if side.tokens.x.element_size() == 2:
        return "half"
    # torch.set_float32_matmul_precision sets this as well, but its getter raises once this has been set directly.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _one_tile(kernel: Any, config: Config, a: Side, b: Side, *others: Any) -> Launch:
    blocks = max(1, blocks_in(a.width, config.block_d))
    # Split the features of small batches over more programs, as evenly as possible.
    wanted = PROGRAMS_PER_MULTIPROCESSOR * runtime.multiprocessors(a.tokens.x.device) // max(1, a.pairs)
    splits = blocks_in(blocks, blocks_in(blocks, max(1, min(blocks, wanted))))
    constants = {"A_TILE": a.tile, "B_TILE": b.tile, "SPLITS": splits, "BLOCK_D": config.block_d}
    return _launch(kernel, config, a.pairs * splits, a, b, others, constants)


def _many_tiles(kernel: Any, x: Side, y: Side, *others: Any, **constants: Any) -> Launch:
    config = MANY_TILES[kernel.__name__, _arithmetic(x)].fitting(x.width)
    constants["TILE"] = config.tile
    # Only these two write padding.
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
        # More than 1 if every token is aligned to 16 bytes, provided that the tensors are.
        "VECTOR": 1 if any(elements % vector for elements in (a.width, *strides)) else vector,
        "PRECISION": INPUT_PRECISION[arithmetic],
        "BLOCK_K": config.block_k,
    }
    constants |= {name: value for name, value in common.items() if name in kernel.arg_names}
    arguments = (a.tokens, b.tokens, a.length, b.length, a.batch_stride, b.batch_stride, *others)
    return Launch(kernel, programs if a.width else 0, arguments, constants, config.options())

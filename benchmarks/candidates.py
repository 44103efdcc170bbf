"""Launch configurations to try in place of those in esim_fast/ops/triton/local_inference.py, and their compilation.

A case is an entry of its tables, with the batches that it is tried on.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from benchmarks import predicted
from benchmarks.corpus import bucketed_lengths
from benchmarks.predicted import Code
from esim_fast import Rows
from esim_fast.ops.triton import local_inference, runtime
from esim_fast.ops.triton.runtime import Config, Launch
from esim_fast.ops.triton.tokens import Tokens

WIDTH = 600  # of ESIM's BiLSTM
KERNELS = ("scores", "forward", "backward_enhance", "products", "backward_softmax", "backward")
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
SNLI_BATCHES = (1024, 256, 32)
LONG_BATCHES = {"128 tokens": 64, "512 tokens": 16}
COMPILED, TIMED = 64, 14  # candidates of a case beside the present entry, at most
_CUT = 100  # batches of a bucketed corpus, as corpus.py cuts it
# The values to try; candidates are ordered by their steps from the present entry along these.
_AXES = {
    "block_k": (16, 32, 64, 128, 256),
    "block_d": (16, 32, 64, 128, 256),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4),
    "tile": (16, 32, 64),
    "max_registers": (None, 224, 168, 128),
}


class Case(NamedTuple):
    """An entry of a table.

    Attributes:
        kernel: the one that is configured.
        tiles: those of one_tile, the larger first; empty for many_tiles.
        batches: kind of lengths and pairs.
    """

    kernel: str
    arithmetic: str
    tiles: tuple[int, ...]
    batches: tuple[tuple[str, int], ...]

    @property
    def table(self) -> dict:
        return local_inference.ONE_TILE if self.tiles else local_inference.MANY_TILES

    @property
    def key(self) -> tuple:
        return (self.kernel, self.arithmetic, *self.tiles)

    @property
    def present(self) -> Config:
        return self.table[self.key]

    @property
    def backward(self) -> bool:
        return self.kernel not in ("scores", "forward")

    def own(self, launches: list[Launch]) -> list[Launch]:
        """The launches of this kernel."""
        return [planned for planned in launches if planned.kernel.__name__ == self.kernel]

    def __str__(self) -> str:
        tiles = "x".join(map(str, self.tiles)) or "many tiles"
        return f"{self.kernel}, {self.arithmetic}, {tiles}"


def cases(kernels: Sequence[str] = KERNELS) -> list[Case]:
    """In order of worth: bf16, TF32, fp32; SNLI's tiles by the words that they hold, then many tiles."""
    found = []
    for arithmetic in DTYPES:
        for tiles, kernel in itertools.product(snli_tiles(), ("forward", "backward")):
            if (kernel, arithmetic, *tiles) in local_inference.ONE_TILE:
                batches = tuple(("SNLI", pairs) for pairs in SNLI_BATCHES if batches_of("SNLI", pairs, tiles))
                found.append(Case(kernel, arithmetic, tiles, batches))
    long = tuple(LONG_BATCHES.items())
    found += [Case(kernel, arithmetic, (), long) for arithmetic in DTYPES for kernel in KERNELS]
    return [case for case in found if case.kernel in kernels]


@cache
def snli_tiles() -> list[tuple[int, int]]:
    """Pairs of tiles of SNLI's bucketed batches, those that hold the most words first."""
    words: dict[tuple[int, int], int] = {}
    for pairs in SNLI_BATCHES:
        for lengths in _bucketed(pairs):
            words[_tiles(lengths)] = words.get(_tiles(lengths), 0) + int(lengths.sum()) * max(SNLI_BATCHES) // pairs
    return sorted((tiles for tiles in words if all(tiles)), key=lambda tiles: -words[tiles])


def batches_of(kind: str, pairs: int, tiles: tuple[int, ...], count: int = 4) -> list[np.ndarray]:
    """Lengths ``[pairs, 2]`` of ``count`` batches, or as many as there are: SNLI's that take these tiles."""
    if kind == "SNLI":
        fitting = [lengths for lengths in _bucketed(pairs) if _tiles(lengths) == tiles]
        return [fitting[i] for i in sorted({round(i) for i in np.linspace(0, len(fitting) - 1, count) if fitting})]
    longest, random = int(kind.split()[0]), np.random.default_rng(0)
    return [random.integers(longest // 2, longest + 1, (pairs, 2)) for _ in range(count)]


@cache
def _bucketed(pairs: int) -> list[np.ndarray]:
    return bucketed_lengths("SNLI", pairs, _CUT, np.random.default_rng(0))


def _tiles(lengths: np.ndarray) -> tuple[int, ...]:
    tiles = (next((tile for tile in local_inference.TILES if longest <= tile), 0) for longest in lengths.max(0))
    return tuple(sorted(tiles, reverse=True))


def configurations(case: Case) -> list[Config]:
    """The present entry, and up to COMPILED others, those that differ the least from it first."""
    present = case.present
    unused = {name for name in ("block_k", "block_d", "tile") if not getattr(present, name)}
    axes = {name: values for name, values in _AXES.items() if name not in unused}
    found = []
    for values in itertools.product(*axes.values()):
        config = present._replace(**dict(zip(axes, values, strict=True)))
        steps = [_steps(getattr(present, name), value, axes[name]) for name, value in zip(axes, values, strict=True)]
        # Limits are tried alone, not on top of other changes.
        limited = config.max_registers not in (None, present.max_registers)
        if config != present and sum(steps) <= (1 if limited else math.inf):
            found.append((sum(steps), max(steps), config))
    found.sort(key=lambda candidate: candidate[:2])
    return [present] + [config for *_, config in found[:COMPILED]]


def _steps(old: Any, new: Any, values: tuple) -> int:
    if values == _AXES["max_registers"]:
        return int(old != new)
    return abs(values.index(old) - values.index(new))


@contextmanager
def in_place(case: Case, config: Config) -> Iterator[None]:
    """The tables with ``config`` in them."""
    before = case.present
    case.table[case.key] = config
    try:
        yield
    finally:
        case.table[case.key] = before


class Inputs(NamedTuple):
    """One batch of packed rows, and memory for what is made of it."""

    x: Tensor
    addresses: tuple
    grad_m: Tensor | None  # for the backward pass
    result: Tensor  # m, or the gradient

    @classmethod
    def draw(cls, case: Case, lengths: np.ndarray, device: torch.device, seed: int = 0) -> "Inputs":
        """On the meta device without values, which is enough to compile."""
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
        dtype, pairs = DTYPES[case.arithmetic], len(lengths)
        rows = Rows.concatenated(torch.from_numpy(lengths.T.reshape(-1)), WIDTH)
        a_longest, b_longest = (int(side.max()) for side in lengths.T)
        start, step, sentences = (tensor.to(device) for tensor in (rows.start, rows.step, rows.lengths))
        sides = [
            (start[side].clone(), step, sentences[side].clone(), None) for side in (slice(pairs), slice(pairs, None))
        ]

        def random(*shape: int) -> Tensor:
            if generator is None:
                return torch.empty(*shape, dtype=dtype, device=device)
            # Scores of a trained encoder are of the order of ten.
            return torch.randn(*shape, generator=generator, device=device).mul(0.5).to(dtype)

        words = int(lengths.sum())
        grad_m = random(words, 4 * WIDTH) if case.backward else None
        result = torch.empty(words, WIDTH if case.backward else 4 * WIDTH, dtype=dtype, device=device)
        return cls(random(words, WIDTH), (*sides[0], *sides[1], a_longest, b_longest, True), grad_m, result)

    def plan(self, case: Case) -> list[Launch]:
        """What a user's call would start, by the tables as they are now."""
        torch.backends.cuda.matmul.fp32_precision = "tf32" if case.arithmetic == "tf32" else "ieee"
        sides = local_inference.sides_of(self.x, self.x, self.addresses)
        if self.grad_m is None:
            return local_inference.plan_forward(*sides, self.result, self.result)
        return local_inference.plan_backward(*sides, self.grad_m, self.grad_m, self.result, self.result)

    def moved(self, case: Case) -> int:
        """Bytes that the case's kernel reads and writes, each counted once: tokens and, of many tiles, the matrices."""
        arguments = [argument for planned in case.own(self.plan(case)) for argument in planned.arguments]
        tensors = [argument.x if isinstance(argument, Tokens) else argument for argument in arguments]
        different = {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
        return sum(tensor.numel() * tensor.element_size() for tensor in different.values())


class Gpu(NamedTuple):
    """A GPU to compile for.

    Attributes:
        capability: compute capability, without its point.
        shared: bytes of shared memory that a program can have.
    """

    capability: int
    multiprocessors: int
    shared: int

    @classmethod
    def here(cls) -> "Gpu":
        properties: Any = torch.cuda.get_device_properties("cuda")
        return cls(
            10 * properties.major + properties.minor,
            properties.multi_processor_count,
            properties.shared_memory_per_block_optin,
        )


H100 = Gpu(90, predicted.MULTIPROCESSORS, 227 * 1024)


class _NoGPU:
    """The part of a driver that compiling needs."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_candidate(case: Case, config: Config, batch: tuple[str, int], gpu: Gpu) -> list[tuple[int, Code]] | str:
    """Programs and code of each launch, or why there are none.

    No GPU is needed. Triton's cache then holds the code where a call on such a GPU looks for it.
    """
    triton.runtime.driver.set_active(_NoGPU(gpu.capability))
    runtime.multiprocessors = lambda _: gpu.multiprocessors
    lengths = batches_of(*batch, case.tiles)
    # The code does not depend on the lengths; the batch in the middle is a usual one.
    inputs = Inputs.draw(case, lengths[len(lengths) // 2], torch.device("meta"))
    found = []
    try:
        with in_place(case, config):
            for planned in case.own(inputs.plan(case)):
                compiled = planned.kernel.warmup(
                    *planned.arguments, grid=(planned.programs,), **planned.constants, **planned.options
                )
                found.append((planned.programs, predicted.examine(compiled, planned)))
    except Exception as error:  # the compiler raises many kinds, and not all can be sent to another process
        return one_line(error)
    return found


def one_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:100]

"""Capacities of captured steps: the few sizes that the batches of an epoch are padded to.

A CUDA graph fixes the shapes of its tensors, and nearly every batch has another number of rows. So batches are padded
to a few capacities, and a graph is captured for each of them (training/capture.py).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..data import Batches

_MOST_CAPACITIES = 24  # in a plan; each is a graph
_MOST_ROWS = 12  # different numbers of rows among them
_LONGEST = 64  # words of a sentence; batches with longer ones are rare
_WORD_PAIRS = 900  # pairs of words, one of the premise and one of the hypothesis, that cost about as much as a row
_UNIT = 16  # rows; capacities are multiples of it
_MOST_SIZES = 1024  # different numbers of rows that a plan tells apart


class Size(NamedTuple):
    """Size of a batch, or what a captured step has room for.

    Attributes:
        pairs: sentence pairs.
        rows: tokens of all sentences.
        premise: tokens of the longest premise.
        hypothesis: tokens of the longest hypothesis.
    """

    pairs: int
    rows: int
    premise: int
    hypothesis: int

    def holds(self, other: "Size") -> bool:
        """Whether there is room for a batch of another size."""
        return all(room >= needed for room, needed in zip(self, other, strict=True))

    @classmethod
    def largest(cls, sizes: Iterable["Size"]) -> "Size":
        """The smallest size that holds all of these."""
        return cls(*map(max, zip(*sizes, strict=True)))


def step_sizes(loader: Batches, parts: int = 1) -> list[Size]:
    """The size of each step's batch, without making it; a step of several ``parts`` has the size that holds each."""
    lengths = loader.dataset.lengths
    sizes = []
    for indices, _ in loader.order:
        of_batch = lengths[indices]  # [B, 2]
        sizes.append(Size(len(indices), int(of_batch.sum()), *of_batch.max(0, initial=0).tolist()))
    return [Size.largest(sizes[first : first + parts]) for first in range(0, len(sizes), parts)]


def plan_capacities(sizes: Sequence[Size]) -> list[Size]:
    """Choose the capacities of captured steps, at most 24, the cheapest first.

    A step takes the first capacity that holds it (``capacity_of``), and a step without one runs uncaptured. The plan
    depends only on the argument. To get the same plan when a run resumes, plan the same epoch, all of it.

    Args:
        sizes: sizes of an epoch's steps.
    """
    steps = np.array([size for size in sizes if size.rows and max(size[2:]) <= _LONGEST], dtype=np.int64)
    if not len(steps):
        return []
    of_rows = row_capacities(steps[:, 1])
    steps[:, 0] = steps[:, 0].max()  # a pair without words costs little
    steps[:, 1] = of_rows[np.searchsorted(of_rows, steps[:, 1])]
    # The tiles of local inference's kernels: 16, 32 or 64 words.
    steps[:, 2:] = np.maximum(16, 2 ** np.ceil(np.log2(np.maximum(1, steps[:, 2:]))))
    possible, uses = np.unique(steps, axis=0, return_counts=True)
    costs = possible[:, 1] + possible[:, 0] * possible[:, 2] * possible[:, 3] / _WORD_PAIRS
    kept = np.argsort(costs, kind="stable")
    possible, uses, costs = possible[kept], uses[kept], costs[kept]
    # [i, j]: the cost of a step of capacity i at capacity j.
    moved = np.where((possible >= possible[:, None]).all(2), costs, np.inf)
    kept = np.arange(len(possible))
    while len(kept) > _MOST_CAPACITIES:
        # Leave out the capacity whose steps cost the least more at the next one that holds them.
        best, next_best = np.sort(moved[:, kept])[:, :2].T
        more = np.bincount(moved[:, kept].argmin(1), uses * (next_best - best), len(kept))
        kept = np.delete(kept, more.argmin())
    return [Size(*capacity) for capacity in possible[kept].tolist()]


def capacity_of(size: Size, capacities: Sequence[Size]) -> Size | None:
    """The first capacity of a plan that holds a batch of this size, or None."""
    return next((capacity for capacity in capacities if capacity.holds(size)), None)


def row_capacities(rows: np.ndarray, most: int = _MOST_ROWS) -> np.ndarray:
    """Choose capacities for batches with these numbers of rows so that all together are padded with the fewest rows.

    Dynamic programming over the different sizes in increasing order: to serve the first j of them with k capacities,
    the last capacity is size j, serves those from some i on, and leaves the first i to k - 1 capacities.

    Args:
        rows: int64 ``[steps]``.
        most: the largest number of capacities.

    Returns:
        int64, at most ``most`` in increasing order, each a multiple of 16.
    """
    unit = _UNIT * -(-int(rows.max()) // (_UNIT * _MOST_SIZES))
    sizes, counts = np.unique(-(-rows // unit) * unit, return_counts=True)
    ends = np.append(0, counts.cumsum())
    steps = ends[1:] - ends[:-1, None]  # [i, j]: of sizes i to j
    padded = np.where(steps > 0, steps * sizes, np.inf)  # [i, j]: their rows at capacity j
    least = np.append(0.0, np.full(len(sizes) - 1, np.inf))  # [i]: rows of all sizes before i
    choices = []
    for _ in range(min(most, len(sizes))):
        rows_so_far = least[:, None] + padded
        choices.append(rows_so_far.argmin(0))
        least = np.append(np.inf, rows_so_far.min(0)[:-1])
    chosen, end = [], len(sizes)
    for choice in reversed(choices):
        chosen.append(sizes[end - 1])
        end = choice[end - 1]
    return np.array(chosen[::-1])

"""Pairs of sentences as word ids, in packed batches of similar length.

Nothing is padded, but bucketing by length pays all the same: a batch takes as many steps as its longest sentence has
words, and SNLI's vary from 1 to 82.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import cast

import numpy as np
import torch
from torch.utils.data import Dataset

from ..packed import PackedPairs, move, pack_flat
from .parallel import map_ahead

_POOL = 100  # batches that are sorted together: enough for little padding, few enough to mix pairs between epochs


@dataclass(eq=False)  # not frozen, as PackedPairs
class Batch:
    """B pairs as a model takes them: ``net(batch.pairs)``."""

    pairs: PackedPairs
    labels: torch.Tensor | None  # [B] int64, or float32 for scores
    indices: torch.Tensor  # [B] int64, on the CPU: where in the dataset each pair stands
    whole: int  # pairs of the batch that this is a part of: B, if it is not divided

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``; a copy to a GPU is queued without waiting for it."""
        labels = None if self.labels is None else move(self.labels, device)
        return replace(self, pairs=self.pairs.to(device), labels=labels)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, pairs=self.pairs.pin_memory(), labels=labels)


class EncodedPairs(Dataset[Batch]):
    """The word ids of n pairs.  ``dataset[indices]`` is the :class:`Batch` of those pairs.

    All words lie one sentence after the other in a single array, which may be a file in memory, so a batch is one
    gather, without a Python object per sentence or word.

    Args:
        premises, hypotheses: n sequences of word ids each.
        labels: n label ids, or n scores, which are floats; or None.

    Attributes:
        tokens, ids, begins: as :meth:`of_tokens` takes them.
        lengths: int64 ``[n, 2]``, words of each premise and hypothesis.
        labels: int64 ``[n]``, or float32 ``[n]`` for scores, or None.
    """

    def __init__(
        self,
        premises: Sequence[Sequence[int]],
        hypotheses: Sequence[Sequence[int]],
        labels: Sequence[float] | None,
    ) -> None:
        sentences = [*premises, *hypotheses]
        lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
        ids = np.fromiter(chain.from_iterable(sentences), dtype=np.int64, count=int(lengths.sum()))
        begins = np.cumsum(lengths) - lengths
        self.tokens = torch.from_numpy(ids)
        self.ids: torch.Tensor | None = None
        self.begins, self.lengths = begins.reshape(2, -1).T, lengths.reshape(2, -1).T
        self.labels = None if labels is None else _ids_or_scores(labels)

    @classmethod
    def of_tokens(
        cls,
        tokens: np.ndarray,
        ids: np.ndarray | None,
        begins: np.ndarray,
        lengths: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> "EncodedPairs":
        """Pairs whose words are numbered in their own way; no copy is made of them.

        Args:
            tokens: int32 or int64 ``[number of tokens]``, places in ``ids``.
            ids: int64 ``[distinct words]``, the id of each word; None where tokens are ids themselves.
            begins, lengths: int64 ``[n, 2]``, where in ``tokens`` each premise and hypothesis lies.
            labels: int64 ``[n]``, or float32 ``[n]`` for scores, or None.
        """
        pairs = cls.__new__(cls)
        pairs.tokens, pairs.ids = torch.from_numpy(tokens), None if ids is None else torch.from_numpy(ids)
        pairs.begins, pairs.lengths, pairs.labels = begins, lengths, labels
        return pairs

    @classmethod
    def concatenated(cls, parts: "Sequence[EncodedPairs]") -> "EncodedPairs":
        """The pairs of several, one behind the other; a single one is taken as it is.

        Raises:
            ValueError: there are none, or some have labels and others have not.
        """
        if not parts or len({part.labels is None for part in parts}) > 1:
            raise ValueError("expected pairs, all of them with labels or all without")
        if len(parts) == 1:
            return parts[0]
        first_tokens = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
        ids = [part.tokens if part.ids is None else part.ids[part.tokens] for part in parts]
        pairs = cls.__new__(cls)
        pairs.tokens, pairs.ids = torch.cat(ids), None
        pairs.begins = np.concatenate([part.begins + first for part, first in zip(parts, first_tokens, strict=True)])
        pairs.lengths = np.concatenate([part.lengths for part in parts])
        pairs.labels = None if parts[0].labels is None else np.concatenate([part.labels for part in parts])
        return pairs

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        indices = np.asarray(indices, dtype=np.int64)
        begins, lengths = (torch.from_numpy(part[indices].T.copy()) for part in (self.begins, self.lengths))
        pairs = pack_flat(self.tokens, *begins, *lengths)
        if self.ids is not None:
            pairs = replace(pairs, tokens=self.ids[pairs.tokens])
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices])
        return Batch(pairs, labels, torch.from_numpy(indices), whole=len(indices))


def _ids_or_scores(labels: Sequence[float]) -> np.ndarray:
    array = np.array(labels)
    return array.astype(np.float32 if array.dtype.kind == "f" and len(array) else np.int64)


def batches(
    dataset: EncodedPairs,
    batch_size: int | None = None,
    *,
    max_tokens: int | None = None,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    parts: int = 1,
    prefetch: int = 0,
    pin_memory: bool = False,
) -> "Batches":
    """Every pair once, in batches of pairs of similar length.

    With ``shuffle``, which pairs meet in a batch and the order of the batches follow from ``seed`` and ``epoch``
    alone; without, the shortest pairs come first and the order is always the same.  ``Batch.indices`` puts
    predictions back in the dataset's order.

    Args:
        batch_size: pairs in a batch (the last one may be smaller); this or ``max_tokens`` is given, or both.
        max_tokens: tokens in a batch at most, premises and hypotheses together: long sentences come in small batches. A
            pair with more tokens than that is a batch of its own.
        start: batches to leave out at the beginning, where an epoch goes on in its middle.
        shard: (r, n): of each batch, the r-th of n nearly equal parts, which together are the whole. All shards have
            the same number of batches; parts of a batch of fewer than n pairs may be empty.
        parts: into how many nearly equal parts, one after the other, each batch (or its shard) is divided in turn; the
            last ones of a small batch may be empty.
        prefetch: batches that a thread makes ahead. A GPU gains by that; a CPU that trains is busy itself.
        pin_memory: batches lie where a GPU fetches them by itself.

    Raises:
        ValueError: an argument is not as described.
    """
    if batch_size is None and max_tokens is None:
        raise ValueError("expected batch_size or max_tokens, got neither")
    counts = {"batch_size": batch_size, "max_tokens": max_tokens, "start": start, "parts": parts, "prefetch": prefetch}
    for name, value in counts.items():
        least, kind = (0, "non-negative") if name in ("start", "prefetch") else (1, "positive")
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"expected a {kind} integer as {name}, got {value!r}")
    rank, shards = shard
    if not 0 <= rank < shards:
        raise ValueError(f"expected shard as (r, n) with 0 <= r < n, got {shard!r}")
    order = _order(dataset, batch_size, max_tokens, np.random.default_rng((seed, epoch)) if shuffle else None)
    divided = [
        (batch[rank + shards * part :: shards * parts], len(batch)) for batch in order[start:] for part in range(parts)
    ]
    return Batches(dataset, divided, prefetch, pin_memory)


@dataclass(eq=False, repr=False)
class Batches:
    """What :func:`batches` returns: the same batches in the same order, as often as it is iterated over."""

    dataset: EncodedPairs
    order: Sequence[tuple[np.ndarray, int]]  # a batch's indices, and the size of the batch that it is part of
    prefetch: int
    pin_memory: bool

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        if not self.prefetch:
            yield from map(self._make, self.order)
            return
        pool = ThreadPoolExecutor(1)  # a thread: processes take longer to hand a batch over than to make it
        try:
            yield from map_ahead(pool, self._make, self.order, self.prefetch)
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, part: tuple[np.ndarray, int]) -> Batch:
        indices, whole = part
        batch = replace(self.dataset[indices], whole=whole)
        return batch.pin_memory() if self.pin_memory else batch


def _order(
    dataset: EncodedPairs, batch_size: int | None, max_tokens: int | None, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """The dataset's indices, cut into batches of similar length."""
    count, words = len(dataset), dataset.lengths.sum(1)
    if not count:
        return []
    order: np.ndarray
    pools: np.ndarray
    if rng is None:
        order, pools = np.arange(count), np.zeros(count)
    else:
        pairs = batch_size or max(1, int(cast(int, max_tokens) / max(1, words.mean())))
        order, pools = rng.permutation(count), np.arange(count) // (_POOL * pairs)
    order = order[np.lexsort((*dataset.lengths[order].T[::-1], pools))]
    if max_tokens is None:
        size = cast(int, batch_size)
        bounds: Sequence[int] = range(0, count + size, size)
    else:
        bounds = _bounds(words[order], max_tokens, batch_size or count)
    cut = [order[start:end] for start, end in pairwise(bounds)]
    return cut if rng is None else [cut[index] for index in rng.permutation(len(cut))]


def _bounds(words: np.ndarray, most_words: int, most_pairs: int) -> list[int]:
    """Where to cut, so that each piece has at most so many words and pairs, or is a single pair."""
    ends, bounds = words.cumsum(), [0]
    while (begin := bounds[-1]) < len(words):
        before = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, before + most_words, side="right"))
        bounds.append(min(max(begin + 1, end), begin + most_pairs))
    return bounds

"""Batch pairs of word ids, packed and of similar length.

Bucketing by length pays even without padding, because a batch takes as many steps as its longest sentence has words,
and SNLI's sentences have 1 to 82.
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

_POOL = 100  # batches to sort together: enough that lengths are similar, few enough to mix pairs between epochs


@dataclass(eq=False)  # not frozen, like PackedPairs
class Batch:
    """B pairs in the form that a model takes: ``net(batch.pairs)``.

    Attributes:
        pairs: the packed word ids.
        labels: int64 ``[B]``, or float32 ``[B]`` for scores, or None.
        indices: int64 ``[B]`` on the CPU, the place of each pair in the dataset.
        whole: the number of pairs in the batch that this is a part of; B if it was not divided.
    """

    pairs: PackedPairs
    labels: torch.Tensor | None
    indices: torch.Tensor
    whole: int

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``; copies to a GPU are asynchronous if the batch is pinned."""
        labels = None if self.labels is None else move(self.labels, device)
        return replace(self, pairs=self.pairs.to(device), labels=labels)

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, pairs=self.pairs.pin_memory(), labels=labels)


class EncodedPairs(Dataset[Batch]):
    """The word ids of n pairs; ``dataset[indices]`` is the ``Batch`` of those pairs.

    All words are stored in one contiguous array, which may be memory-mapped. A batch is a single gather, without a
    Python object per sentence or word.

    Args:
        premises: n sequences of word ids.
        hypotheses: n sequences of word ids.
        labels: n label ids, or n scores as floats, or None.

    Attributes:
        tokens: int32 or int64 ``[number of tokens]``, word ids, or indices into ``ids``.
        ids: int64 ``[distinct words]``, or None if tokens are word ids.
        begins: int64 ``[n, 2]``, the offsets of each premise and hypothesis in ``tokens``.
        lengths: int64 ``[n, 2]``, the number of words in each premise and hypothesis.
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
        """Make pairs from a flat array of tokens, without copying it.

        Args:
            tokens: int32 or int64 ``[number of tokens]``, word ids, or indices into ``ids``.
            ids: int64 ``[distinct words]``, the id of each word; None if tokens are word ids.
            begins: int64 ``[n, 2]``, the offsets of each premise and hypothesis in ``tokens``.
            lengths: int64 ``[n, 2]``, the number of words in each premise and hypothesis.
            labels: int64 ``[n]``, or float32 ``[n]`` for scores, or None.
        """
        pairs = cls.__new__(cls)
        pairs.tokens, pairs.ids = torch.from_numpy(tokens), None if ids is None else torch.from_numpy(ids)
        pairs.begins, pairs.lengths, pairs.labels = begins, lengths, labels
        return pairs

    @classmethod
    def concatenated(cls, parts: "Sequence[EncodedPairs]") -> "EncodedPairs":
        """Concatenate the pairs of several datasets; a single one is returned unchanged.

        Raises:
            ValueError: there are no datasets, or only some of them have labels.
        """
        if not parts or len({part.labels is None for part in parts}) > 1:
            raise ValueError("expected one dataset or more, all with labels or all without")
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
    """Cut a dataset into batches of pairs of similar length, with every pair once.

    With ``shuffle``, the batches and their order depend only on ``seed`` and ``epoch``. Without it, the shortest pairs
    come first. Use ``Batch.indices`` to put predictions back in the dataset's order.

    Args:
        dataset: the pairs.
        batch_size: pairs in a batch; the last one may be smaller. Required unless ``max_tokens`` is given.
        max_tokens: most tokens in a batch, counting premises and hypotheses, so that long sentences come in small
            batches. A pair with more tokens has its own batch.
        shuffle: whether to mix the pairs.
        seed: seed of the random order.
        epoch: number of the epoch, so that each epoch has another order.
        start: batches to skip at the beginning, to continue in the middle of an epoch.
        shard: (r, n), to get the r-th of n nearly equal parts of each batch, which together are the whole. All shards
            have the same number of batches; parts of a batch of fewer than n pairs may be empty.
        parts: yield each batch (or its shard) as this many nearly equal parts in a row; the last parts of a small batch
            may be empty.
        prefetch: batches that a thread prepares ahead. This helps on a GPU, but not if the CPU is busy training.
        pin_memory: put batches in pinned memory, for asynchronous copies to a GPU.

    Returns:
        An iterable of batches that has a length and can be iterated over again.

    Raises:
        ValueError: an argument is out of range, or neither ``batch_size`` nor ``max_tokens`` is given.
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
    """The result of ``batches``: the same batches in the same order each time it is iterated over."""

    dataset: EncodedPairs
    order: Sequence[tuple[np.ndarray, int]]  # each batch's indices, and the size of the batch that it is a part of
    prefetch: int
    pin_memory: bool

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        if not self.prefetch:
            yield from map(self._make, self.order)
            return
        pool = ThreadPoolExecutor(1)  # a thread, because passing a batch between processes takes longer than making it
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
    """Cut the dataset's indices into batches of similar length."""
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
    """Return where to cut, so that each piece has at most so many words and pairs, or is a single pair."""
    ends, bounds = words.cumsum(), [0]
    while (begin := bounds[-1]) < len(words):
        before = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, before + most_words, side="right"))
        bounds.append(min(max(begin + 1, end), begin + most_pairs))
    return bounds

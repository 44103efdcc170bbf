"""Pairs of sentences as word ids, in packed batches of similar length.

Nothing is padded, but bucketing by length pays all the same: a batch takes as many steps as its longest sentence has
words, and SNLI's vary from 1 to 82.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..packed import PackedPairs, move, pack_flat
from .reading import Corpus, DataError
from .tokenising import TokenPair
from .vocabulary import Vocabulary

_POOL = 100  # batches that are sorted together: enough for little padding, few enough to mix pairs between epochs


@dataclass(frozen=True)
class Batch:
    """B pairs as a model takes them: ``net(batch.pairs)``."""

    pairs: PackedPairs
    labels: torch.Tensor | None  # [B] int64
    indices: torch.Tensor  # [B] int64, on the CPU: where in the dataset each pair stands

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``; a copy to a GPU is queued without waiting for it."""
        labels = None if self.labels is None else move(self.labels, device)
        return replace(self, pairs=self.pairs.to(device), labels=labels)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory; a DataLoader calls this if it is asked to."""
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, pairs=self.pairs.pin_memory(), labels=labels)


class EncodedPairs(Dataset[Batch]):
    """The word ids of n pairs.  ``dataset[indices]`` is the :class:`Batch` of those pairs.

    All ids lie one sentence after the other in a single array, so a batch is one gather, without a Python object per
    sentence or word.

    Attributes:
        premise_lengths, hypothesis_lengths: int64 [n].
        labels: int64 [n], or None.
    """

    def __init__(
        self, premises: Sequence[Sequence[int]], hypotheses: Sequence[Sequence[int]], labels: Sequence[int] | None
    ) -> None:
        sentences = [*premises, *hypotheses]
        lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
        ends = np.cumsum(lengths)
        self.premise_lengths, self.hypothesis_lengths = np.split(lengths, [len(premises)])
        self._premise_begins, self._hypothesis_begins = np.split(ends - lengths, [len(premises)])
        ids = np.fromiter(chain.from_iterable(sentences), dtype=np.int64, count=int(lengths.sum()))
        self._ids = torch.from_numpy(ids)
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.premise_lengths)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        indices = np.asarray(indices, dtype=np.int64)
        sides = self._premise_begins, self._hypothesis_begins, self.premise_lengths, self.hypothesis_lengths
        return Batch(
            pairs=pack_flat(self._ids, *(torch.from_numpy(of[indices]) for of in sides)),
            labels=None if self.labels is None else torch.from_numpy(self.labels[indices]),
            indices=torch.from_numpy(indices),
        )


def encode_pairs(
    corpus: Corpus, tokens: Sequence[TokenPair], vocabulary: Vocabulary, labels: Sequence[str] | None
) -> EncodedPairs:
    """Look up the words of a corpus, given as :func:`tokenise_pairs` returns them for ``corpus.pairs``.

    ``labels`` lists the known labels in the order of their ids; with None the corpus's own are ignored.

    Raises:
        DataError: a pair's label is not among ``labels``.
    """
    label_ids = None
    if labels is not None:
        known = {label: index for index, label in enumerate(labels)}
        for pair in corpus.pairs:
            if pair.label not in known:
                got = "no label" if pair.label is None else repr(pair.label)
                raise DataError(f"{corpus.path}:{pair.line}: expected a label among {', '.join(labels)}, got {got}")
        label_ids = [known[pair.label] for pair in corpus.pairs]
    premises = [vocabulary.encode(premise) for premise, _ in tokens]
    hypotheses = [vocabulary.encode(hypothesis) for _, hypothesis in tokens]
    return EncodedPairs(premises, hypotheses, label_ids)


def batches(
    dataset: EncodedPairs,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Every pair once, in batches of ``batch_size`` pairs of similar length (the last one may be smaller).

    With ``shuffle``, which pairs meet in a batch and the order of the batches follow from ``seed`` and ``epoch``
    alone; without, the shortest pairs come first and the order is always the same.  ``Batch.indices`` puts
    predictions back in the dataset's order. With ``pin_memory``, batches lie where a GPU fetches them by itself.

    Raises:
        ValueError: ``batch_size`` is not a positive integer.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive integer as batch_size, got {batch_size!r}")
    order = _bucketed(dataset, batch_size, np.random.default_rng((seed, epoch)) if shuffle else None)
    # The sampler is a list of whole batches, and the dataset looks each one up in one go: nothing is left to collate.
    return DataLoader(dataset, sampler=order, batch_size=None, num_workers=num_workers, pin_memory=pin_memory)


def _bucketed(dataset: EncodedPairs, batch_size: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Cut the dataset's indices into batches of similar length."""
    order = np.arange(len(dataset))
    if rng is None:
        pools = np.zeros(len(order))
    else:
        order = rng.permutation(order)
        pools = np.arange(len(order)) // (_POOL * batch_size)
    order = order[np.lexsort((dataset.hypothesis_lengths[order], dataset.premise_lengths[order], pools))]
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return cut if rng is None else [cut[index] for index in rng.permutation(len(cut))]

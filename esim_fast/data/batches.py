"""Pairs of sentences as word ids, in batches of similar length.

Bucketing by length is what makes batches cheap: sentences of one batch are padded to its longest, and SNLI's vary from
1 to 82 words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..packed import move
from .reading import Corpus, DataError
from .tokenising import TokenPair
from .vocabulary import PADDING_ID, Vocabulary

_POOL = 100  # batches that are sorted together: enough for little padding, few enough to mix pairs between epochs


@dataclass(frozen=True)
class Batch:
    """B pairs, padded with :data:`PADDING_ID` to the longest premise (Lp) and the longest hypothesis (Lh) among them.

    Lengths stay on the CPU wherever the batch goes: they decide shapes and launches, and reading them back from a GPU
    would wait for it.
    """

    premises: torch.Tensor  # [B, Lp] int64
    hypotheses: torch.Tensor  # [B, Lh] int64
    premise_lengths: torch.Tensor  # [B] int64, on the CPU
    hypothesis_lengths: torch.Tensor  # [B] int64, on the CPU
    labels: torch.Tensor | None  # [B] int64
    indices: torch.Tensor  # [B] int64, on the CPU: where in the dataset each pair stands

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its ids and labels on ``device``; a copy to a GPU is queued without waiting for it."""
        return replace(
            self,
            premises=move(self.premises, device),
            hypotheses=move(self.hypotheses, device),
            labels=None if self.labels is None else move(self.labels, device),
        )


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
        self._premise_starts, self._hypothesis_starts = np.split(ends - lengths, [len(premises)])
        # The padding id comes last, where index -1 finds it: see _gather.
        ids = chain(chain.from_iterable(sentences), (PADDING_ID,))
        self._ids = np.fromiter(ids, dtype=np.int64, count=int(lengths.sum()) + 1)
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.premise_lengths)

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        indices = np.asarray(indices, dtype=np.int64)
        premise_lengths, hypothesis_lengths = self.premise_lengths[indices], self.hypothesis_lengths[indices]
        return Batch(
            premises=self._gather(self._premise_starts[indices], premise_lengths),
            hypotheses=self._gather(self._hypothesis_starts[indices], hypothesis_lengths),
            premise_lengths=torch.from_numpy(premise_lengths),
            hypothesis_lengths=torch.from_numpy(hypothesis_lengths),
            labels=None if self.labels is None else torch.from_numpy(self.labels[indices]),
            indices=torch.from_numpy(indices),
        )

    def _gather(self, starts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        steps = np.arange(lengths.max(initial=0))
        places = np.where(steps < lengths[:, None], starts[:, None] + steps, -1)  # [B, L]
        return torch.from_numpy(self._ids[places])


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
    dataset: EncodedPairs, batch_size: int, *, shuffle: bool, seed: int = 0, epoch: int = 0, num_workers: int = 0
) -> DataLoader[Batch]:
    """Every pair once, in batches of ``batch_size`` pairs of similar length (the last one may be smaller).

    With ``shuffle``, which pairs meet in a batch and the order of the batches follow from ``seed`` and ``epoch``
    alone; without, the shortest pairs come first and the order is always the same.  ``Batch.indices`` puts
    predictions back in the dataset's order.

    Raises:
        ValueError: ``batch_size`` is not a positive integer.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive integer as batch_size, got {batch_size!r}")
    order = _bucketed(dataset, batch_size, np.random.default_rng((seed, epoch)) if shuffle else None)
    # The sampler is a list of whole batches, and the dataset looks each one up in one go: nothing is left to collate.
    return DataLoader(dataset, sampler=order, batch_size=None, num_workers=num_workers)


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

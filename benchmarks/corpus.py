"""Batches like SNLI's, without the corpus: its lengths, the data loader's buckets, made-up words.

Words follow Zipf's law, so that the embedding's gradient sums a few frequent words over many places.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from esim_fast import data, pack_pairs
from esim_fast.packed import PackedPairs

VOCABULARY = 36_988  # SNLI's lowercase words, padding and the unknown word
PADDING = data.PADDING_ID
_POOL = 100  # batches that the data loader sorts together
# Quantiles of the lengths of 20,000 training pairs in Treebank tokens: every twentieth, and 99 %, without which
# interpolation would give the longest sentence too much weight.
_PARTS = np.append(np.arange(20) / 20, [0.99, 1])
_PREMISES = [2, 7, 8, 9, 9, 10, 10, 11, 11, 12, 13, 13, 14, 15, 16, 17, 18, 20, 22, 25, 35, 70]
_HYPOTHESES = [2, 4, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 12, 14, 19, 43]


@dataclass(frozen=True)
class PairBatch:
    """A batch in every form that variants use: padded ids, lengths, packed."""

    p: Tensor  # [B, Lp]
    h: Tensor  # [B, Lh]
    p_lengths: Tensor  # [B], on the CPU
    h_lengths: Tensor  # [B], on the CPU
    labels: Tensor  # [B]

    @cached_property
    def pairs(self) -> PackedPairs:
        return pack_pairs(self.p, self.h, self.p_lengths, self.h_lengths)

    def to(self, device: torch.device) -> "PairBatch":
        return replace(self, p=self.p.to(device), h=self.h.to(device), labels=self.labels.to(device))

    def filled(self) -> "PairBatch":
        """The batch, with its padding replaced by words."""
        random = np.random.default_rng(0)

        def fill(ids: Tensor) -> tuple[Tensor, Tensor]:
            words = torch.from_numpy(draw_words(ids.numel(), random)).view(ids.shape).to(ids.device)
            return torch.where(ids == PADDING, words, ids), torch.full((len(ids),), ids.shape[1])

        (p, p_lengths), (h, h_lengths) = fill(self.p), fill(self.h)
        return PairBatch(p, h, p_lengths, h_lengths, self.labels)


def draw_lengths(pairs: int, random: np.random.Generator) -> np.ndarray:
    """Lengths ``[pairs, 2]`` of premises and hypotheses, drawn independently (in SNLI, r = 0.19)."""
    sides = [np.interp(random.random(pairs), _PARTS, side) for side in (_PREMISES, _HYPOTHESES)]
    return np.stack(sides, 1).round().astype(np.int64)


def draw_words(count: int, random: np.random.Generator) -> np.ndarray:
    """Word ids ``[count]`` from 2 on; lower ids are more frequent."""
    return 2 + np.searchsorted(_zipf(), random.random(count))


def draw_pairs(pairs: int, random: np.random.Generator) -> data.EncodedPairs:
    """A corpus of ``pairs`` sentence pairs with random labels."""
    lengths = draw_lengths(pairs, random)
    ends = lengths.ravel().cumsum()
    words = draw_words(ends[-1], random).astype(np.int32)
    begins = ends.reshape(lengths.shape) - lengths
    return data.EncodedPairs.of_tokens(words, np.arange(VOCABULARY), begins, lengths, random.integers(0, 3, pairs))


@cache
def make_batches(size: int, count: int) -> list[PairBatch]:
    """``count`` batches of ``size`` pairs, bucketed like the data loader's, with about average words and padding."""
    random = np.random.default_rng(0)
    lengths = draw_lengths(_POOL * size, random)
    cut = lengths[np.lexsort((lengths[:, 1], lengths[:, 0]))].reshape(_POOL, size, 2)
    choices = random.integers(_POOL // count, size=(1000, count)) + _POOL // count * np.arange(count)
    words, padded = cut.sum((1, 2)), size * cut.max(1).sum(1)
    errors = [abs(np.log(sizes[choices].mean(1) / sizes.mean())) for sizes in (words, padded)]

    def draw(lengths: np.ndarray) -> Tensor:
        outside = np.arange(lengths.max()) >= lengths[:, None]
        ids = draw_words(outside.size, random).reshape(outside.shape)
        return torch.from_numpy(np.where(outside, PADDING, ids))

    def batch(lengths: np.ndarray) -> PairBatch:
        labels = torch.from_numpy(random.integers(0, 3, size))
        return PairBatch(*map(draw, lengths.T), *torch.from_numpy(lengths).unbind(1), labels)

    return [batch(lengths) for lengths in cut[choices[np.argmin(sum(errors))]]]


@cache
def _zipf() -> np.ndarray:
    """Cumulative probabilities of the words by rank, by the Zipf-Mandelbrot law."""
    weights = 1 / (np.arange(VOCABULARY - 2) + 3.7)
    return weights.cumsum() / weights.sum()

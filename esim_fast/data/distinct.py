"""Group pairs by their distinct sentences, so that work on a sentence alone is done only once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from .batches import EncodedPairs


@dataclass(frozen=True, eq=False)
class SharedSentences:
    """n pairs made of S distinct sentences, which have R words in all.

    Attributes:
        source: the pairs that hold the sentences' words.
        begins: int64 ``[S]``, the offset of each sentence in ``source.tokens``.
        lengths: int64 ``[S]``, words in each sentence.
        members: int64 ``[n, 2]``, the sentences that are each pair's premise and hypothesis.
    """

    source: EncodedPairs
    begins: np.ndarray
    lengths: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]], members: np.ndarray) -> "SharedSentences":
        """Make pairs of sentences that are given as word ids."""
        source = EncodedPairs(sentences, [()] * len(sentences), None)
        return cls(source, source.begins[:, 0], source.lengths[:, 0], members)

    @property
    def words(self) -> int:
        """R, the number of words in all sentences."""
        return int(self.lengths.sum())

    def word_ids(self) -> torch.Tensor:
        """Return the words of all sentences, concatenated: int64 ``[R]``."""
        places = np.repeat(self.begins - self._first_rows, self.lengths) + np.arange(self.words)
        tokens = self.source.tokens[places].long()
        return tokens if self.source.ids is None else self.source.ids[tokens]

    def sentences(self) -> EncodedPairs:
        """Return each sentence paired with an empty one; its tokens are positions in ``word_ids()``."""
        begins, lengths = (np.stack([part, np.zeros_like(part)], 1) for part in (self._first_rows, self.lengths))
        return EncodedPairs.of_tokens(np.arange(self.words), None, begins, lengths)

    def pairs(self, tokens: torch.Tensor | None = None) -> EncodedPairs:
        """Return the pairs, with ``tokens`` ``[R]`` as their tokens; None: positions in ``word_ids()``."""
        begins, lengths = self._first_rows[self.members], self.lengths[self.members]
        return EncodedPairs.of_tokens(
            np.arange(self.words) if tokens is None else tokens.numpy(), None, begins, lengths
        )

    @property
    def _first_rows(self) -> np.ndarray:
        return self.lengths.cumsum() - self.lengths


def shared_sentences(pairs: EncodedPairs, words: int) -> Iterator[SharedSentences]:
    """Yield all pairs in order, in parts that each end once their distinct sentences have ``words`` words."""
    tokens, begins, lengths = pairs.tokens.numpy(), pairs.begins.ravel(), pairs.lengths.ravel()
    size, content = tokens.itemsize, memoryview(cast(Any, tokens.view(np.uint8)))
    place_of: dict[bytes, int] = {}  # by token bytes, which are equal exactly if the words are
    firsts: list[int] = []  # where each sentence first occurs
    members: list[int] = []
    found = 0  # words in these sentences

    def part() -> SharedSentences:
        return SharedSentences(pairs, begins[firsts], lengths[firsts], np.array(members, np.int64).reshape(-1, 2))

    for index, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True)):
        place = place_of.setdefault(content[begin * size : (begin + length) * size].tobytes(), len(firsts))
        members.append(place)
        if place == len(firsts):
            firsts.append(index)
            found += length
        if index % 2 and found >= words:
            yield part()
            place_of, firsts, members, found = {}, [], [], 0
    if members:
        yield part()

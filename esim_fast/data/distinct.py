"""Pairs by the distinct sentences in them: what is done for a sentence alone need be done only once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from .batches import EncodedPairs


@dataclass(frozen=True, eq=False)
class SharedSentences:
    """n pairs of S distinct sentences, with R words in all.

    Attributes:
        source: where the sentences' words are.
        begins, lengths: int64 ``[S]``, where in ``source.tokens`` each sentence lies.
        members: int64 ``[n, 2]``, which sentences are premise and hypothesis of each pair.
    """

    source: EncodedPairs
    begins: np.ndarray
    lengths: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]], members: np.ndarray) -> "SharedSentences":
        """Pairs of sentences that are given as word ids."""
        source = EncodedPairs(sentences, [()] * len(sentences), None)
        return cls(source, source.begins[:, 0], source.lengths[:, 0], members)

    @property
    def words(self) -> int:
        """R."""
        return int(self.lengths.sum())

    def word_ids(self) -> torch.Tensor:
        """int64 ``[R]``, the words of all sentences, one sentence behind the other."""
        places = np.repeat(self.begins - self._first_rows, self.lengths) + np.arange(self.words)
        tokens = self.source.tokens[places].long()
        return tokens if self.source.ids is None else self.source.ids[tokens]

    def sentences(self) -> EncodedPairs:
        """Each sentence, as a pair with an empty one. In place of word ids there are places in :meth:`word_ids`."""
        begins, lengths = (np.stack([part, np.zeros_like(part)], 1) for part in (self._first_rows, self.lengths))
        return EncodedPairs.of_tokens(np.arange(self.words), None, begins, lengths)

    def pairs(self, tokens: torch.Tensor | None = None) -> EncodedPairs:
        """The pairs, with ``tokens [R]`` in place of word ids; None: places in :meth:`word_ids`."""
        begins, lengths = self._first_rows[self.members], self.lengths[self.members]
        return EncodedPairs.of_tokens(
            np.arange(self.words) if tokens is None else tokens.numpy(), None, begins, lengths
        )

    @property
    def _first_rows(self) -> np.ndarray:
        return self.lengths.cumsum() - self.lengths


def shared_sentences(pairs: EncodedPairs, words: int) -> Iterator[SharedSentences]:
    """All pairs in their order, a part at a time: each ends with the pair that brings its sentences to ``words``."""
    tokens, begins, lengths = pairs.tokens.numpy(), pairs.begins.ravel(), pairs.lengths.ravel()
    size, content = tokens.itemsize, memoryview(cast(Any, tokens.view(np.uint8)))
    place_of: dict[bytes, int] = {}  # the same bytes are the same words
    firsts: list[int] = []  # where each sentence stands for the first time
    members: list[int] = []
    found = 0  # words of these sentences

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

"""Which of many candidates go best with a query, in memory that does not grow with them."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import heappush, heappushpop
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .data.distinct import SharedSentences
from .errors import listed, one_line
from .labels import positive_label
from .model import ESIM
from .scoring import NOT_FINITE, scored_shared

# What is worked on together: every query of a part with every candidate of a part.
_CANDIDATES, _PAIRS = 2048, 2**15
_WORDS = 2**14  # of either part


class Model(Protocol):
    """What is needed of a :class:`esim_fast.Classifier`."""

    net: ESIM
    labels: list[str]
    precision: str

    @property
    def task(self) -> str: ...

    def encode(self, sentence: str) -> list[int]: ...

    def probabilities(self, logits: Tensor) -> Tensor: ...


class Candidate(NamedTuple):
    """One of those that go best with a query."""

    place: int  # as it was given
    score: float
    text: str

    def as_dict(self, *, with_text: bool) -> dict[str, Any]:
        """With the names of sentence-transformers' ``CrossEncoder.rank``."""
        return {"corpus_id": self.place, "score": self.score} | ({"text": self.text} if with_text else {})


# The best candidates of a query so far: score, place and text; the place is negative, so that of equal scores the
# earlier candidate wins.
_Heap: TypeAlias = list[tuple[float, int, str]]


class _Sentence(NamedTuple):
    place: int
    text: str
    ids: list[int]


def strings(name: str, sentences: Iterable[str]) -> Iterator[str]:
    """The sentences; TypeError if it is one, or not all are strings."""
    if isinstance(sentences, str) or not isinstance(sentences, Iterable):
        raise TypeError(one_line(f"{name} must be a list of sentences, got {sentences!r:.40}"))
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(one_line(f"{name}[{place}] must be a string, got {sentence!r:.40}"))
        yield sentence


def output_of(model: Model, label: str | None) -> int:
    """Which output of the network ranks: that of a label, or a regression model's only one.

    Args:
        label: None is ``entailment``, else ``1``.

    Raises:
        ValueError: the model has no such label, or one has to be named.
    """
    if model.task == "regression":
        if label is not None:
            raise ValueError(one_line(f"label: a model that gives scores has no labels, got {label!r}"))
        return 0
    name = positive_label(model.labels) if label is None else str(label)
    if name not in model.labels:
        got = "none, and no label is called entailment or 1" if label is None else repr(label)
        raise ValueError(one_line(f"label must be one of the model's ({listed(model.labels)}), got {got}"))
    return model.labels.index(name)


def best_candidates(
    model: Model,
    queries: Sequence[str],
    candidates: Iterable[tuple[int, str]],
    *,
    top_k: int | None,
    output: int,
    batch_size: int,
) -> list[list[Candidate]]:
    """The best candidates of each query, the best one first.

    Args:
        candidates: places, which grow, and texts; read once, some thousand at a time.
        top_k: of each query at most; None is all.
        output: see :func:`output_of`.

    Raises:
        FloatingPointError: the network gives something else than finite numbers.
    """
    best: list[_Heap] = [[] for _ in queries]
    encode = lru_cache(2 * _CANDIDATES)(model.encode)
    asked = [_Sentence(place, query, encode(query)) for place, query in enumerate(queries)]
    for documents in _parts((_Sentence(place, text, encode(text)) for place, text in candidates), _CANDIDATES):
        for part in _parts(asked, max(1, _PAIRS // len(documents))):
            scores = _scores(model, part, documents, output, batch_size)
            for query, row in zip(part, scores.tolist(), strict=True):
                for score, document in zip(row, documents, strict=True):
                    _keep(best[query.place], (score, -document.place, document.text), top_k)
    return [[Candidate(-place, score, text) for score, place, text in sorted(heap, reverse=True)] for heap in best]


def _parts(sentences: Iterable[_Sentence], most: int) -> Iterator[list[_Sentence]]:
    """At most so many sentences at a time; a part also ends with the one that brings it to _WORDS words."""
    part: list[_Sentence] = []
    words = 0
    for sentence in sentences:
        part.append(sentence)
        words += len(sentence.ids)
        if len(part) == most or words >= _WORDS:
            yield part
            part, words = [], 0
    if part:
        yield part


def _scores(
    model: Model, queries: list[_Sentence], candidates: list[_Sentence], output: int, batch_size: int
) -> Tensor:
    """float32 ``[number of queries, number of candidates]``."""
    distinct = {sentence.text: sentence.ids for sentence in (*queries, *candidates)}
    place_of = {text: place for place, text in enumerate(distinct)}
    premises, hypotheses = (np.array([place_of[sentence.text] for sentence in side]) for side in (queries, candidates))
    hypotheses, columns = np.unique(hypotheses, return_inverse=True)  # the same text gets the same score
    members = np.stack(np.broadcast_arrays(premises[:, None], hypotheses), -1).reshape(-1, 2)
    logits = torch.empty(len(members), len(model.labels))
    shared = SharedSentences.of([*distinct.values()], members)
    for indices, found in scored_shared(model.net, shared, batch_size, precision=model.precision):
        logits[indices] = found
    scores = (logits if model.task == "regression" else model.probabilities(logits))[:, output]
    if not scores.isfinite().all():
        raise FloatingPointError(NOT_FINITE)
    return scores.view(len(queries), len(hypotheses))[:, columns]


def _keep(heap: _Heap, candidate: tuple[float, int, str], top_k: int | None) -> None:
    if top_k is None or len(heap) < top_k:
        heappush(heap, candidate)
    else:
        heappushpop(heap, candidate)

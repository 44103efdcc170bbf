"""Find the best of many candidates for a query, in memory that does not grow with their number."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import heappush, heappushpop
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .captured import CapturedForward
from .data.distinct import SharedSentences
from .errors import listed, one_line
from .labels import positive_label
from .model import ESIM
from .scoring import NOT_FINITE, scored_shared

# Queries and candidates are scored in parts, every query of one part with every candidate of the other.
_CANDIDATES, _PAIRS = 2048, 2**15
_WORDS = 2**14  # in either part


class Model(Protocol):
    """The parts of ``esim_fast.Classifier`` that ranking uses."""

    net: ESIM
    labels: list[str]
    precision: str

    @property
    def task(self) -> str: ...

    @property
    def captured(self) -> CapturedForward | None: ...

    def encode(self, sentence: str) -> list[int]: ...

    def probabilities(self, logits: Tensor) -> Tensor: ...


class Candidate(NamedTuple):
    """One of the best candidates of a query."""

    place: int  # as given by the caller
    score: float
    text: str

    def as_dict(self, *, with_text: bool) -> dict[str, Any]:
        """Return a dict with the keys of sentence-transformers' ``CrossEncoder.rank``."""
        return {"corpus_id": self.place, "score": self.score} | ({"text": self.text} if with_text else {})


# The best candidates of a query so far: score, place and text. Places are negated so that the earlier candidate wins
# ties.
_Heap: TypeAlias = list[tuple[float, int, str]]


class _Sentence(NamedTuple):
    place: int
    text: str
    ids: list[int]


def strings(name: str, sentences: Iterable[str]) -> Iterator[str]:
    """Yield the sentences; raise TypeError for a single string or an element that is not one."""
    if isinstance(sentences, str) or not isinstance(sentences, Iterable):
        raise TypeError(one_line(f"{name} must be a list of sentences, got {sentences!r:.40}"))
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(one_line(f"{name}[{place}] must be a string, got {sentence!r:.40}"))
        yield sentence


def output_of(model: Model, label: str | None) -> int:
    """Return the index of the output that ranks: a label's, or the only one of a regression model.

    Args:
        model: the model.
        label: name of the label; None is ``entailment``, else ``1``.

    Raises:
        ValueError: the model has no such label, or ``label`` is None and none of these two exists.
    """
    if model.task == "regression":
        if label is not None:
            raise ValueError(one_line(f"a regression model has no labels to rank by, got label {label!r}"))
        return 0
    name = positive_label(model.labels) if label is None else str(label)
    if name not in model.labels:
        got = "none; name one, because none is called entailment or 1" if label is None else repr(label)
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
    """Return the best candidates of each query, the best one first.

    Args:
        model: the model.
        queries: the premises.
        candidates: places, in increasing order, and texts; read once, a few thousand at a time.
        top_k: how many to return per query at most; None returns all.
        output: see ``output_of``.
        batch_size: largest number of pairs per forward pass.

    Raises:
        FloatingPointError: the network returns NaN or infinity.
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
    """Yield parts of at most ``most`` sentences; a part also ends with the sentence that brings it to _WORDS words."""
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
    """Return scores as float32 ``[number of queries, number of candidates]``."""
    distinct = {sentence.text: sentence.ids for sentence in (*queries, *candidates)}
    place_of = {text: place for place, text in enumerate(distinct)}
    premises, hypotheses = (np.array([place_of[sentence.text] for sentence in side]) for side in (queries, candidates))
    hypotheses, columns = np.unique(hypotheses, return_inverse=True)  # score equal texts only once
    members = np.stack(np.broadcast_arrays(premises[:, None], hypotheses), -1).reshape(-1, 2)
    logits = torch.empty(len(members), len(model.labels))
    shared = SharedSentences.of([*distinct.values()], members)
    how: dict[str, Any] = {"precision": model.precision, "forward": model.captured}
    for indices, found in scored_shared(model.net, shared, batch_size, **how):
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

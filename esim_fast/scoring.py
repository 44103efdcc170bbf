"""Run a network over many encoded pairs, without gradients and dropout.

Embedding and first BiLSTM (equations 1 and 2) depend on one sentence only, so a sentence that occurs in several pairs
is encoded once. The rest of the network works on pairs, which get copies of the encoded words.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import autocast
from .data import Batch, EncodedPairs, batches
from .data.distinct import SharedSentences, shared_sentences
from .inputs import check_tokens
from .model import ESIM, is_as_made
from .ops.checks import autocast_dtype
from .ops.projection import without_difference
from .packed import PackedPairs
from .quantized import inference_precision, quantized_comparison, quantized_encoding, quantized_logits

NOT_FINITE = "the network's output must be finite, got NaN or infinity"

Forward: TypeAlias = Callable[[PackedPairs], Tensor]

_MOST_TOKENS = 2**15  # per forward pass, so that long sentences do not fill the memory
# On a CPU, tensors of 32 MB and more are slower: malloc maps them anew, and the system clears them each time.
_MOST_BYTES = 2**25 - 2**20
_KEPT_TOKENS = 2**15  # of distinct sentences whose encodings are kept together: 120 MB with 300 units
_LEAST_REPEATED = 0.2  # share of repeated tokens below which sharing costs more than it saves


@contextmanager
def evaluating(net: ESIM) -> Iterator[None]:
    """Put the network into evaluation mode; restore the mode of every module afterwards.

    Threads may share a network only if it is already in evaluation mode.
    """
    training = [module for module in net.modules() if module.training]
    try:
        if training:
            net.eval()
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def scored_batches(
    net: ESIM,
    pairs: EncodedPairs,
    batch_size: int | None,
    *,
    precision: str = "fp32",
    forward: Forward | None = None,
    **options: Any,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of pairs with their logits, without dropout: float32 ``[B, number of labels]`` on the CPU.

    Args:
        net: the network.
        pairs: encoded pairs.
        batch_size: pairs per batch.
        precision: as for ``esim_fast.Classifier``.
        forward: an ``esim_fast.captured.CapturedForward`` of the network, which then computes the logits; or None.
        options: options of ``esim_fast.data.batches``. Empty parts of batches are skipped.
    """
    precision = inference_precision(precision, net.device, net)
    with evaluating(net):
        pinned = net.device.type == "cuda" and forward is None  # it has pinned memory of its own
        for batch in batches(pairs, batch_size, shuffle=False, pin_memory=pinned, **options):
            if len(batch) and forward is not None:
                yield batch, forward(batch.pairs)
            elif len(batch):
                yield batch, _logits(net, batch.pairs.to(net.device), precision).float().cpu()


def scored_pairs(
    net: ESIM, pairs: EncodedPairs, batch_size: int, *, precision: str = "fp32", forward: Forward | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices of pairs with their logits, as in ``scored_batches``, encoding repeated sentences once if that
    pays.

    Shared encoding changes logits only by rounding. With ``forward``, pairs are scored whole.
    """
    if forward is not None:
        yield from _scored_whole(net, pairs, batch_size, precision, forward)
        return
    parts = list(shared_sentences(pairs, _KEPT_TOKENS))
    if sum(part.words for part in parts) > (1 - _LEAST_REPEATED) * pairs.lengths.sum():
        yield from _scored_whole(net, pairs, batch_size, precision)
        return
    first = 0
    for part in parts:
        for indices, scores in scored_shared(net, part, batch_size, precision=precision):
            yield first + indices, scores
        first += len(part.members)


@torch.no_grad()
def scored_shared(
    net: ESIM, shared: SharedSentences, batch_size: int, *, precision: str = "fp32", forward: Forward | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices and logits of pairs whose sentences are each encoded once; all encoded words are kept meanwhile.

    No gradients are computed. Pairs are scored whole instead if the network has hooks or replaced forward passes, or
    with ``forward``, which is as in ``scored_batches``.
    """
    if forward is not None or not is_as_made(net):
        yield from _scored_whole(net, shared.pairs(shared.word_ids()), batch_size, precision, forward)
        return
    precision = inference_precision(precision, net.device, net)
    how: dict[str, Any] = {"shuffle": False, "pin_memory": net.device.type == "cuda", "max_tokens": _most_tokens(net)}
    with evaluating(net):
        compare = _Comparison(net, _encoded(net, shared, precision, how), precision)
        for batch in batches(shared.pairs(), batch_size, **how):
            yield batch.indices, compare(batch.pairs.to(net.device)).float().cpu()


def _scored_whole(
    net: ESIM, pairs: EncodedPairs, batch_size: int, precision: str, forward: Forward | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    how: dict[str, Any] = {"max_tokens": _most_tokens(net), "precision": precision, "forward": forward}
    for batch, scores in scored_batches(net, pairs, batch_size, **how):
        yield batch.indices, scores


def _most_tokens(net: ESIM) -> int:
    """Return the largest number of tokens of a batch. The widest tensors have 8 numbers for each unit and token."""
    if net.device.type != "cpu":
        return _MOST_TOKENS
    return max(1, min(_MOST_TOKENS, _MOST_BYTES // (32 * net.config.hidden_size)))


def _logits(net: ESIM, pairs: PackedPairs, precision: str) -> Tensor:
    if precision == "int8":
        return quantized_logits(net, pairs)
    with autocast(precision, net.device):
        return net(pairs)


def _encoded(net: ESIM, shared: SharedSentences, precision: str, how: dict[str, Any]) -> Tensor:
    """Return the encoded words of all sentences, concatenated: ``[R, 2H]``."""
    words = shared.word_ids().to(net.device)
    check_tokens("tokens", words, net.embedding)
    places, rows = [], []
    for batch in batches(shared.sentences(), **how):
        sentences = batch.pairs.to(net.device)
        places.append(sentences.tokens)
        rows.append(_encode(net, replace(sentences, tokens=words[sentences.tokens]), precision))
    encoded = torch.cat(rows)
    return torch.empty_like(encoded).index_copy_(0, torch.cat(places), encoded)


def _encode(net: ESIM, sentences: PackedPairs, precision: str) -> Tensor:
    if precision == "int8":
        return quantized_encoding(net, sentences)
    with autocast(precision, net.device):
        return net.encode(sentences)


class _Comparison:
    """The network after the encoder, on pairs of encoded sentences: equations 11 to 20 and the classifier.

    In fp32 the projection is computed in three parts (ops/projection.py). The first depends on the word alone, so it is
    computed once, before sentences are paired.
    """

    def __init__(self, net: ESIM, encoded: Tensor, precision: str) -> None:
        self._net, self._encoded, self._precision = net, encoded, precision
        self._composition = composition = net.infercomposition.composition
        self._in_parts = precision == "fp32" and type(composition.F) is nn.Linear and autocast_dtype(net.device) is None
        if self._in_parts:
            of_word, of_aligned, of_product = without_difference(composition.F.weight).chunk(3, dim=1)  # [H, 2H] each
            self._projected = functional.linear(encoded, of_word, composition.F.bias)  # [R, H]
            self._of_aligned, self._of_product = of_aligned.contiguous().t(), of_product.contiguous().t()

    def __call__(self, pairs: PackedPairs) -> Tensor:
        """Return the logits ``[B, num_labels]`` of pairs whose tokens are rows of the encoded words."""
        net, x = self._net, self._encoded.index_select(0, pairs.tokens)  # [N, 2H]
        if self._precision == "int8":
            return quantized_comparison(net, x, pairs)
        rows = pairs.rows(x.shape[1])
        with autocast(self._precision, net.device):
            m = net.inference(x, rows)  # [N, 8H]
            if not self._in_parts:
                return net.linear(net.infercomposition(m, pairs, rows))
            _, aligned, _, product = m.chunk(4, dim=1)
            y = self._projected.index_select(0, pairs.tokens)  # [N, H]
            y.addmm_(aligned, self._of_aligned).addmm_(product, self._of_product)
            return net.linear(net.infercomposition.pool(self._composition.compose(y, pairs), rows))

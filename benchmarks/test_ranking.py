"""Ranking every candidate for every query, pair by pair and with each sentence encoded once.

300 units, made-up words, SNLI's lengths of premises (queries) and hypotheses (candidates). The variants "pair by pair"
start from word ids, the others from text.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from benchmarks.corpus import draw_lengths
from benchmarks.measure import DEVICE, Variant
from esim_fast import ESIM, Classifier, data
from esim_fast.quantized import inference_precision
from esim_fast.scoring import scored_batches

WORDS, LABELS = 10_000, ["entailment", "neutral", "contradiction"]
WHOLE = {"pair by pair, batches of 256": 256, "pair by pair, batches of 128": 128, "pair by pair, batches of 64": 64}
OURS = ["esim_fast, predict", "esim_fast, rank"]


@cache
def model_of(precision):
    torch.manual_seed(0)
    vocabulary = data.Vocabulary([data.UNKNOWN, data.PADDING, *(f"word{index}" for index in range(2, WORDS))])
    net = ESIM(300, 300, WORDS, 3).to(DEVICE).eval()
    for parameter in net.linear.parameters():
        parameter.data.mul_(20)  # makes scores differ
    return Classifier(net, vocabulary, LABELS, "whitespace", precision=precision)


def contenders(queries, candidates, precision):
    if inference_precision("auto", DEVICE) != "int8" and precision == "int8":
        return dict.fromkeys([*WHOLE, *OURS], "needs a CPU with VNNI")
    model, rng = model_of(precision), np.random.default_rng(0)
    lengths = draw_lengths(max(queries, candidates), rng)
    texts = [
        [" ".join(f"word{index}" for index in rng.integers(2, WORDS, length)) for length in side[:count]]
        for side, count in zip(lengths.T, (queries, candidates), strict=True)
    ]
    pairs = list(product(*texts))
    encoded = data.EncodedPairs(*zip(*(map(model.encode, pair) for pair in pairs), strict=True), None)

    def whole(batch_size):
        scores = torch.empty(len(pairs), 3)
        for batch, logits in scored_batches(model.net, encoded, batch_size, max_tokens=2**15, precision=precision):
            scores[batch.indices] = logits.softmax(1)
        return scores[:, 0].view(queries, candidates)

    def predict():
        return model.predict(pairs).probabilities[:, 0].view(queries, candidates)

    def rank():
        scores = torch.empty(queries, candidates)
        for query, found in enumerate(model.rank(texts[0], texts[1], top_k=None)):
            for one in found:
                scores[query, one["corpus_id"]] = one["score"]
        return scores

    calls = {name: lambda size=size: whole(size) for name, size in WHOLE.items()}
    calls |= dict(zip(OURS, (predict, rank), strict=True))
    expected = whole(256)
    assert expected.std() > 0.01

    def check(call):
        torch.testing.assert_close(call(), expected, rtol=0, atol=1e-5)

    return {name: Variant(call, lambda call=call: check(call)) for name, call in calls.items()}


@pytest.mark.parametrize("variant", [*WHOLE, *OURS])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("queries", "candidates"), [(5, 200), *(pytest.param(*n, marks=pytest.mark.full) for n in ((1, 2000), (50, 200)))]
)
def test_ranking(variant, queries, candidates, precision, race):
    race(variant, lambda: contenders(queries, candidates, precision))

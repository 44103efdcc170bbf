"""Pairs that share sentences get the same scores in every precision, and each sentence is encoded once."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from esim_fast import ESIM, scoring
from esim_fast.data import EncodedPairs
from esim_fast.data.distinct import SharedSentences, shared_sentences
from esim_fast.ops import int8
from esim_fast.scoring import evaluating, scored_batches, scored_pairs, scored_shared

WORDS = 50
PRECISIONS = ["fp32", "bf16", pytest.param("int8", marks=pytest.mark.skipif(not int8.LANES, reason="needs VNNI"))]


def new_net(**options):
    torch.manual_seed(0)
    net = ESIM(20, 12, WORDS, 3, **options)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # makes logits differ
    return net.eval()


def random_sentences(count, rng, longest=9):
    return [rng.integers(2, WORDS, length).tolist() for length in rng.integers(0, longest + 1, count)]


def random_shared(seed, count=300, sentences=25):
    rng = np.random.default_rng(seed)
    return SharedSentences.of(random_sentences(sentences, rng), rng.integers(0, sentences, (count, 2)))


def as_encoded(shared):
    ids = np.split(shared.word_ids().numpy(), shared.lengths.cumsum()[:-1])
    return EncodedPairs([ids[p] for p, _ in shared.members], [ids[h] for _, h in shared.members], None)


def together(scored, pairs):
    result = torch.full((len(pairs), 3), torch.nan)
    for indices, scores in scored:
        result[indices] = scores
    return result


def whole(net, pairs, precision="fp32", batch_size=64):
    scored = scored_batches(net, pairs, batch_size, precision=precision)
    return together(((batch.indices, scores) for batch, scores in scored), pairs)


@pytest.mark.parametrize("options", [{}, {"variant": "notebook"}, {"projection_activation": "tanh", "padding_idx": 0}])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_scores_as_pair_by_pair(precision, options):
    net, shared = new_net(**options), random_shared(0)
    pairs = as_encoded(shared)
    expected = whole(net, pairs, precision)
    assert expected.std() > 0.1
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if precision != "bf16" else {"rtol": 0, "atol": 2**-6 * expected.abs().max()}
    )
    for batch_size in (1, 32, 1000):
        found = together(scored_shared(net, shared, batch_size, precision=precision), pairs)
        torch.testing.assert_close(found, expected, **tolerance)
    with mock.patch.multiple(scoring, _KEPT_TOKENS=30, _LEAST_REPEATED=0):  # makes parts, which encode sentences again
        torch.testing.assert_close(
            together(scored_pairs(net, pairs, 32, precision=precision), pairs), expected, **tolerance
        )


def test_against_fp64():
    net, shared = new_net(), random_shared(1)
    pairs = as_encoded(shared)
    found = together(scored_shared(net, shared, 32), pairs)
    torch.testing.assert_close(found, whole(net.double(), pairs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together(scored_shared(net, shared, 32), pairs), whole(net, pairs))


def test_each_sentence_is_encoded_once():
    net, shared = new_net(), random_shared(2)
    words, encode = [], scoring._encode

    def counted(net, pairs, precision):
        words.append(len(pairs.tokens))
        return encode(net, pairs, precision)

    with mock.patch.object(scoring, "_encode", counted):
        together(scored_shared(net, shared, 8), shared.members)
    assert sum(words) == shared.words == int(shared.lengths.sum())
    assert shared.pairs().lengths.sum() > 10 * shared.words


@pytest.mark.parametrize("sentence", [[], [3], [5] * 2000])
def test_extreme_sentences(sentence):
    net = new_net()
    shared = SharedSentences.of([sentence, [], [4]], np.array([[0, 0], [0, 1], [1, 0], [2, 0], [1, 1], [0, 2]]))
    pairs = as_encoded(shared)
    torch.testing.assert_close(together(scored_shared(net, shared, 4), pairs), whole(net, pairs), rtol=1e-5, atol=1e-5)


def test_parts_hold_all_pairs_in_their_order():
    rng = np.random.default_rng(3)
    sentences = [*random_sentences(30, rng), [7]]
    members = np.concatenate([rng.integers(0, 30, (200, 2)), [[30, 30]]])
    premises, hypotheses = ([sentences[place] for place in side] for side in members.T)
    pairs = EncodedPairs(premises, hypotheses, None)
    ids = rng.permutation(WORDS)
    numbered = EncodedPairs.of_tokens(np.argsort(ids)[pairs.tokens].astype(np.int32), ids, pairs.begins, pairs.lengths)
    for source in (pairs, numbered):
        for words in (1, 40, 10**6):
            first = 0
            for part in shared_sentences(source, words):
                indices = range(first, first + len(part.members))
                found, expected = as_encoded(part)[range(len(part.members))].pairs, pairs[indices].pairs
                assert torch.equal(found.tokens, expected.tokens)
                assert torch.equal(found.lengths, expected.lengths)
                distinct = {tuple(side[place]) for side in (premises, hypotheses) for place in indices}
                assert len(part.lengths) == len(distinct)
                assert part.words == sum(map(len, distinct))
                first += len(part.members)
            assert first == 201
    assert list(shared_sentences(EncodedPairs([], [], None), 5)) == []
    (empty,) = shared_sentences(EncodedPairs([[], []], [[], []], None), 5)
    assert empty.members.tolist() == [[0, 0], [0, 0]]


def test_pairs_without_repeated_sentences():
    """Bit for bit, in the batches of all pairs."""
    net, rng = new_net(), np.random.default_rng(4)
    pairs = EncodedPairs(*(random_sentences(100, rng, 30) for _ in range(2)), None)
    assert torch.equal(together(scored_pairs(net, pairs, 16), pairs), whole(net, pairs, batch_size=16))
    with mock.patch.object(scoring, "scored_shared", side_effect=AssertionError):
        list(scored_pairs(net, pairs, 16))
        with pytest.raises(AssertionError):
            list(scored_pairs(net, as_encoded(random_shared(5)), 16))


def test_there_are_no_gradients_and_the_mode_stays():
    net, shared = new_net().train(), random_shared(6)
    first, second = (together(scored_shared(net, shared, 50), shared.members) for _ in range(2))
    assert torch.equal(first, second), "dropout is on"
    assert net.training
    scores = next(scored_shared(net, shared, 50))[1]
    assert not scores.requires_grad
    with pytest.raises(ValueError, match="is not a token id"):
        list(scored_shared(net, SharedSentences.of([[WORDS]], np.zeros((2, 2), int)), 2))
    assert net.training


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Negative(ESIM):
    def forward(self, *arguments):
        return -super().forward(*arguments)


def test_customized_networks():
    shared = random_shared(7)
    pairs = as_encoded(shared)
    net = new_net()
    plain = whole(net, pairs)
    replaced, hooked, own, inner = new_net(), new_net(), Negative(20, 12, WORDS, 3).eval(), new_net()
    replaced.infercomposition.composition.F = Doubled(160, 20)
    replaced.load_state_dict(net.state_dict())
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    own.load_state_dict(net.state_dict())
    inner.infercomposition.composition.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0], *inputs[1:]))
    for changed in (replaced, hooked, own, inner):
        expected = whole(changed, pairs)
        assert not torch.allclose(expected, plain)
        found = together(scored_shared(changed, shared, 32), pairs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_under_autocast():
    net, shared = new_net(), random_shared(8)
    pairs = as_encoded(shared)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = together(scored_shared(net, shared, 32), pairs), whole(net, pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=2**-6 * float(expected.abs().max()))


def replaced_forward(net):
    net.infercomposition.composition.F.forward = lambda x: torch.ones(len(x), 8)


def own_part(net):
    class Own(type(net.infercomposition)):
        def forward(self, m, pairs, rows):
            return super().forward(m, pairs, rows) + 1

    net.infercomposition.__class__ = Own


@pytest.mark.parametrize("change", [replaced_forward, own_part])
def test_custom_modules_run(change):
    torch.manual_seed(0)
    net = ESIM(8, 6, 30, 3).eval()
    pairs = EncodedPairs([[2, 3, 4]] * 4, [[5, 6], [7], [8, 9], [5]], None)
    before = torch.cat([scores for _, scores in scored_pairs(net, pairs, 4)])
    change(net)
    with torch.no_grad():
        expected = net(pairs[range(4)].pairs)
    found = torch.empty(4, 3)
    for indices, scores in scored_pairs(net, pairs, 4):
        found[indices] = scores
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, before)


def test_modes_of_modules_stay():
    net = ESIM(8, 6, 30, 3).train()
    net.embedding_dropout.eval()
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert not net.embedding_dropout.training
    assert net.encoder.training

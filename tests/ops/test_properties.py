"""Properties that hold for all sentences; hypothesis searches for counterexamples.

Each property is a function, and its docstring states the guarantee. The profile sets the number of examples: at least
1,500 by default and 50,000 with ``--hypothesis-profile nightly``.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from esim_fast import ESIM, pack_pairs
from esim_fast.ops import bilstm, local_inference, masked_pool
from tests.ops.layouts import LAYOUTS, Layout
from tests.ops.pairs import Pairs

WORDS, LABELS, PADDING = 40, 3, 1
EXAMPLES = settings.default.max_examples


def each(properties):
    """One test per property."""
    return pytest.mark.parametrize("holds", [pytest.param(holds, id=holds.__name__) for holds in properties])


@dataclass(frozen=True)
class Case:
    """Sentence pairs, and two ways to pass them to an op."""

    lengths: list[tuple[int, int]]
    width: int
    seed: int
    score: float
    layouts: tuple[str, str]
    padding: tuple[int, int]
    elsewhere: tuple[float, float]

    def pairs(self, dtype):
        return Pairs.draw(self.lengths, self.width, self.seed, self.score, dtype)

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def order(self):
        return torch.randperm(len(self.lengths), generator=self.generator()).tolist()

    def cut(self):
        """A place between two pairs of the batch."""
        return self.seed % max(len(self.lengths) - 1, 1) + 1


length = st.integers(0, 9) | st.just(0) | st.integers(10, 20)
length_pairs = st.lists(st.tuples(length, length), min_size=1, max_size=4)
elsewhere = st.sampled_from([math.nan, math.inf, -math.inf, 6e4, 0.0])
layout = st.sampled_from(LAYOUTS)
cases = st.builds(
    Case,
    lengths=length_pairs,
    width=st.sampled_from([1, 2, 7, 16, 20, 33]),
    seed=st.integers(0, 2**20),
    score=st.sampled_from([1e-2, 1.0, 30.0]),
    layouts=st.tuples(layout, layout),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    elsewhere=st.tuples(elsewhere, elsewhere),
)


def assert_same(ours, theirs, exactly):
    """Compares sentence by sentence, bit for bit or up to a few roundings of sums in another order."""
    for left, right in zip(ours, theirs, strict=True):
        for x, y in zip(left, right, strict=True):
            assert x.shape == y.shape
            if exactly:
                assert torch.equal(x, y)
            elif x.numel():
                relative = 1e-11 if x.dtype == torch.float64 else 1e-4
                torch.testing.assert_close(x, y, rtol=relative, atol=relative * float(y.abs().max()))


def align(case, pairs, backend, way=0, one_tensor=False):
    """m_a, m_b and the gradients of a and b, pair by pair; checks that everything else is zero."""
    layout = "one tensor" if one_tensor else case.layouts[way]
    return pairs.through_the_op(layout, "cpu", backend, case.seed, case.elsewhere[way], case.padding[way])


def dtype_of(backend):
    return torch.float32 if backend == "triton" else torch.float64


def layouts_agree(case, backend):
    """Local inference: the results do not depend on the layout or on what is outside the sentences."""
    pairs = case.pairs(dtype_of(backend))
    first = align(case, pairs, backend)
    assert_same(first, align(case, pairs, backend, way=1), exactly=backend == "cpp")
    assert_same(first, align(case, pairs, backend, way=1, one_tensor=True), exactly=backend == "cpp")


def follows_the_order_of_the_batch(case, backend):
    """Local inference: pairs in another order give the same results in that order."""
    pairs, order = case.pairs(dtype_of(backend)), case.order()
    moved = Pairs(*([values[i] for i in order] for values in (pairs.a, pairs.b, pairs.grad_m_a, pairs.grad_m_b)))
    results = align(case, pairs, backend)
    assert_same(align(case, moved, backend), [results[i] for i in order], exactly=backend == "cpp")


def swaps_with_its_sides(case, backend):
    """Local inference: swapping a and b swaps the results."""
    pairs = case.pairs(dtype_of(backend))
    swapped = align(case, Pairs(pairs.b, pairs.a, pairs.grad_m_b, pairs.grad_m_a), backend, way=1)
    assert_same(align(case, pairs, backend), [(m_a, m_b, a, b) for m_b, m_a, b, a in swapped], exactly=False)


def splits_with_the_batch(case, backend):
    """Local inference: two parts of a batch give the same results as the whole."""
    pairs, cut = case.pairs(dtype_of(backend)), case.cut()
    everything = pairs.a, pairs.b, pairs.grad_m_a, pairs.grad_m_b
    parts = [Pairs(*(values[part] for values in everything)) for part in (slice(0, cut), slice(cut, None))]
    parts = [part for part in parts if part.a]
    results = [pair for part in parts for pair in align(case, part, backend)]
    assert_same(results, align(case, pairs, backend), exactly=backend == "cpp")


def weights_sum_to_one(case, backend):
    """Local inference: a word is aligned with a weighted mean of the other sentence, or with zero if it is empty."""
    pairs = case.pairs(dtype_of(backend))
    for sentences in (pairs.a, pairs.b):
        for x in sentences:
            x[:, -1] = 1.0  # a weighted mean of ones is one
    for (m_a, m_b, *_), a, b in zip(align(case, pairs, backend), pairs.a, pairs.b, strict=True):
        for m, other in ((m_a, b), (m_b, a)):
            if not len(m):
                continue
            aligned = m[:, case.width : 2 * case.width]
            torch.testing.assert_close(aligned[:, -1], torch.full_like(aligned[:, -1], float(len(other) > 0)))
            if len(other):
                slack = 1e-5 * (1 + other.abs().max())
                assert (aligned <= other.max(0).values + slack).all()
                assert (aligned >= other.min(0).values - slack).all()
            else:
                assert not aligned.any()


def gradients_are_linear(case, backend):
    """Local inference: doubling the results' gradient doubles the sentences' gradient, and zero gives zero."""
    pairs = case.pairs(dtype_of(backend))
    results = align(case, pairs, backend)
    for factor in (2.0, 0.0):
        scaled = Pairs(pairs.a, pairs.b, [factor * g for g in pairs.grad_m_a], [factor * g for g in pairs.grad_m_b])
        expected = [(m_a, m_b, factor * a, factor * b) for m_a, m_b, a, b in results]
        # Powers of two are exact, except for subnormal numbers.
        assert_same(align(case, scaled, backend), expected, exactly=factor == 0)


LOCAL_INFERENCE = [layouts_agree, follows_the_order_of_the_batch, swaps_with_its_sides, splits_with_the_batch]
LOCAL_INFERENCE += [weights_sum_to_one, gradients_are_linear]


@each(LOCAL_INFERENCE)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@given(case=cases)
def test_local_inference(holds, backend, case):
    holds(case, backend)


@each(LOCAL_INFERENCE)
@pytest.mark.interpreter
@settings(max_examples=max(1, EXAMPLES // 12))  # the interpreter is a hundred times slower
@given(case=cases)
def test_interpreted_local_inference(holds, case):
    holds(case, "triton")


def pool(case, backend, sentences, grad_v, way=0):
    """v and the tokens' gradient, sentence by sentence."""
    lengths = [len(x) for x in sentences]
    given_as = Layout.make(case.layouts[way], lengths, case.width, case.seed, case.padding[way])
    x = given_as.fill(sentences, case.elsewhere[way]).requires_grad_()
    v = masked_pool(x, **given_as.given_as, backend=backend)
    return list(zip(v.detach(), given_as.sentences(torch.autograd.grad(v, x, grad_v)[0]), strict=True))


def draw_sentences(case):
    """Sentences with many ties, and the gradient of their pooled vectors."""
    generator = case.generator()
    of_a_kind = {"generator": generator, "dtype": torch.float64}
    sentences = [torch.randn(n, case.width, **of_a_kind).round(decimals=case.seed % 2) for n, _ in case.lengths]
    return sentences, torch.randn(len(sentences), 2 * case.width, **of_a_kind)


def pooling_has_no_layout(case, backend):
    """Pooling: the results do not depend on the layout or on what is outside the sentences."""
    sentences, grad_v = draw_sentences(case)
    first, second = (pool(case, backend, sentences, grad_v, way) for way in (0, 1))
    assert_same(first, second, exactly=False)


def pooling_follows_the_batch(case, backend):
    """Pooling: sentences in another order or in two batches give the same results."""
    sentences, grad_v = draw_sentences(case)
    results, order, cut = pool(case, backend, sentences, grad_v), case.order(), case.cut()
    moved = pool(case, backend, [sentences[i] for i in order], grad_v[order])
    assert_same(moved, [results[i] for i in order], exactly=backend == "cpp")
    parts = [pool(case, backend, sentences[:cut], grad_v[:cut])]
    if sentences[cut:]:
        parts.append(pool(case, backend, sentences[cut:], grad_v[cut:]))
    assert_same([result for part in parts for result in part], results, exactly=backend == "cpp")


def pools_to_what_is_there(case, backend):
    """Pooling: the average is the tokens' average, the maximum is one of them, and an empty sentence gives zeros."""
    sentences, grad_v = draw_sentences(case)
    for x, (v, _) in zip(sentences, pool(case, backend, sentences, grad_v), strict=True):
        average, maximum = v.chunk(2)
        if len(x):
            torch.testing.assert_close(average, x.mean(0), rtol=1e-12, atol=1e-12)
            assert torch.equal(maximum, x.max(0).values)
        else:
            assert not v.any()


def gradients_of_pooling_are_shared_out(case, backend):
    """Pooling: each token gets its share of the average's gradient, and only the first maximum gets the maximum's."""
    sentences, grad_v = draw_sentences(case)
    for x, grad, (_, grad_x) in zip(sentences, grad_v, pool(case, backend, sentences, grad_v), strict=True):
        if len(x):
            average, maximum = grad.chunk(2)
            expected = (average / len(x)).expand_as(x).clone()
            expected[x.max(0).indices, torch.arange(case.width)] += maximum
            torch.testing.assert_close(grad_x, expected, rtol=1e-12, atol=1e-12)


@each([pooling_has_no_layout, pooling_follows_the_batch, pools_to_what_is_there, gradients_of_pooling_are_shared_out])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@given(case=cases)
def test_masked_pool(holds, backend, case):
    holds(case, backend)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@given(shape=st.tuples(*[st.integers(0, 2)] * 4), masked=st.booleans())
def test_empty_input(backend, shape, masked):
    batch, la, lb, width = shape
    a, b = (torch.randn(batch, n, width, requires_grad=True) for n in (la, lb))
    masks = [torch.zeros(batch, n, dtype=torch.bool) for n in (la, lb)] if masked else [None, None]
    m_a, m_b = local_inference(a, b, a_mask=masks[0], b_mask=masks[1], backend=backend)
    v = masked_pool(a, mask=masks[0], backend=backend)
    (m_a.sum() + m_b.sum() + v.sum()).backward()
    assert [m_a.shape, m_b.shape, v.shape] == [(batch, la, 4 * width), (batch, lb, 4 * width), (batch, 2 * width)]
    for x in (a.grad, b.grad, m_a, m_b, v):
        assert x.isfinite().all()
        assert not masked or not x.any()
    assert la or not v.any()


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    sizes=st.tuples(st.sampled_from([1, 5, 16]), st.sampled_from([1, 3, 16, 17])),
    seed=st.integers(0, 2**20),
)
def test_bilstm(backend, lengths, sizes, seed):
    torch.manual_seed(seed)
    lstm = nn.LSTM(*sizes, bidirectional=True)
    sentences = [torch.randn(n, sizes[0], requires_grad=True) for n in sorted(lengths, reverse=True)]
    packed = pack_sequence(sentences)
    together = bilstm(lstm, packed.data, packed.batch_sizes, backend=backend)
    states = nn.utils.rnn.unpack_sequence(packed._replace(data=together))
    for x, y in zip(sentences, states, strict=True):
        alone = bilstm(lstm, x, torch.ones(len(x), dtype=torch.int64), backend=backend)
        torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-5)
        grad_y = torch.randn_like(y)
        of_all = torch.autograd.grad(y, x, grad_y, retain_graph=True)
        torch.testing.assert_close(of_all, torch.autograd.grad(alone, x, grad_y), rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Batch:
    """Token ids of sentence pairs, and ways to pad them."""

    lengths: list[tuple[int, int]]
    seed: int
    padding: int

    def sentences(self):
        generator = torch.Generator().manual_seed(self.seed)
        return [tuple(torch.randint(2, WORDS, (n,), generator=generator) for n in pair) for pair in self.lengths]

    def padded(self, sentences, scattered=False):
        """Premises and hypotheses, right-padded or with padding between the words."""
        generator, sides = torch.Generator().manual_seed(self.seed + 1), []
        for side in zip(*sentences, strict=True):
            ids = torch.full((len(side), max(map(len, side)) + self.padding), PADDING)
            for row, words in zip(ids, side, strict=True):
                places = torch.arange(len(words))
                if scattered:
                    places = torch.randperm(len(row), generator=generator)[: len(words)].sort().values
                row[places] = words
            sides.append(ids)
        return sides[0], sides[1]


def make_net(variant, seed):
    torch.manual_seed(seed)
    return ESIM(6, 5, WORDS, LABELS, variant=variant).eval()


def logits_and_gradients(net, *batch):
    logits = net(*batch)
    # If no sentence has words, the LSTMs do not run.
    gradients = torch.autograd.grad(logits.square().sum(), list(net.parameters()), materialize_grads=True)
    return [logits.detach(), *gradients]


def assert_close(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def padding_is_no_word(batch, net):
    """ESIM: padding ids have no effect anywhere, nor does their vector, which gets no gradient."""
    plain = logits_and_gradients(net, *batch.padded(batch.sentences()))
    with torch.no_grad():
        net.embedding.weight[PADDING] = math.nan
    p, h = batch.padded(batch.sentences(), scattered=True)
    scattered = logits_and_gradients(net, p, h)
    assert_close(scattered, plain)
    if net.device.type == "cpu":  # with lengths, a GPU ignores padding ids and expects right padding
        full = [torch.full((len(ids),), ids.shape[1]) for ids in (p, h)]
        assert_close(logits_and_gradients(net, p, h, *full), plain)
    of_words = dict(zip(dict(net.named_parameters()), scattered[1:], strict=True))["embedding.weight"]
    assert not of_words[PADDING].any()


def logits_follow_the_batch(batch, net):
    """ESIM: pairs in another order or one at a time get the same logits, and parameters get the same gradients."""
    sentences = batch.sentences()
    together = logits_and_gradients(net, *batch.padded(sentences))
    moved = logits_and_gradients(net, *batch.padded(sentences[::-1]))
    assert_close(moved, [together[0].flip(0), *together[1:]])
    alone = [logits_and_gradients(net, *batch.padded([pair])) for pair in sentences]
    logits, *gradients = zip(*alone, strict=True)
    assert_close([torch.cat(logits), *(sum(gradient) for gradient in gradients)], together)


def all_ways_in_are_one(batch, net):
    """ESIM: ids alone, ids with lengths, int32 ids and packed pairs give the same results, in bf16 up to rounding."""
    p, h = batch.padded(batch.sentences())
    lengths = [torch.tensor([pair[side] for pair in batch.lengths]) for side in (0, 1)]
    plain = logits_and_gradients(net, p, h)
    assert_close(logits_and_gradients(net, p, h, *lengths), plain)
    assert_close(logits_and_gradients(net, p.int(), h.int()), plain)
    assert_close(logits_and_gradients(net, pack_pairs(p, h, *lengths)), plain)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(p, h).float(), plain[0], rtol=0.1, atol=0.1)


def attention_is_a_distribution(batch, net):
    """ESIM: a word's attention sums to one, is zero at padding anywhere, and swaps with the sentences."""
    p, h = batch.padded(batch.sentences())
    behind = [weights[(p != PADDING)[:, :, None] & (h != PADDING)[:, None]] for weights in net.attention(p, h)]
    p, h = batch.padded(batch.sentences(), scattered=True)
    alpha, beta = net.attention(p, h)
    p_words, h_words = p != PADDING, h != PADDING
    both_words = p_words[:, :, None] & h_words[:, None]
    assert not alpha[~both_words].any()
    assert not beta[~both_words].any()
    assert_close((alpha[both_words], beta[both_words]), behind)
    torch.testing.assert_close(alpha.sum(2), (p_words & h_words.any(1, keepdim=True)).float())
    torch.testing.assert_close(beta.sum(1), (h_words & p_words.any(1, keepdim=True)).float())
    of_h, of_p = net.attention(h, p)
    assert_close((of_p.transpose(1, 2), of_h.transpose(1, 2)), (alpha, beta))


MODEL = [padding_is_no_word, logits_follow_the_batch, all_ways_in_are_one, attention_is_a_distribution]


@each(MODEL)
@pytest.mark.parametrize("variant", ["paper", "notebook"])
@settings(max_examples=max(1, EXAMPLES // 2))
@given(batch=st.builds(Batch, length_pairs, st.integers(0, 2**20), st.integers(0, 4)))
def test_model(holds, variant, batch):
    holds(batch, make_net(variant, batch.seed))


@each(MODEL)
@pytest.mark.parametrize(
    "lengths", [[(5, 4), (9, 2), (1, 6), (7, 1), (3, 8), (0, 2)], [(3, 0), (2, 0)], [(0, 0)]], ids=str
)
@pytest.mark.gpu
def test_model_on_a_gpu(holds, lengths):
    with torch.device("cpu"):
        net = make_net("paper", seed=0).cuda()
    holds(Batch(lengths, seed=0, padding=3), net)

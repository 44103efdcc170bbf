"""Word vectors instead of token ids: the same network, with gradients of its input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esim_fast

WORDS, WIDTH, HIDDEN, LABELS = 50, 12, 8, 3
P = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1], [1, 1, 1, 1]])
H = torch.tensor([[5, 2], [9, 1], [3, 12]])
LENGTHS = torch.tensor([4, 2, 0]), torch.tensor([2, 1, 2])


@pytest.fixture
def net():
    return network()


def network(**options):
    torch.manual_seed(0)
    return esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, **options).eval()


def looked_up(net, *ids):
    return tuple(net.embedding(side).detach().requires_grad_() for side in ids)


def gradients(logits, leaves):
    return torch.autograd.grad((logits * torch.arange(1.0, LABELS + 1)).sum(), leaves, materialize_grads=True)


class TestSameAsIds:
    @pytest.mark.filterwarnings("ignore:token ids look time-major")
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 6), st.integers(0, 7), st.integers(0, 7), st.integers(0, 2**16))
    def test_with_padding_anywhere(self, pairs, p_length, h_length, seed):
        """Ids mark padding in any pattern, and lengths may cut off more."""
        net, generator = network(), torch.Generator().manual_seed(seed)
        p, h = (torch.randint(0, 4, (pairs, length), generator=generator) for length in (p_length, h_length))
        lengths = [torch.randint(0, ids.shape[1] + 1, (pairs,), generator=generator) for ids in (p, h)]
        for arguments in ((p, h), (p, h, *lengths)):
            vectors = looked_up(net, p, h)
            wanted = net(*arguments)
            got = net(*arguments, embedded=vectors)
            assert torch.equal(got, wanted)
            (of_weight,) = gradients(wanted, [net.embedding.weight])
            of_words = torch.zeros_like(of_weight)
            for ids, gradient in zip((p, h), gradients(got, vectors), strict=True):
                of_words.index_add_(0, ids.reshape(-1), gradient.flatten(0, 1))
            torch.testing.assert_close(of_words, of_weight, rtol=1e-4, atol=1e-6)
            assert not of_words[1].any()  # the padding

    def test_lengths_alone(self, net):
        vectors = looked_up(net, P, H)
        got = net(None, None, *LENGTHS, embedded=vectors)
        assert torch.equal(got, net(P, H))
        assert torch.equal(net(p_lengths=[4, 2, 0], h_lengths=[2, 1, 2], embedded=list(vectors)), got)
        assert torch.equal(net(P, None, None, LENGTHS[1], embedded=vectors), got)  # one side has ids, the other lengths
        for gradient, lengths in zip(gradients(got, vectors), LENGTHS, strict=True):
            words = torch.arange(gradient.shape[1]) < lengths[:, None]
            assert gradient[words].any(1).all()
            assert not gradient[~words].any()

    def test_ids_of_another_vocabulary(self, net):
        vectors = looked_up(net, P, H)
        foreign = [ids.masked_fill(ids != 1, 30_000).int() for ids in (P, H)]
        assert torch.equal(net(*foreign, embedded=vectors), net(P, H))

    @pytest.mark.parametrize("variational", [False, True])
    def test_dropout(self, variational):
        net = network(variational_dropout=variational).train()
        logits = []
        for options in ({}, {"embedded": looked_up(net, P, H)}):
            torch.manual_seed(1)
            logits.append(net(P, H, **options))
        assert torch.equal(*logits)
        assert not torch.equal(net(P, H, embedded=looked_up(net, P, H)), logits[0])

    def test_strides_and_autocast(self, net):
        p, h = looked_up(net, P, H)
        with torch.autocast("cpu", torch.bfloat16):
            wanted = net(P, H)
            assert torch.equal(net(P, H, embedded=(p.bfloat16(), h)), wanted)
        time_major = p.detach().transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(net(P, H, embedded=(time_major, h)), net(P, H))


def test_padding_has_no_effect(net):
    p, h = (x.detach() for x in looked_up(net, P, H))
    spoilt = p.masked_fill((P == 1)[:, :, None], torch.nan).requires_grad_()
    got = net(P, H, embedded=(spoilt, h))
    assert torch.equal(got, net(P, H))
    (gradient,) = gradients(got, [spoilt])
    assert gradient.isfinite().all()


def test_no_pair_and_no_word(net):
    p, h = looked_up(net, P, H)
    assert net(P[:0], H[:0], embedded=(p[:0], h[:0])).shape == (0, LABELS)
    none = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(net(None, None, none, none, embedded=(p[:, :0], h)), net(P[:, :0], H, none, none))


@pytest.mark.parametrize(
    ("arguments", "embedded", "error", "message"),
    [
        ((P, H), lambda p, h: p, TypeError, r"embedded must be two tensors, \(premises, hypotheses\)"),
        ((P, H), lambda p, h: (p, None), TypeError, "embedded must be two tensors"),
        ((P, H), lambda p, h: (p, h, h), TypeError, "embedded must be two tensors"),
        ((P, H), lambda p, h: (p.double(), h), TypeError, r"embedded\[0\] must be torch.float32.* got torch.float64"),
        ((P, H), lambda p, h: (p, h.long()), TypeError, r"embedded\[1\] must be torch.float32.* got torch.int64"),
        (
            (P, H),
            lambda p, h: (p[0], h),
            ValueError,
            r"embedded\[0\] must be \[batch, length, 12\], .* \[4, 12\]",
        ),
        ((P, H), lambda p, h: (p, h[..., 1:]), ValueError, r"embedded\[1\] must be .*, got shape \[3, 2, 11\]"),
        ((P, H), lambda p, h: (p, h.to("meta")), ValueError, r"embedded\[1\] is on meta, but the model is on cpu"),
        (
            (P, H),
            lambda p, h: (p[:, 1:], h),
            ValueError,
            r"p has shape \[3, 4\], but embedded\[0\] has shape \[3, 3, 12\]",
        ),
        ((P.float(), H), lambda p, h: (p, h), TypeError, "p must be a tensor of token ids"),
        ((P, H.to("meta")), lambda p, h: (p, h), ValueError, "h is on meta, but the model is on cpu"),
        ((), lambda p, h: (p, h), ValueError, r"embedded\[0\] needs p or p_lengths to tell words from padding"),
        ((P,), lambda p, h: (p, h), ValueError, r"embedded\[1\] needs h or h_lengths to tell words from padding"),
        ((None, None, [4, 2, 5], [2, 1, 2]), lambda p, h: (p, h), ValueError, r"p_lengths\[2\] = 5, expected 0 to 4"),
        ((None, None, [4, 2, 0], [2, 1]), lambda p, h: (p, h), ValueError, r"h_lengths must have shape \[3\]"),
        ((P[:2], H), lambda p, h: (p[:2], h), ValueError, "p and h must have the same batch size, got 2 and 3"),
    ],
)
def test_mistakes(net, arguments, embedded, error, message):
    with pytest.raises(error, match=f"^{message}"):
        net(*arguments, embedded=embedded(*looked_up(net, P, H)))


def test_packed_pairs_are_rejected(net):
    with pytest.raises(TypeError, match=r"^packed pairs are the whole batch: pass no other arguments$"):
        net(esim_fast.pack_pairs(P, H, *LENGTHS), embedded=looked_up(net, P, H))


def test_hooks_on_the_embedding_see_padded_ids(net, monkeypatch):
    """Attribution tools replace the vectors there and need one row per pair."""
    monkeypatch.setattr(esim_fast.ESIM, "_absorbs_difference", lambda *_: False)  # as with hooks
    seen = []

    def doubled(_module, arguments, output):
        seen.append(arguments[0].tolist())
        return output * 2

    wanted = net(P, H, embedded=[2 * x for x in looked_up(net, P, H)])
    hook = net.embedding.register_forward_hook(doubled)
    assert torch.equal(net(P, H), wanted)
    assert torch.equal(net(P, H, *LENGTHS), wanted)
    assert seen == [torch.cat([P, H], 1).tolist()] * 2
    with pytest.raises(ValueError, match=r"^p\[1, 1\] = 60 is not a token id"):
        net(P + 50, H)
    hook.remove()
    assert torch.equal(net(P, H), net(P, H, embedded=looked_up(net, P, H)))

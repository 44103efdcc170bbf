"""Silent mistakes in training loops give a warning that names the remedy; ordinary batches give none."""

import random
import warnings

import pytest
import torch

import esim_fast
from esim_fast.inputs import pack_ids

OTHER_PADDING, TIME_MAJOR = (
    r"ESIM\(\.\.\., padding_idx=0\)",
    r"pass p\.T and h\.T, or create them with batch_first=True",
)
WORDS = 60


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return esim_fast.ESIM(4, 4, WORDS, 3).eval()


def padded(lengths, *, value=1, to=None, side="right", seed=0):
    """Sentences of random words, and their padding."""
    draw, longest = random.Random(seed), max(lengths, default=0) if to is None else to
    rows = []
    for length in lengths:
        words, padding = [draw.randrange(2, WORDS - 1) for _ in range(length)], [value] * (longest - length)
        if side == "inside":
            for _ in padding:
                words.insert(draw.randrange(len(words) + 1), value)
            padding = []
        rows.append(padding + words if side == "left" else words + padding)
    return torch.tensor(rows, dtype=torch.int64).view(-1, longest)


def found(net, p, h, *lengths):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net(p, h, *lengths)
    return [str(warning.message) for warning in caught]


P_LENGTHS, H_LENGTHS = [9, 4, 7, 3, 6, 2, 5, 8], [3, 5, 2, 6, 1, 4, 6, 2]


@pytest.mark.parametrize(
    ("p", "h"),
    [
        (padded(P_LENGTHS, value=0), padded(H_LENGTHS, value=0, seed=1)),
        (padded(P_LENGTHS, value=0), padded([5] * 8, seed=1)),
        (padded([5] * 8, seed=1), padded(H_LENGTHS, value=0)),
        (padded(P_LENGTHS, value=0, side="left"), padded(H_LENGTHS, value=0, side="left", seed=1)),
        (padded([5, 4, 3], value=0), padded([6, 2, 3], value=0)),
        (padded([5, 3], value=0, to=8), padded([4, 4], value=0, to=6)),  # the same number for all rows
        (padded(P_LENGTHS, value=WORDS - 1), padded(H_LENGTHS, value=WORDS - 1, seed=1)),
        (padded(P_LENGTHS, value=0).int(), padded(H_LENGTHS, value=0, seed=1).int()),
    ],
)
def test_other_padding_ids(net, p, h):
    with pytest.warns(UserWarning, match=OTHER_PADDING) as caught:
        net(p, h)
    assert [warning.filename for warning in caught] == [__file__]
    right = esim_fast.ESIM(4, 4, WORDS, 3, padding_idx=0 if (p == 0).any() or (h == 0).any() else WORDS - 1)
    assert found(right, p, h) == []


@pytest.mark.parametrize("lengths", [P_LENGTHS, [9, 8, 7, 6, 5, 4, 3, 2]], ids=["mixed", "longest first"])
def test_time_major(net, lengths):
    p, h = padded(lengths), padded(H_LENGTHS, to=9, seed=1)
    assert found(net, p, h) == []
    with pytest.warns(UserWarning, match=TIME_MAJOR) as caught:
        net(p.T, h.T)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=TIME_MAJOR):
        net.attention(p.T, h.T)


def test_one_warning_only(net):
    """With Python's default filter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for seed in range(3):
            net(padded(P_LENGTHS, value=0, seed=seed), padded(H_LENGTHS, value=0, seed=seed))
    assert len(caught) == 1


def test_no_warning_if_padding_is_explicit(net):
    p, h = padded(P_LENGTHS, value=0), padded(H_LENGTHS, value=0, seed=1)
    assert found(net, p, h, P_LENGTHS, H_LENGTHS) == []
    assert found(esim_fast.ESIM(4, 4, WORDS, 3, padding_idx=None), p, h) == []
    ids = esim_fast.pack_pairs(p, h, torch.tensor(P_LENGTHS), torch.tensor(H_LENGTHS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(ids)


def test_no_warning_in_transformed_or_compiled_networks(net, monkeypatch):
    p, h = padded(P_LENGTHS, value=0), padded(H_LENGTHS, value=0, seed=1)

    def summed(parameters):
        return torch.func.functional_call(net, parameters, (p, h)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.grad(summed)(dict(net.named_parameters()))
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            pack_ids(p, h, None, None, padding_idx=1, embedding=net.embedding)


def rows(*sentences):
    """Sentences of the same length, each letter a word; "?" is the unknown word, 0."""
    letters = "?_" + "".join(sorted({*"".join(sentences)} - {*"?_"}))
    return torch.tensor([[letters.index(letter) for letter in sentence] for sentence in sentences])


@pytest.mark.parametrize(
    "ids",
    [
        rows("笑死我了哈哈哈", "今天天气好哈哈", "我们不去了__", "哈哈哈哈哈哈哈"),
        rows("abcd!!", "efgh!!", "ab!!__", "cdef__"),
        rows("abcd!!", "efgh!!", "ijkl.!", "cdefgh"),  # unpadded
        rows("abcd!!", "efgh!!", "ijab!!", "cdgh!!", "abefgh"),
        rows("abc!!!", "efgh!!"),
        rows("abc??", "d?c??", "ef?ab", "abcde"),  # unknown words
        rows("a???", "b???", "ab__", "cd__"),
        rows(*["abcc"] * 8),
        rows(*["ab??"] * 8),
        rows("aab???", "bcd???")[:1],
        rows(*["aaaa"] * 3, *["bbbb"] * 3),
        rows("ab_cd", "a_b_c", "abcde", "a___b"),  # padding inside
        rows("abcde", "a_cde", "a_c_e"),
        rows("abcde", "bcdef", "cdefg", "a_cde"),
        rows("abcd", "abc_", "ab__", "a___"),
        rows("abcd", "_abc", "__ab", "___a"),
        rows("____", "____", "____", "____"),
        torch.zeros(4, 6, dtype=torch.int64),
        torch.full((5, 3), 7),
        torch.full((5, 1), 7),
        torch.empty(5, 0, dtype=torch.int64),
        torch.empty(0, 5, dtype=torch.int64),
        torch.arange(2, 34).view(8, 4),
    ],
)
def test_ordinary_batches(net, ids):
    others = padded([3, 6, 2, 5, 4, 6, 3, 1][: len(ids)], to=6)
    for p, h in ((ids, ids), (ids, others), (others, ids)):
        assert found(net, p, h) == []


def test_a_thousand_random_batches():
    draw = random.Random(0)
    embedding = torch.nn.Embedding(WORDS, 1)
    for trial in range(1000):
        pairs, side = draw.randrange(1, 33), draw.choice(["right", "left", "inside", "none"])
        ids = []
        for _ in "ph":
            longest = draw.randrange(1, 20)
            lengths = [longest if side == "none" else draw.randrange(longest + 1) for _ in range(pairs)]
            ids.append(padded(lengths, side=side, to=longest, seed=trial))
        if trial % 2:  # words repeat, also in a row
            ids = [torch.where(each == 1, 1, 2 + each % 7) for each in ids]
            ids = [torch.where((each != 1) & (torch.rand(each.shape) < 0.2), each.roll(1, 1), each) for each in ids]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pack_ids(*ids, None, None, padding_idx=1, embedding=embedding)

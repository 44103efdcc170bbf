"""local_inference: the paper's equations, sentence by sentence, and independence of what is not the sentence."""

import math

import pytest
import torch
from baselines import eager_local_inference
from hypothesis import given, settings
from hypothesis import strategies as st

from esim_fast import Rows
from esim_fast.ops import local_inference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def written_out(a, b):
    """Equations 11-15 for one pair without padding: [La, D] and [Lb, D]."""
    e = a @ b.T
    a_aligned = e.softmax(1) @ b if len(b) else torch.zeros_like(a)
    b_aligned = e.softmax(0).T @ a if len(a) else torch.zeros_like(b)
    m_a = torch.cat([a, a_aligned, a - a_aligned, a * a_aligned], 1)
    m_b = torch.cat([b, b_aligned, b - b_aligned, b * b_aligned], 1)
    return m_a, m_b


def ragged(lengths_a, lengths_b, width, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(lengths):
        return [torch.randn(n, width, generator=generator, dtype=torch.float64) * scale for n in lengths]

    return draw(lengths_a), draw(lengths_b)


def pad(sentences, length, width):
    """NaN outside the sentences: it must have no influence."""
    padded = torch.full((len(sentences), length, width), math.nan, dtype=torch.float64)
    for row, sentence in zip(padded, sentences, strict=True):
        row[: len(sentence)] = sentence
    return padded


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 100.0]),
    layout=st.sampled_from(["lengths", "mask", "rows", "same rows"]),
)
def test_equals_the_equations_written_out(lengths, width, seed, scale, layout):
    lengths_a, lengths_b = (torch.tensor(column) for column in zip(*lengths, strict=True))
    sentences_a, sentences_b = ragged(lengths_a, lengths_b, width, seed, scale)
    expected = [written_out(a, b) for a, b in zip(sentences_a, sentences_b, strict=True)]
    expected_a, expected_b = (torch.cat(side) for side in zip(*expected, strict=True))

    if layout == "same rows":
        rows = Rows.concatenated(torch.cat([lengths_a, lengths_b]), width)
        count = len(lengths)
        a_rows = Rows(rows.start[:count], rows.step, lengths_a, int(lengths_a.max()))
        b_rows = Rows(rows.start[count:], rows.step, lengths_b, int(lengths_b.max()))
        x = torch.cat([*sentences_a, *sentences_b])
        m, again = local_inference(x, x, a_rows=a_rows, b_rows=b_rows)
        assert m is again
        torch.testing.assert_close(m, torch.cat([expected_a, expected_b]), rtol=1e-10, atol=1e-10)
        return
    if layout == "rows":
        a_rows, b_rows = Rows.concatenated(lengths_a, width), Rows.concatenated(lengths_b, width)
        m_a, m_b = local_inference(torch.cat(sentences_a), torch.cat(sentences_b), a_rows=a_rows, b_rows=b_rows)
    else:
        a, b = pad(sentences_a, 10, width), pad(sentences_b, 11, width)
        a_mask, b_mask = (torch.arange(n) < of[:, None] for n, of in ((10, lengths_a), (11, lengths_b)))
        if layout == "mask":
            m_a, m_b = local_inference(a, b, a_mask=a_mask.int(), b_mask=b_mask.float())
        else:
            m_a, m_b = local_inference(a, b, lengths_a, lengths_b)
        assert not m_a[~a_mask].any()
        assert not m_b[~b_mask].any()
        m_a, m_b = m_a[a_mask], m_b[b_mask]
    torch.testing.assert_close(m_a, expected_a, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(m_b, expected_b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients(device):
    sentences = ragged([3, 0, 4], [2, 3, 0], 5)
    a, b = (pad(side, 4, 5).to(device).requires_grad_() for side in sentences)
    m_a, m_b = local_inference(a, b, [3, 0, 4], [2, 3, 0])
    (m_a.square().sum() + m_b.sin().sum()).backward()
    for padded, side in ((a, 0), (b, 1)):
        for i, sentence in enumerate(sentences[side]):
            assert not padded.grad[i, len(sentence) :].any(), "padding gets a gradient"
    for i in range(3):
        alone = [sentences[side][i].to(device).requires_grad_() for side in (0, 1)]
        m_a, m_b = written_out(*alone)
        gradients = torch.autograd.grad(m_a.square().sum() + m_b.sin().sum(), alone, allow_unused=True)
        for padded, sentence, gradient in zip((a, b), alone, gradients, strict=True):
            torch.testing.assert_close(padded.grad[i, : len(sentence)], gradient, rtol=1e-10, atol=1e-10)


def test_gradcheck():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    a_mask = torch.tensor([[1, 0, 1], [0, 0, 0]])

    def both(a, b):
        return local_inference(a, b, b_lengths=[5, 2], a_mask=a_mask)

    assert torch.autograd.gradcheck(both, (a.requires_grad_(), b.requires_grad_()))
    rows = Rows.concatenated(torch.tensor([2, 0, 1]), 4), Rows.concatenated(torch.tensor([1, 3, 0]), 4)
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: local_inference(a, b, a_rows=rows[0], b_rows=rows[1]), (a.requires_grad_(), b.requires_grad_())
    )


def test_equals_the_eager_notebook_at_ordinary_scores():
    a, b = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    a_mask, b_mask = torch.arange(7) < torch.tensor([[7], [2], [4]]), torch.arange(5) < torch.tensor([[5], [1], [3]])
    ours = local_inference(a, b, a_mask=a_mask, b_mask=b_mask)
    eager = eager_local_inference(a, b, a_mask, b_mask)
    for m, expected, mask in zip(ours, eager, (a_mask, b_mask), strict=True):
        torch.testing.assert_close(m[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    a, b = torch.randn(2, 6, 32).to(dtype), torch.randn(2, 4, 32).to(dtype)
    m_a, _ = local_inference(a, b)
    exact, _ = local_inference(a.double(), b.double())
    assert m_a.dtype == dtype
    torch.testing.assert_close(m_a.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_autocast_gives_autocasts_dtype():
    a, b = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        m_a, m_b = local_inference(a, b)
        kept, _ = local_inference(a.double(), b.double())
    assert m_a.dtype == m_b.dtype == torch.bfloat16
    assert kept.dtype == torch.float64
    m_a.float().sum().backward()
    assert a.grad.dtype == torch.float32


def test_compile():
    a, b = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    compiled = torch.compile(lambda a, b, n: local_inference(a, b, a_lengths=n), fullgraph=True)
    lengths = torch.tensor([3, 1])
    for got, expected in zip(compiled(a, b, lengths), local_inference(a, b, lengths), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backward", [False, True])
def test_no_shape_depends_on_values(backward):
    """On tensors without values everything that would wait for a GPU raises."""
    rows = [Rows.concatenated(torch.tensor(lengths), 4) for lengths in ([2, 0, 1], [1, 3, 0])]
    a_rows, b_rows = (Rows(*(t.to("meta") for t in (r.start, r.step, r.lengths)), r.max_length) for r in rows)
    x = torch.randn(7, 4, device="meta", requires_grad=backward)
    for a, b in ((x, x), (x, torch.randn(7, 4, device="meta"))):
        m_a, m_b = local_inference(a, b, a_rows=a_rows, b_rows=b_rows)
        assert m_a.shape == m_b.shape == (7, 16)
        if backward:
            m_a.sum().backward()


def test_no_rows_at_all_still_have_a_gradient():
    rows = Rows.concatenated(torch.tensor([0, 0]), 4)
    x = torch.randn(0, 4, requires_grad=True)
    m, _ = local_inference(x, x, a_rows=rows, b_rows=rows)
    m.sum().backward()
    assert x.grad.shape == (0, 4)


@pytest.mark.parametrize(("la", "lb"), [(0, 3), (3, 0), (0, 0)])
def test_empty_dimensions(la, lb):
    m_a, m_b = local_inference(torch.randn(2, la, 4), torch.randn(2, lb, 4))
    assert m_a.shape == (2, la, 16)
    assert m_b.shape == (2, lb, 16)
    if la:
        assert not m_a[..., 4:8].any()  # aligned with nothing
    m_a, m_b = local_inference(torch.randn(0, 3, 4), torch.randn(0, 2, 4))
    assert m_a.shape == (0, 3, 16)
    assert m_b.shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (
            torch.zeros(2, 4),
            torch.zeros(2, 3, 4),
            {},
            ValueError,
            r"a must be \[batch, length, D\] .*shape \[2, 4\]",
        ),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), {}, ValueError, "same width D, got 4 and 5"),
        (torch.zeros(2, 3, 4), torch.zeros(1, 3, 4), {}, ValueError, "as many sentences, got 2 and 1"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4).half(), {}, TypeError, "same dtype, got torch.float32 and"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, device="meta"), {}, ValueError, "a is on cpu, but b on meta"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), {"a_lengths": [3, 4]}, ValueError, r"a_lengths\[1\] = 4"),
        (
            torch.zeros(2, 3, 4),
            torch.zeros(2, 3, 4),
            {"b_mask": torch.ones(3, 2)},
            ValueError,
            "b_mask must have shape",
        ),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), {"backend": "cpp"}, ValueError, "backend='cpp' cannot run"),
    ],
)
def test_bad_input(a, b, options, error, message):
    with pytest.raises(error, match=message):
        local_inference(a, b, **options)

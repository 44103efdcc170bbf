"""The gradient of an embedding from sorted rows, against a sum in fp64."""

import re

import pytest
import torch
from torch.nn import functional

from esim_fast.layers import Embedding, kept_gradient
from esim_fast.ops.embedding import add_gradient, occurrences
from tests.ops.implementations import IMPLEMENTATIONS

BACKENDS = [case for case in IMPLEMENTATIONS if case.values[0] != "cpp"]


def exact(tokens, grad, words, padding_idx):
    weight = torch.zeros(words, grad.shape[1], dtype=torch.float64, requires_grad=True)
    x = functional.embedding(tokens, weight, padding_idx=padding_idx)
    return torch.autograd.grad(x, weight, grad.double())[0]


def batch(rows, width, words):
    """Random words, some of which are word 3 or word 1."""
    torch.manual_seed(rows + width)
    tokens = torch.randint(words, (rows,))
    tokens[torch.rand(rows) < 0.5] = 3 % words
    tokens[torch.rand(rows) < 0.2] = 1
    return tokens, torch.randn(rows, width)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("padding_idx", [1, None])
@pytest.mark.parametrize(
    ("rows", "width", "words"),
    [(200, 70, 30), (40, 300, 10_000), (17, 64, 2), (1, 1, 5), (0, 4, 3), (4, 0, 3), (33, 65, 2)],
)
@pytest.mark.usefixtures("poisoned")
def test_equals_torchs(rows, width, words, padding_idx, backend, device):
    tokens, grad = batch(rows, width, words)
    start = torch.randn(words, width)
    places = [numbers.to(device) for numbers in (tokens, *occurrences(tokens, padding_idx))]
    found = []
    for _ in range(2):
        table = start.clone().to(device)
        add_gradient(table, grad.to(device), *places, backend=backend)
        found.append(table.cpu())
    assert torch.equal(*found)
    wanted = exact(tokens, grad, words, padding_idx)
    torch.testing.assert_close(found[0].double(), start + wanted, rtol=1e-5, atol=1e-5)
    others = ~torch.isin(torch.arange(words), tokens)
    assert torch.equal(found[0][others], start[others])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_rows_after_the_batch_and_rows_of_padding_are_not_read(backend, device):
    tokens, grad = batch(50, 9, 20)
    more = torch.cat([tokens, torch.ones(30).long()])
    padded = torch.full((80, 9), torch.nan)
    padded[:50] = grad.masked_fill(tokens[:, None] == 1, torch.nan)
    found = []
    for words, rows in ((tokens, grad), (more, padded)):
        found.append(torch.zeros(20, 9, device=device))
        places = [numbers.to(device) for numbers in (words, *occurrences(words, 1))]
        add_gradient(found[-1], rows.to(device), *places, backend=backend)
    assert torch.equal(*found)


@pytest.mark.parametrize("padding_idx", [0, None])
def test_occurrences(padding_idx):
    order, first = occurrences(torch.tensor([4, 0, 2, 4, 0]), padding_idx)
    if padding_idx == 0:
        assert (order.tolist(), first.tolist()) == ([2, 0, 3, 0, 0], [0, 1, 3, 3, 3, 3])
    else:
        assert (order.tolist(), first.tolist()) == ([1, 4, 2, 0, 3], [0, 2, 3, 5, 5, 5])


class TestKeptGradient:
    """The layer in a context that keeps its gradient's memory."""

    @pytest.fixture
    def layer(self):
        return Embedding(20, 9, padding_idx=1)

    def batches(self, table):
        tokens = [batch(rows, 9, 20)[0].to(table.device) for rows in (30, 40)]
        return [(ids, *(places.to(table.device) for places in occurrences(ids.cpu(), 1))) for ids in tokens]

    def test_it_is_the_gradient(self, layer, device):
        layer.to(device)
        table = torch.zeros_like(layer.weight)
        for _ in range(2):
            batches = self.batches(table)
            scales = [torch.randn(len(tokens), 9, device=device) for tokens, *_ in batches]
            with kept_gradient(table, batches):
                for (tokens, *_), scale in zip(batches, scales, strict=True):
                    (layer(tokens) * scale).sum().backward()
                assert layer.weight.grad.data_ptr() == table.data_ptr()
                found = table.clone().cpu()
            wanted = sum(exact(b[0].cpu(), scale.cpu(), 20, 1) for b, scale in zip(batches, scales, strict=True))
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
            assert not table.any()
            layer.weight.grad = None

    def test_it_is_cleared_after_an_error(self, layer):
        table = torch.zeros_like(layer.weight)
        batches = self.batches(table)

        def fail():
            with kept_gradient(table, batches):
                layer(batches[0][0]).sum().backward()
                assert table.any()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not table.any()

    def test_other_calls_take_no_part(self, layer):
        table = torch.zeros_like(layer.weight)
        batches = self.batches(table)
        frozen = Embedding(20, 9).requires_grad_(False)
        with kept_gradient(table, batches):
            layer(batches[0][0].clone()).sum().backward()
            assert not frozen(batches[0][0]).requires_grad
        layer(batches[0][0]).sum().backward()
        assert not table.any()
        assert layer.weight.grad.any()


def test_occurrences_of_many_words():
    torch.manual_seed(0)
    tokens = torch.cat([torch.randint(2**18, (500,)), torch.randint(9, (500,)) * 2**16])[torch.randperm(1000)]
    order, first = occurrences(tokens, None)
    wanted = torch.sort(tokens, stable=True)
    assert torch.equal(order, wanted.indices)
    counts = torch.unique_consecutive(wanted.values, return_counts=True)[1]
    assert torch.equal(first.diff()[: len(counts)], counts)


@pytest.mark.interpreter
class TestOperator:
    def given(self):
        tokens, grad = batch(6, 5, 4)
        order, first = occurrences(tokens, 1)
        return {"table": torch.zeros(4, 5), "grad": grad, "tokens": tokens, "order": order, "first": first}

    def test_opcheck(self):
        torch.library.opcheck(torch.ops.esim_fast.embedding_gradient_triton.default, tuple(self.given().values()))

    @pytest.mark.parametrize("seed", range(20))
    def test_numbers_outside_are_bounded(self, seed):
        """What lies around the tensors is neither read nor written."""
        torch.manual_seed(seed)
        numbers = {"tokens": (6, -2, 6), "order": (6, -2, 8), "first": (7, -3, 9)}
        given = {name: torch.randint(low, high, (size,)) for name, (size, low, high) in numbers.items()}
        grad, table = torch.randn(6, 5), torch.randn(4, 5)
        wanted = table.clone()
        for start, end in zip(given["first"].clamp(min=0), given["first"][1:].clamp(max=6), strict=False):
            rows = given["order"][start:end] if start < end else torch.tensor([-1])
            word = given["tokens"][rows[0]] if 0 <= rows[0] < 6 else -1
            if 0 <= word < 4:
                wanted[word] += grad[rows[(rows >= 0) & (rows < 6)]].sum(0)
        around = {"tokens": torch.arange(30) % 4, "order": torch.arange(30) % 6, "first": torch.arange(30) % 6}
        around |= {"grad": torch.full((30, 5), torch.nan), "table": torch.full((30, 5), 7.0)}
        for name, values in {**given, "grad": grad, "table": table}.items():
            around[name][12 : 12 + len(values)] = values
            given[name] = around[name][12 : 12 + len(values)]
        torch.ops.esim_fast.embedding_gradient_triton(**given)
        torch.testing.assert_close(given["table"], wanted)
        assert (around["table"][:12] == 7).all()
        assert (around["table"][16:] == 7).all()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"table": torch.zeros(4, 10)[:, ::2]}, "contiguous float32 [V, D]"),
            ({"table": torch.zeros(4, 5).double()}, "contiguous float32 [V, D]"),
            ({"grad": torch.zeros(6, 4)}, "grad must be float32 [N, 5]"),
            ({"grad": torch.zeros(6, 5).half()}, "grad must be float32 [N, 5]"),
            ({"tokens": torch.zeros(5).long()}, "tokens must be contiguous int64 [6]"),
            ({"order": torch.zeros(12).long()[::2]}, "order must be contiguous int64 [6]"),
            ({"first": torch.zeros(6).long()}, "first must be contiguous int64 [7]"),
        ],
    )
    def test_direct_calls(self, changes, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.esim_fast.embedding_gradient_triton(**{**self.given(), **changes})

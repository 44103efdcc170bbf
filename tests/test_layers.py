"""Embedding, dropout and projection equal PyTorch's; they are only faster on a CPU."""

import copy
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from esim_fast import ESIM, ops, pack_pairs
from esim_fast.layers import (
    ActivationAndDropout,
    Dropout,
    Embedding,
    Sequential,
    VariationalDropout,
    drop,
    keyed_dropout,
    project,
)
from esim_fast.ops.products import product
from esim_fast.padded import pad_pairs


def twin(layer, kind):
    """PyTorch's layer with the same parameters."""
    other = kind.__new__(kind)
    other.__dict__.update(layer.__dict__)
    return other


class TestEmbedding:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 3000), st.integers(1, 40), st.lists(st.integers(0, 2999), max_size=50), st.booleans())
    def test_is_torchs(self, words, width, tokens, padded):
        layer = Embedding(words, width, padding_idx=0 if padded else None)
        tokens = torch.tensor(tokens, dtype=torch.int64) % words
        grad = torch.randn(len(tokens), width)
        ours, wanted = layer(tokens), twin(layer, nn.Embedding)(tokens)
        assert torch.equal(ours, wanted)
        (ours,), (wanted,) = (torch.autograd.grad(y, layer.weight, grad) for y in (ours, wanted))
        torch.testing.assert_close(ours, wanted)
        assert not (padded and ours[0].any())

    def test_a_large_table(self):
        layer = Embedding(40_000, 128)  # larger than a huge page, and split into several tasks
        tokens = torch.cat([torch.tensor([0, 39_999, 5, 5]), torch.randint(40_000, (500,))])
        grad = torch.randn(len(tokens), 128)
        for _ in range(2):  # the second time with reused memory
            (ours,) = torch.autograd.grad(layer(tokens), layer.weight, grad)
        wanted = torch.zeros(40_000, 128, dtype=torch.float64).index_add_(0, tokens, grad.double())
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6)

    def test_cases_left_to_torch(self):
        tokens = torch.tensor([[1, 2], [2, 3]])
        layer = Embedding(5, 4).double()
        assert torch.equal(layer(tokens), layer.weight[tokens])
        (grad,) = torch.autograd.grad(layer(tokens).sum(), layer.weight)
        assert grad[:, 0].tolist() == [0, 1, 2, 1, 0]
        assert Embedding(5, 4, sparse=True)(tokens[0]).sum().backward() is None

    def test_second_derivative(self):
        layer, tokens = Embedding(5, 4), torch.tensor([1, 2, 2])
        (grad,) = torch.autograd.grad(layer(tokens).pow(3).sum(), layer.weight, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), layer.weight)
        weight = layer.weight.detach()
        torch.testing.assert_close(second, 6 * weight * torch.tensor([0.0, 1, 2, 0, 0])[:, None])

    def test_memory_is_reused_once_free(self):
        layer = Embedding(3000, 8)
        tokens = torch.tensor([1, 2, 2])
        first = torch.autograd.grad(layer(tokens).sum(), layer.weight)[0]
        place, kept = first.data_ptr(), first[1:].view(-1)
        del first
        second = torch.autograd.grad(layer(tokens).sum() * 3, layer.weight)[0]  # a view of the first one is still alive
        assert second.data_ptr() != place
        assert kept.view(-1, 8)[:3, 0].tolist() == [1, 2, 0]
        del kept
        third = torch.autograd.grad(layer(torch.tensor([5])).sum(), layer.weight)[0]
        assert third.data_ptr() == place
        assert third.sum(1).nonzero().tolist() == [[5]]
        assert second[:4, 0].tolist() == [0, 3, 6, 0]

    def test_gradients_accumulate_and_copies_have_their_own_memory(self):
        layer, tokens = Embedding(50, 4, padding_idx=0), torch.tensor([0, 3, 3])
        for _ in range(3):
            layer(tokens).sum().backward()
        assert layer.weight.grad[:5, 0].tolist() == [0, 0, 0, 6, 0]
        kept = layer.weight.grad
        layer.weight.grad = None
        layer(tokens).sum().backward()
        assert kept[3, 0] == 6
        assert layer.weight.grad[3, 0] == 2
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            copied.weight.grad = None
            copied(tokens).sum().backward()
            assert copied.weight.grad.data_ptr() != layer.weight.grad.data_ptr()

    def test_opcheck(self):
        arguments = (torch.empty(5, 4), torch.randn(3, 4), torch.tensor([1, 4, 1]), 0)
        torch.library.opcheck(torch.ops.esim_fast.embedding_backward.default, arguments)


class TestTorchFeatures:
    def test_torch_defaults_have_no_effect(self):
        layer, tokens = Embedding(50, 4), torch.tensor([7])
        torch.set_default_dtype(torch.float64)
        try:
            for _ in range(2):
                layer(tokens).sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            assert Dropout(0.5)(torch.ones(3, device="cpu")).device.type == "cpu"

    def test_torch_func_and_forward_mode_without_it(self):
        layer, x = nn.Linear(6, 5), torch.randn(2, 8, 6)
        linear = partial(project, layer)
        torch.testing.assert_close(torch.func.vmap(linear)(x), layer(x))
        torch.testing.assert_close(torch.func.jvp(linear, (x[0],), (x[1],))[1], x[1] @ layer.weight.t())
        words = Embedding(9, 4)
        tokens = torch.tensor([[1, 2], [3, 4]])
        torch.testing.assert_close(torch.func.vmap(words)(tokens), words.weight[tokens])
        with forward_ad.dual_level(), torch.no_grad():
            result = forward_ad.unpack_dual(linear(forward_ad.make_dual(*x)))
            torch.testing.assert_close(result.tangent, x[1] @ layer.weight.t())
            a, b = forward_ad.make_dual(torch.randn(1, 3, 6), torch.randn(1, 3, 6)), torch.randn(1, 2, 6)
            with pytest.raises(RuntimeError, match=r"jvp|forward"):
                ops.local_inference(a, b)


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
    def test_drops_and_scales(self, p):
        torch.manual_seed(0)
        x = torch.rand(600, 701).add_(0.5).requires_grad_()
        y = Dropout(p)(x)
        kept = y != 0
        assert abs(float(kept.float().mean()) - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
        torch.testing.assert_close(y[kept], x[kept] / (1 - p))
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, kept.float() / (1 - p))
        # Neighbors share a random word, but must be independent.
        for distance in (1, 2, 3, 4):
            both = (kept.flatten()[distance:] & kept.flatten()[:-distance]).float().mean()
            assert abs(float(both) - (1 - p) ** 2) < 0.005

    def test_seed_and_limits(self):
        draws = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            draws.append(Dropout(0.5)(torch.ones(101)))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        x = torch.ones(7, 3, dtype=torch.bfloat16)
        assert Dropout(0.5)(x).dtype == torch.bfloat16
        assert torch.equal(Dropout(0.0)(x), x)
        assert not Dropout(1.0)(x).any()
        assert torch.equal(Dropout(0.5).eval()(x), x)
        assert Dropout(0.5)(x[:0]).shape == (0, 3)


class TestKeyedDropout:
    KEY = torch.tensor([7, 3])

    def test_masks_come_from_the_key_alone(self):
        x, layer = torch.randn(9, 6), Dropout(0.5)
        with keyed_dropout(self.KEY):
            first, second = layer(x), layer(x)
        with keyed_dropout(self.KEY):
            assert torch.equal(layer(x), first)
        assert torch.equal(first, ops.dropout(x, 0.5, self.KEY, 0))
        assert torch.equal(second, ops.dropout(x, 0.5, self.KEY, 1))
        torch.manual_seed(0)
        outside = layer(x)
        torch.manual_seed(0)
        with keyed_dropout(self.KEY):
            for unchanged in (Dropout(0.5).eval(), Dropout(0.0)):
                assert torch.equal(unchanged(x), x)
            assert not Dropout(1.0)(x).any()
        assert torch.equal(layer(x), outside)

    def test_a_sentence_has_one_mask(self):
        pairs = pack_pairs(torch.ones(2, 5).long(), torch.ones(2, 3).long(), [5, 2], [0, 3])
        x, layer = torch.ones(10, 40), VariationalDropout(0.5)
        with keyed_dropout(self.KEY):
            y = layer(x, pairs)
        masks = torch.stack([y[pairs.sentence == sentence].unique(dim=0).squeeze(0) for sentence in range(3)])
        assert len(masks.unique(dim=0)) == 3

    def test_a_padded_sentence_has_one_mask(self):
        ids, lengths = torch.ones(2, 5).long(), torch.tensor([5, 2])
        pairs, layer = pad_pairs(ids, ids, lengths, lengths), VariationalDropout(0.5)
        for activation in (None, nn.ReLU()):
            with keyed_dropout(self.KEY):
                y = drop(layer, torch.ones(20, 40), pairs, activation).view(5, 4, 40)
            assert torch.equal(y, y[:1].expand_as(y))
            assert len(y[0].unique(dim=0)) == 4

    @pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.Tanh, nn.GELU])
    def test_an_activation_is_fused_or_called(self, activation):
        x, layer = torch.randn(9, 6), ActivationAndDropout(activation(), Dropout(0.5))
        calls = []
        with keyed_dropout(self.KEY):
            found = layer(x)
        for part in layer:
            handle = part.register_forward_hook(lambda part, *_: calls.append(part))
            with keyed_dropout(self.KEY):
                assert torch.equal(layer(x), found)
            assert calls.pop() is part
            handle.remove()
        wanted = ops.dropout(activation()(x), 0.5, self.KEY, 0)
        assert torch.equal(found, wanted)
        assert torch.equal(layer.eval()(x), activation()(x))

    @pytest.mark.parametrize("options", [{}, {"variational_dropout": True, "variant": "notebook"}])
    def test_a_capacity_changes_no_mask(self, options):
        net = ESIM(6, 5, 20, 3, **options)
        ids, lengths = torch.randint(2, 20, (2, 4, 7)), [[7, 0, 2, 5], [1, 4, 0, 6]]
        pairs = pack_pairs(*ids, *lengths)
        results = []
        for batch in (pairs, pairs.with_capacity(60, 6)):
            with keyed_dropout(self.KEY):
                logits = net(batch)[:4]
            results.append([logits, *torch.autograd.grad(logits.square().sum(), list(net.parameters()))])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
        with keyed_dropout(self.KEY + 1):
            assert not torch.allclose(net(pairs), results[0][0])


class TestProject:
    @pytest.fixture(scope="class", autouse=True, params=[False, True], ids=["oneDNN", "MKL"])
    def products(self, request):
        """With either library; which one is faster depends on the machine."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("esim_fast.ops.products._MKL", request.param)
            yield

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 70))
    def test_is_torchs(self, rows, inputs, outputs):
        layer = nn.Linear(inputs, outputs)
        x = torch.randn(rows, inputs, requires_grad=True)
        grad = torch.randn(rows, outputs)
        leaves = [x, *layer.parameters()]
        ours, wanted = project(layer, x), layer(x)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(project(layer, x), wanted, rtol=1e-5, atol=1e-5)
        ours, wanted = (torch.autograd.grad(y, leaves, grad) for y in (ours, wanted))
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)

    def test_second_derivative(self):
        layer, x = nn.Linear(6, 5), torch.randn(8, 6, requires_grad=True)
        results = []
        for y in (project(layer, x), layer(x)):
            (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(grad.square().sum(), layer.weight)[0])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)

    def test_other_dtypes_and_shapes(self, monkeypatch):
        layer, x = nn.Linear(6, 5), torch.randn(2, 8, 6)
        torch.testing.assert_close(project(layer, x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert project(layer, x[0]).dtype == torch.bfloat16
        with_onednn = product(x[0], layer.weight)
        monkeypatch.setattr("esim_fast.ops.products._ONEDNN", False)
        torch.testing.assert_close(product(x[0], layer.weight), with_onednn)
        assert project(layer.double(), x[0].double()).dtype == torch.float64
        layer, x = nn.Linear(6, 5, bias=False), torch.randn(8, 6, requires_grad=True)
        (grad,) = torch.autograd.grad(project(layer, x).square().sum(), x, create_graph=True)
        torch.testing.assert_close(grad, 2 * project(layer, x) @ layer.weight)

    def test_customized_layers_run_as_customized(self):
        """Hooks, parametrizations, another forward, and layers of other classes."""
        x = torch.randn(8, 6)

        def replaced(change):
            layer = nn.Linear(6, 5)
            wanted = layer(x) * 2
            change(layer)
            torch.testing.assert_close(Sequential(layer, nn.Identity())(x), wanted)

        def doubled_forward(layer):
            forward = layer.forward
            layer.forward = lambda input: forward(input) * 2

        class Doubled(nn.Linear):
            def forward(self, input):
                return super().forward(input) * 2

        class DoubledParameter(nn.Module):
            def forward(self, parameter):
                return parameter * 2

        def parametrized(layer):
            for name in ("weight", "bias"):
                parametrize.register_parametrization(layer, name, DoubledParameter())

        replaced(lambda layer: layer.register_forward_hook(lambda _module, _input, output: output * 2))
        replaced(lambda layer: setattr(layer, "__class__", Doubled))
        replaced(doubled_forward)
        replaced(parametrized)
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _input, output: output * 2 if isinstance(module, nn.Linear) else None
        )
        try:
            layer = nn.Linear(6, 5)
            assert torch.equal(project(layer, x), layer(x))
        finally:
            handle.remove()

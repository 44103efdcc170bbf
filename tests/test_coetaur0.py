"""compat.coetaur0.ESIM behaves like the original class: its modules, parameter names and wrappers."""

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_model_state_dict, set_state_dict
from torch.optim.swa_utils import AveragedModel

import esim_fast
from esim_fast.compat.coetaur0 import ESIM
from esim_fast.data import Vocabulary
from tests.sources import Coetaur0

WORDS, WIDTH, HIDDEN = 30, 7, 5
LAYERS = ["_word_embedding", "_encoding", "_attention", "_projection", "_composition", "_classification"]
INNER = ["_encoding._encoder", "_projection.0", "_projection.1", "_composition._encoder", "_classification.4"]


@pytest.fixture
def net() -> ESIM:
    torch.manual_seed(0)
    return ESIM(WORDS, WIDTH, HIDDEN).eval()


@pytest.fixture
def batch() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    premises, hypotheses = (torch.randint(2, WORDS, (4, length), generator=generator) for length in (6, 5))
    premises[1, 3:] = hypotheses[2, 1:] = 0
    return premises, (premises != 0).sum(1), hypotheses, (hypotheses != 0).sum(1)


def inner_logits(net: ESIM, batch: tuple[Tensor, ...]) -> Tensor:
    premises, premises_lengths, hypotheses, hypotheses_lengths = batch
    return net.esim(premises, hypotheses, premises_lengths, hypotheses_lengths)


def doubled(output: Any) -> Any:
    """A hook that doubles the output of a module, also of an LSTM."""
    if isinstance(output, Tensor):
        return output * 2
    rows, state = output
    return rows._replace(data=rows.data * 2), state


class TestModules:
    def test_paths(self, net):
        assert isinstance(net._word_embedding, nn.Embedding)
        assert isinstance(net._rnn_dropout, nn.Dropout)
        assert isinstance(net._encoding._encoder, nn.LSTM)
        assert isinstance(net._composition._encoder, nn.LSTM)
        assert [type(net._projection[place]) for place in (0, 1)] == [nn.Linear, nn.ReLU]
        assert isinstance(net._attention, nn.Module)
        assert isinstance(net._classification[1], nn.Linear)
        assert isinstance(net._classification[4], nn.Linear)
        assert len(net._projection) == 2
        assert len(net._classification) == 5
        for name in LAYERS + INNER:
            assert net.get_submodule(name) in net.modules()

    def test_names(self, net):
        theirs = Coetaur0(WORDS, WIDTH, HIDDEN)
        assert [name for name, _ in net.named_parameters()] == [name for name, _ in theirs.named_parameters()]
        assert list(net.state_dict()) == list(theirs.state_dict())
        assert {name.partition(".")[0] for name, _ in net.named_modules()} == {"", "_rnn_dropout", *LAYERS}
        for name, parameter in net.named_parameters(remove_duplicate=False):
            assert net.get_parameter(name) is parameter
            assert torch.equal(net.state_dict()[name], parameter)

    @pytest.mark.parametrize("name", LAYERS + INNER)
    def test_hooks(self, net, batch, name):
        expected, seen = net(*batch)[0], []
        module = net.get_submodule(name)
        handles = [
            module.register_forward_pre_hook(lambda *_: seen.append("before")),
            module.register_forward_hook(lambda _, __, output: seen.append("after")),
        ]
        torch.testing.assert_close(net(*batch)[0], expected)
        assert seen == ["before", "after"]
        if name in INNER:
            inner_logits(net, batch)
            assert len(seen) == 4
        for handle in handles:
            handle.remove()
        module.register_forward_hook(lambda _, __, output: doubled(output))
        assert not torch.allclose(net(*batch)[0], expected)

    def test_frozen_by_name(self, net, batch):
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not name.startswith(("_word_embedding", "_encoding")))
        net._projection[0].bias.requires_grad_(False)
        before = copy.deepcopy(net.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        net(*batch)[0].sum().backward()
        optimizer.step()
        changed = {name for name, entry in net.state_dict().items() if not torch.equal(entry, before[name])}
        prefixes = ("_projection.0.weight", "_composition", "_classification")
        assert changed == {name for name in before if name.startswith(prefixes)}


class TestReplaced:
    def test_embeddings(self, net, batch):
        before = net(*batch)[0]
        vectors = torch.randn(WORDS, WIDTH)
        net._word_embedding = nn.Embedding.from_pretrained(vectors, padding_idx=0)
        logits = net(*batch)[0]
        assert not torch.allclose(logits, before)
        theirs = Coetaur0(WORDS, WIDTH, HIDDEN).eval()
        theirs.load_state_dict(net.state_dict())
        torch.testing.assert_close(logits, theirs(*batch)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inner_logits(net, batch), logits)
        assert net.esim.embedding is net._word_embedding
        net.train()(*batch)[0].sum().backward()
        assert net._word_embedding.weight.grad is None  # from_pretrained freezes

    @pytest.mark.parametrize(
        ("path", "layer"),
        [
            ("_encoding._encoder", nn.LSTM(WIDTH, HIDDEN, bidirectional=True, batch_first=True)),
            ("_projection.0", nn.Linear(8 * HIDDEN, HIDDEN)),
            ("_projection.1", nn.GELU()),
            ("_composition._encoder", nn.LSTM(HIDDEN, HIDDEN, bidirectional=True)),
            ("_classification.2", nn.Identity()),
            ("_classification.4", nn.Linear(HIDDEN, 2)),
        ],
    )
    def test_layers(self, net, batch, path, layer):
        before = net(*batch)[0]
        net.set_submodule(path, layer.eval())
        logits = net(*batch)[0]
        assert logits.shape != before.shape or not torch.allclose(logits, before)
        torch.testing.assert_close(inner_logits(net, batch), logits)

    def test_every_one_is_replaced_in_both(self, net):
        paths = ["_word_embedding", "_rnn_dropout", "_attention", *(f"_classification.{place}" for place in range(5))]
        for path in (*paths, "_projection.0", "_projection.1", "_encoding._encoder", "_composition._encoder"):
            layer = copy.deepcopy(net.get_submodule(path))
            net.set_submodule(path, layer)
            assert any(module is layer for module in net.esim.modules()), path
        inside = {id(module) for module in net.esim.modules() if not list(module.children())}
        pooling = net.esim.infercomposition.pooling  # coetaur0's network has no such module
        assert inside - {id(pooling)} == {id(module) for module in net.modules() if not list(module.children())}

    @pytest.mark.parametrize("layer", [nn.Dropout(1.0), nn.Identity(), esim_fast.layers.Dropout(0.9)])
    def test_dropout(self, net, batch, layer):
        net._rnn_dropout = layer
        for dropout in (net._classification[0], net._classification[3]):
            dropout.p = 0.0
        expected = copy.deepcopy(net).eval()(*batch)[0]
        for logits in (net.train()(*batch)[0], inner_logits(net, batch)):
            assert torch.allclose(logits, expected) == isinstance(layer, nn.Identity)

    def test_modules_of_other_layers(self, net, batch):
        before = net(*batch)[0]
        for name, module in {
            "_projection": nn.Sequential(*net._projection, nn.LayerNorm(HIDDEN)),
            "_classification": nn.Linear(8 * HIDDEN, 4),
            "_encoding": nn.ModuleDict({"_encoder": net._encoding._encoder}),
        }.items():
            changed = copy.deepcopy(net)
            setattr(changed, name, module)
            if name != "_encoding":
                assert changed(*batch)[0].tolist() != before.tolist()
            with pytest.raises(
                TypeError, match=rf"^{name} has been replaced by a module whose layers do not fit esim_fast.ESIM"
            ):
                changed.esim  # noqa: B018
        del net._projection[1]
        with pytest.raises(TypeError, match=r"^_projection has been replaced"):
            net.esim  # noqa: B018


class TestSharedLayers:
    """net.esim shares its layers, also after copies and conversions."""

    def assert_shared(self, net: ESIM) -> None:
        ours = dict(net.esim.named_parameters())
        assert list(ours) == list(net.esim.state_dict())
        assert {id(parameter) for parameter in ours.values()} == {id(parameter) for parameter in net.parameters()}
        assert len(ours) == len(list(net.parameters()))

    @pytest.mark.parametrize(
        "change",
        [
            copy.deepcopy,
            lambda net: pickle.loads(pickle.dumps(net)),
            lambda net: net.double(),
            lambda net: net.to(torch.bfloat16),
            lambda net: net.to("meta"),
            lambda net: net.apply(lambda module: None),
        ],
        ids=["deepcopy", "pickle", "double", "bfloat16", "meta", "apply"],
    )
    def test_conversions(self, net, batch, change):
        expected = net(*batch)[0]
        changed = change(net)
        self.assert_shared(changed)
        assert changed.esim.device == changed._word_embedding.weight.device
        if changed.esim.device.type == "cpu":
            precise = changed._word_embedding.weight.dtype != torch.bfloat16
            for logits in (changed(*batch)[0], inner_logits(changed, batch)):
                torch.testing.assert_close(logits.float(), expected, rtol=1e-4, atol=1e-5 if precise else 0.05)

    def test_copies_are_independent(self, net):
        copied = copy.deepcopy(net)
        assert not {id(entry) for entry in copied.parameters()} & {id(entry) for entry in net.parameters()}
        assert copied.esim is not net.esim
        assert net.esim is net.esim

    def test_assigned(self, net, batch, monkeypatch):
        monkeypatch.setattr(esim_fast.ESIM, "_absorbs_difference", lambda *_: False)  # coetaur0's module does not
        other = ESIM(WORDS, WIDTH, HIDDEN).eval()
        state_dict = {name: entry.clone() for name, entry in other.state_dict().items()}
        net.load_state_dict(state_dict, assign=True)
        assert net._projection[0].bias.data_ptr() == state_dict["_projection.0.bias"].data_ptr()
        self.assert_shared(net)
        for logits in (net(*batch)[0], inner_logits(net, batch)):
            assert torch.equal(logits, other(*batch)[0])

    def test_modes(self, net):
        inner = net.esim
        for mode in (True, False):
            net.train(mode)
            assert {module.training for module in (*net.modules(), *inner.modules())} == {mode}
        nn.Sequential(net).train()
        assert inner.training
        inner.eval()
        assert not net._rnn_dropout.training

    def test_a_classifier_of_a_net_in_training(self, net):
        """It applies no dropout in any mode of the network."""
        words = ["<unk>", "<pad>", *(f"w{number}" for number in range(2, WORDS))]
        model = esim_fast.Classifier(net.esim, Vocabulary(words), ["a", "b", "c"], "whitespace")
        net.train()
        first, second = (model.predict(("w3 w4", "w5")).probabilities for _ in range(2))
        assert torch.equal(first, second)
        assert net.training
        assert net._rnn_dropout.training
        alpha, _ = net.esim.attention(torch.tensor([[3, 4]]), torch.tensor([[5]]))
        assert alpha.shape == (1, 2, 1)


class TestByNames:
    def test_functional_call(self, net, batch):
        other = ESIM(WORDS, WIDTH, HIDDEN).eval()
        expected = other(*batch)[0]
        # Without gradients, products may sum in another order.
        torch.testing.assert_close(torch.func.functional_call(net, other.state_dict(), batch)[0], expected)
        parameters = {name: entry.detach() for name, entry in net.named_parameters()}
        gradients = torch.func.grad(
            lambda parameters: torch.func.functional_call(net, parameters, batch)[0].square().sum()
        )(parameters)
        net(*batch)[0].square().sum().backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)

    def test_groups_of_parameters(self, net, batch):
        groups = [
            {"params": [entry for name, entry in net.named_parameters() if ("_encoder" in name) == inside], "lr": rate}
            for inside, rate in ((True, 0.0), (False, 0.5))
        ]
        before = copy.deepcopy(net.state_dict())
        net(*batch)[0].sum().backward()
        torch.optim.SGD(groups).step()
        for name, entry in net.state_dict().items():
            assert torch.equal(entry, before[name]) == ("_encoder" in name), name

    @pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
    def test_distributed_checkpoints(self, net, batch, tmp_path):
        optimizer = torch.optim.Adam(net.parameters())
        net(*batch)[0].sum().backward()
        optimizer.step()
        model_state, optimizer_state = get_state_dict(net, optimizer)
        assert list(model_state) == list(net.state_dict())
        assert set(optimizer_state["state"]) == set(model_state)
        save({"model": model_state}, checkpoint_id=tmp_path, no_dist=True)
        other = ESIM(WORDS, WIDTH, HIDDEN).eval()
        found = {"model": other.state_dict()}
        load(found, checkpoint_id=tmp_path, no_dist=True)
        set_model_state_dict(other, found["model"])
        assert torch.equal(other(*batch)[0], net(*batch)[0])
        another = ESIM(WORDS, WIDTH, HIDDEN)
        set_state_dict(
            another,
            torch.optim.Adam(another.parameters()),
            model_state_dict=model_state,
            optim_state_dict=optimizer_state,
        )
        assert torch.equal(another.eval()(*batch)[0], net(*batch)[0])


class TestWrapped:
    def test_averaged(self, net, batch):
        average = AveragedModel(net)
        average.update_parameters(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1)
        before = {name: entry - 1 for name, entry in net.state_dict().items()}
        average.update_parameters(net)
        for name, entry in average.module.named_parameters():
            torch.testing.assert_close(entry, before[name] + 0.5)
        other = ESIM(WORDS, WIDTH, HIDDEN).eval()
        other.load_state_dict(average.state_dict())
        assert torch.equal(other(*batch)[0], average(*batch)[0])

    @pytest.fixture
    def group(self) -> Iterator[None]:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    @pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
    def test_distributed(self, net, batch, group):
        alone = copy.deepcopy(net)
        wrapped = nn.parallel.DistributedDataParallel(net)
        for one in (alone, wrapped):
            one(*batch)[0].square().sum().backward()
        for (name, expected), found in zip(alone.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=name)
        assert list(wrapped.state_dict()) == [f"module.{name}" for name in net.state_dict()]
        alone.load_state_dict(wrapped.state_dict())

    def test_a_replica_uses_its_own_parameters(self, net, batch):
        """DataParallel replicates a network for each GPU: copies of its modules with other parameters."""
        replica = net._replicate_for_data_parallel()
        other = ESIM(WORDS, WIDTH, HIDDEN).eval()
        for name, module in other.named_children():
            setattr(replica, name, module)
        assert torch.equal(replica(*batch)[0], other(*batch)[0])
        assert nn.DataParallel(net)(*batch)[0].shape == (4, 3)

    def test_saved_as_a_whole_module(self, net, batch):
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(*batch)[0], net(*batch)[0])

    def test_an_empty_batch(self, net):
        ids, lengths = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        assert [part.shape for part in net(ids, lengths, ids, lengths)] == [(0, 3), (0, 3)]

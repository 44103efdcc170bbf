"""On a CPU without gradients, direct calls of the operators give what the layers give, and run only where they may."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import esim_fast
from esim_fast import direct, ops
from esim_fast.layers import ActivationAndDropout, Sequential, VariationalDropout
from esim_fast.model import ESIM, CompositionLayer
from esim_fast.ops import int8
from esim_fast.quantized import inference_precision
from tests.test_model import random_pairs, replace_composition

BATCHES = {
    "one pair": ([5], [4]),
    "ragged": ([5, 9, 1, 36, 3], [4, 2, 19, 1, 8]),
    "empty premises": ([0, 0], [3, 1]),
    "empty hypotheses": ([3, 0, 2], [0, 0, 0]),
    "nothing": ([0, 0], [0, 0]),
    "no pairs": ([], []),
}


def make_net(labels=3, **options):
    torch.manual_seed(0)
    return ESIM(40, 12, 50, labels, "cpu", **options).eval()


def by_layers(net, *batch):
    """The logits without direct calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ESIM, "_runs_directly", lambda *_: False)
        return net(*batch)


@pytest.fixture
def runs(monkeypatch):
    """Grows by one with each direct forward pass."""
    found, comparison = [], direct.comparison
    monkeypatch.setattr(direct, "comparison", lambda *arguments: found.append(1) or comparison(*arguments))
    return found


@torch.no_grad()
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("options", [{}, {"variant": "notebook", "labels": 5}, {"variational_dropout": True}], ids=str)
def test_logits_are_equal(runs, options, lengths):
    net, (p, h) = make_net(**options), random_pairs(*lengths)
    given = (p, h), (p, h, *lengths), (esim_fast.pack_pairs(p, h, *lengths),)
    ours = [net(*arguments) for arguments in given]
    assert len(runs) == 3 * (sum(map(sum, lengths)) > 0)
    for arguments, logits in zip(given, ours, strict=True):
        assert torch.equal(logits, by_layers(net, *arguments))


@torch.no_grad()
def test_changes_and_copies_of_the_network(runs):
    net, batch = make_net(), random_pairs([5, 9, 1], [4, 2, 6])
    changes = (
        lambda: None,
        lambda: net.encoder.lstm.weight_hh_l0.mul_(1.5),
        lambda: net.infercomposition.composition.F.weight.data.neg_(),
        lambda: net.linear.mlp[1].bias.add_(1),
        lambda: net.load_state_dict(make_net().state_dict()),
    )
    for change in changes:
        change()
        expected = copy.deepcopy(net).double()(*batch)
        torch.testing.assert_close(net(*batch).double(), expected, rtol=1e-4, atol=1e-5)
    assert len(runs) == len(changes)


class Noise(nn.Module):
    """Not a dropout layer."""

    def forward(self, x, pairs=None):
        return x + 1


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Pooled(nn.Module):
    """A pooling layer of the caller's."""

    def forward(self, x, rows):
        return 2 * ops.masked_pool(x, rows=rows)


class Composed(CompositionLayer):
    def compose(self, y, pairs):
        return 2 * super().compose(y, pairs)


class Classified(Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Activated(ActivationAndDropout):
    def forward(self, x):
        return 2 * super().forward(x)


class Encoded(ESIM):
    def encode(self, pairs, embedded=None):
        return 2 * super().encode(pairs, embedded)


def become(module, kind):
    module.__class__ = kind


def wider_composition(net):
    net.infercomposition.composition.lstm = nn.LSTM(40, 60, bidirectional=True)
    net.linear.mlp[1] = nn.Linear(480, 40)


def wider_encoder(net):
    net.encoder.lstm = nn.LSTM(12, 60, bidirectional=True)
    net.infercomposition.composition.F = nn.Linear(480, 40)


OBSTACLES = {
    "gradients": lambda net: torch.set_grad_enabled(True),
    "dropout in training": lambda net: net.linear.mlp[0].train(),
    "variational dropout in training": lambda net: setattr(net, "embedding_dropout", VariationalDropout(0.5)),
    "dropout in the classifier": lambda net: net.linear.mlp[2][1].train(),
    "a wider composition": wider_composition,
    "another dropout": lambda net: setattr(net.infercomposition.composition, "dropout", Noise().eval()),
    "a hook": lambda net: net.infercomposition.pooling.register_forward_hook(lambda *_: None),
    "another forward": lambda net: setattr(net.encoder, "forward", net.encoder.forward),
    "another projection": lambda net: setattr(net.infercomposition.composition, "F", Doubled(320, 40)),
    "another classifier": lambda net: net.linear.mlp.__setitem__(1, Doubled(320, 40)),
    "no dropout": lambda net: net.linear.mlp.__setitem__(2, ActivationAndDropout(nn.Tanh())),
    "one more activation": lambda net: net.linear.mlp.__setitem__(
        2, ActivationAndDropout(*net.linear.mlp[2], nn.Tanh())
    ),
    "no bias in the classifier": lambda net: setattr(net.linear.mlp[1], "bias", None),
    "no bias": lambda net: setattr(net.infercomposition.composition.F, "bias", None),
    "an LSTM without biases": lambda net: setattr(net.encoder, "lstm", nn.LSTM(12, 40, bidirectional=True, bias=False)),
    "another head": lambda net: setattr(net.linear, "mlp", nn.Linear(320, 3)),
    "another pooling": lambda net: setattr(net.infercomposition, "pooling", Pooled()),
    "another composition": replace_composition,
    "another encode": lambda net: become(net, Encoded),
    "another compose": lambda net: become(net.infercomposition.composition, Composed),
    "a subclass of the classifier": lambda net: become(net.linear.mlp, Classified),
    "a subclass of the activation": lambda net: become(net.linear.mlp[2], Activated),
    "a projection of the wrong width": lambda net: setattr(net.infercomposition.composition, "F", nn.Linear(100, 40)),
    "a replaced encode": lambda net: setattr(net, "encode", lambda *pairs: 2 * ESIM.encode(net, *pairs)),
    "no activation": lambda net: setattr(net.infercomposition.composition, "activation", None),
    "a wider encoder": wider_encoder,
    "a compiled part": lambda net: setattr(net.encoder, "_compiled_call_impl", net.encoder._call_impl),
    "fp64": lambda net: net.double(),
    "the reference": lambda net: setattr(net.inference, "backend", "reference"),
}


@torch.no_grad()
@pytest.mark.parametrize("obstruct", OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles(runs, obstruct):
    net, batch = make_net(), random_pairs([5, 9], [4, 2])
    net(*batch)
    assert len(runs) == 1
    obstruct(net)
    torch.manual_seed(1)
    try:
        expected = by_layers(net, *batch)
    except (ValueError, RuntimeError) as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            net(*batch)
    else:
        torch.manual_seed(1)
        assert torch.equal(net(*batch), expected)
    assert len(runs) == 1


@torch.no_grad()
def test_obstacles_outside_the_network(runs):
    net, (p, h) = make_net(), random_pairs([5, 9], [4, 2])
    with torch.autocast("cpu", torch.bfloat16):
        net(p, h)
    net(p, h, embedded=(torch.randn(2, 9, 12), torch.randn(2, 4, 12)))
    torch.func.jvp(
        lambda weight: torch.func.functional_call(net, {"linear.mlp.3.bias": weight}, (p, h)), *[(torch.ones(3),)] * 2
    )
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    net(p, h)
    handle.remove()
    assert not runs


@torch.no_grad()
def test_wrong_packed_pairs():
    net, lengths = make_net(), (torch.tensor([5, 9]), torch.tensor([4, 2]))
    pairs = esim_fast.pack_pairs(*random_pairs([5, 9], [4, 2]), *lengths)
    assert torch.equal(net(replace(pairs, addresses=pairs.addresses.repeat_interleave(2)[::2])), net(pairs))
    for wrong, error, message in (
        ({"tokens": pairs.tokens[:-1]}, ValueError, "batch_sizes must sum to the 19 rows of x, got 20"),
        ({"tokens": pairs.tokens + 40}, ValueError, "is not a token id"),
        ({"addresses": pairs.addresses + 30}, RuntimeError, "esim_fast: "),
        ({"addresses": pairs.addresses.int()}, TypeError, "Rows.start must be an int64 tensor"),
        ({"longest": (300, 3)}, ValueError, "Rows.max_length = 300 must lie between"),
        ({"longest": (9, -1)}, ValueError, "Rows.max_length = -1 must lie between"),
    ):
        with pytest.raises(error, match=message):
            net(replace(pairs, **wrong))


@pytest.mark.skipif(not int8.LANES, reason="needs a CPU with VNNI")
@pytest.mark.parametrize(
    "name", ["a wider composition", "another pooling", "another compose", "no bias in the classifier"]
)
def test_int8_refuses(name):
    net = make_net()
    assert inference_precision("int8", net.device, net) == "int8"
    OBSTACLES[name](net)
    with pytest.raises(ValueError, match="precision int8 needs unmodified layers"):
        inference_precision("int8", net.device, net)


@torch.no_grad()
def test_word_vectors_of_the_wrong_width():
    net, batch = make_net(), random_pairs([5, 9], [4, 2])
    net.embedding = nn.Embedding(50, 13)
    with pytest.raises(ValueError, match=r"x must be \[N, 12\], got shape \[20, 13\]"):
        net(*batch)


@torch.no_grad()
def test_word_vectors_in_another_dtype():
    net, batch = make_net(), random_pairs([5, 9], [4, 2])
    net.embedding.bfloat16()
    with pytest.raises((RuntimeError, ValueError), match="dtype"):
        net(*batch)

"""ESIM equals the eager baseline, and only the words of a sentence affect its results."""

import pytest
import torch
from torch import nn

import esim_fast
from benchmarks.baselines import NotebookESIM
from esim_fast import model

WORDS, WIDTH, HIDDEN, LABELS = 50, 12, 8, 3


def random_pairs(lengths_p, lengths_h, seed=0):
    """Token ids 2..WORDS-1, right-padded with 1."""
    generator = torch.Generator().manual_seed(seed)

    def fill(lengths):
        ids = torch.ones(len(lengths), max(lengths, default=0), dtype=torch.int64)
        for row, length in zip(ids, lengths, strict=True):
            row[:length] = torch.randint(2, WORDS, (length,), generator=generator)
        return ids

    return fill(lengths_p), fill(lengths_h)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def net(device):
    torch.manual_seed(0)
    return esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, device).eval()


@pytest.fixture
def batch(device):
    p, h = random_pairs([5, 9, 1, 7, 3], [4, 2, 6, 1, 8])
    return p.to(device), h.to(device)


def test_notebook_variant_equals_the_eager_notebook(device):
    torch.manual_seed(1)
    # In training mode, because cuDNN has no gradients in evaluation mode.
    peer = NotebookESIM(30, 20, WORDS, LABELS, dropout=0.0).to(device)
    ours = esim_fast.ESIM(30, 20, WORDS, LABELS, device, variant="notebook").eval()
    peer.load_state_dict(ours.state_dict())
    ours.load_state_dict(peer.state_dict())  # state dicts load in both directions
    p, h = random_pairs([5, 9, 1, 36, 3, 14], [4, 2, 19, 1, 8, 7])
    p, h, target = p.to(device), h.to(device), torch.tensor([0, 1, 2, 0, 1, 2], device=device)

    expected, logits = peer(p, h), ours(p, h)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for model_logits in (expected, logits):
        nn.functional.cross_entropy(model_logits, target).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-5, msg=name)
        assert parameter.grad.abs().max() > 1e-5, f"{name} gets no gradient: nothing was compared"


class TestPackedBatches:
    """Batches that were packed during collation."""

    def pack(self, p, h):
        lengths = [(ids != 1).sum(1).cpu() for ids in (p, h)]
        return esim_fast.pack_pairs(p.cpu(), h.cpu(), *lengths)

    def test_same_results_as_padded_ids(self, net, batch):
        assert torch.equal(net(self.pack(*batch).to(net.device)), net(*batch))
        assert net(self.pack(*(ids[:0] for ids in batch)).to(net.device)).shape == (0, LABELS)

    def test_mistakes(self, net, batch):
        pairs = self.pack(*batch)
        with pytest.raises(TypeError, match=r"^packed pairs are the whole batch: pass no other arguments$"):
            net(pairs, batch[1])
        with pytest.raises(TypeError, match=r"^attention returns padded maps, so p must be a tensor of padded ids"):
            net.attention(pairs, None)
        if batch[0].device.type == "cpu":
            pairs.tokens[3] = WORDS
            with pytest.raises(
                ValueError, match=rf"^tokens\[3\] = {WORDS} is not a token id, expected 0 to {WORDS - 1}$"
            ):
                net(pairs)
        else:
            with pytest.raises(ValueError, match=r"^tokens is on cpu, but the model is on cuda"):
                net(pairs)


@pytest.mark.parametrize("variant", ["paper", "notebook"])
def test_packed_model_equals_padded_layers(variant):
    """The packed path against the paper's equations, written out sentence by sentence in fp64."""
    torch.manual_seed(2)
    net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, variant=variant).double().eval()
    p, h = random_pairs([6, 2], [3, 5])
    logits = net(p, h)
    for i, (premise, hypothesis) in enumerate(zip(p, h, strict=True)):
        a, b = (net.encoder.lstm(net.embedding(ids[ids != 1]))[0] for ids in (premise, hypothesis))
        e = a @ b.T
        a_aligned, b_aligned = e.softmax(1) @ b, e.softmax(0).T @ a
        pooled = []
        for x, aligned in ((a, a_aligned), (b, b_aligned)):
            projected = net.infercomposition.composition.F(torch.cat([x, aligned, x - aligned, x * aligned], 1))
            composed = net.infercomposition.composition.lstm(projected.relu() if variant == "paper" else projected)[0]
            pooled += [composed.mean(0), composed.max(0).values]
        hidden = net.linear.mlp[1](torch.cat(pooled))
        expected = net.linear.mlp[3](hidden.tanh() if variant == "paper" else hidden.relu())
        torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-10)


class TestInvariance:
    """See also tests/ops/test_properties.py."""

    @pytest.mark.gpu
    def test_no_gpu_sync_if_lengths_are_given(self, batch):
        p, h = (ids.cuda() for ids in batch)
        lengths = [(ids != 1).sum(1).cpu() for ids in (p, h)]
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, "cuda")
        net(p, h, *lengths).sum().backward()  # the first call initializes libraries
        torch.cuda.set_sync_debug_mode("error")
        try:
            net(p, h, *lengths).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_lengths_cut_sentences(self, net, batch):
        p, h = batch
        lengths = torch.tensor([2, 3, 1, 4, 3])
        cut = p.masked_fill((torch.arange(p.shape[1]) >= lengths[:, None]).to(p.device), 1)
        torch.testing.assert_close(net(p, h, lengths, (h != 1).sum(1)), net(cut, h), rtol=1e-5, atol=1e-5)

    def test_shuffled_words_change_the_logits(self, net, batch):
        p, h = (ids.clone() for ids in batch)
        shuffled = p.clone()
        shuffled[1, :9] = p[1, :9].flip(0)
        difference = (net(shuffled, h) - net(p, h)).abs().amax(1)
        assert difference[1] > 1e-3
        assert difference[[0, 2, 3, 4]].max() < 1e-6


def test_empty_batch(net):
    p, h = (torch.ones(0, length, dtype=torch.int64, device=net.device) for length in (4, 2))
    assert net(p, h).shape == (0, LABELS)
    alpha, beta = net.attention(p, h)
    assert alpha.shape == beta.shape == (0, 4, 2)


def test_attention_is_the_softmax_of_the_scores(net, batch):
    p, h = batch
    alpha, beta = net.attention(p, h)
    a = net.encoder.lstm(net.embedding(p[3, :7]))[0]
    b = net.encoder.lstm(net.embedding(h[3, :1]))[0]
    torch.testing.assert_close(alpha[3, :7, :1], (a @ b.T).softmax(1))
    torch.testing.assert_close(beta[3, :7, :1], (a @ b.T).softmax(0))


class TestTraining:
    def test_the_notebooks_way_to_load_vectors(self, net):
        vectors = torch.randn(WORDS, WIDTH)
        net.embedding.weight.data.copy_(vectors)
        assert torch.equal(net.embedding.weight.cpu(), vectors)

    def test_frozen_embedding(self, batch):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, batch[0].device, freeze_embedding=True)
        net(*batch).sum().backward()
        assert net.embedding.weight.grad is None
        assert net.encoder.lstm.weight_ih_l0.grad is not None

    def test_dropout_only_in_training(self, net, batch):
        assert torch.equal(net(*batch), net(*batch))
        net.train()
        assert not torch.equal(net(*batch), net(*batch))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, net, batch, dtype):
        with torch.autocast(net.device.type, dtype):
            logits = net(*batch)
        torch.testing.assert_close(logits.float(), net(*batch), rtol=0.1, atol=0.02)


def test_local_inference_and_pooling_take_the_notebooks_masks():
    p, h = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    p_mask, h_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    m_p, m_h = esim_fast.LocalInference()(p, h, p_mask, h_mask)
    expected = esim_fast.ops.local_inference(p, h, [5, 2], [3, 4])
    assert torch.equal(m_p, expected[0])
    assert torch.equal(m_h, expected[1])
    assert torch.equal(esim_fast.Pooling()(p, p_mask), esim_fast.ops.masked_pool(p, [5, 2]))


BACKENDS = "None, 'cpp', 'cuda', 'triton', 'cudnn'"


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda p, h: (p.float(), h), TypeError, "p must be a tensor of token ids, int64 or int32, got torch"),
            (lambda p, h: (p.tolist(), h), TypeError, "got list"),
            (lambda p, h: (p[0], h), ValueError, r"p must be \[batch, length\], got shape \[9\]"),
            (lambda p, h: (p, h[:3]), ValueError, "p and h must have the same batch size, got 5 and 3"),
            (
                lambda p, h: (p.clamp(max=99).fill_(50), h),
                ValueError,
                r"p\[0, 0\] = 50 is not a token id, expected 0 to 49$",
            ),
            (lambda p, h: (p, -h), ValueError, r"h\[3, 0\] = -\d+ is not a token id"),
            (lambda p, h: (p, h, [5, 9, 1, 7, 10], [4, 2, 6, 1, 8]), ValueError, r"p_lengths\[4\] = 10, expected 0"),
            (lambda p, h: (p, h, [5, 9, -1, 7, 3], [4, 2, 6, 1, 8]), ValueError, r"p_lengths\[2\] = -1"),
            (lambda p, h: (p, h, [5, 9], [4, 2, 6, 1, 8]), ValueError, r"p_lengths must have shape \[5\].* got \[2\]"),
            (lambda p, h: (p, h, [5.0] * 5, [4] * 5), TypeError, "p_lengths must be integers"),
            (lambda p, h: (p.to("meta"), h), ValueError, "p is on meta, but the model is on cpu"),
        ],
    )
    @pytest.mark.parametrize("device", ["cpu"])  # values on a GPU are not read back for checks
    def test_forward(self, net, batch, change, error, message):
        with pytest.raises(error, match=message):
            net(*change(*batch))

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            ((0, 4, 9, 3), {}, ValueError, "hidden_size must be positive, got 0"),
            ((8, 4, 9.5, 3), {}, TypeError, "vocab_size must be an int, got 9.5"),
            ((8, 4, 9, 3), {"padding_idx": 9}, ValueError, "padding_idx = 9 must lie between 0 and vocab_size - 1 = 8"),
            ((8, 4, 9, 3), {"dropout": 1.5}, ValueError, "dropout must lie between 0 and 1, got 1.5"),
            ((8, 4, 9, 3), {"variant": "coetaur"}, ValueError, "variant must be one of 'paper', 'notebook'"),
            ((8, 4, 9, 3), {"backend": "cuDNN"}, ValueError, f"backend must be one of {BACKENDS}"),
            ((8, 4, 9, 3), {"bilstm_backend": "cuDNN"}, ValueError, f"bilstm_backend must be one of {BACKENDS}"),
            ((8, 4, 9, 3), {"classifier_activation": "gelu"}, ValueError, "classifier_activation must be one of"),
        ],
    )
    def test_constructor(self, arguments, options, error, message):
        with pytest.raises(error, match=message):
            esim_fast.ESIM(*arguments, **options)

    def test_a_backend_for_the_lstms_alone(self):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, "cpu", backend="cpp", bilstm_backend="reference")
        chosen = {name: module.backend for name, module in net.named_modules() if hasattr(module, "backend")}
        lstms = {"encoder", "infercomposition.composition"}
        assert chosen == {name: "reference" if name in lstms else "cpp" for name in chosen}
        assert chosen.keys() > lstms

    def test_a_backend_that_cannot_run(self, batch):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, batch[0].device, backend="cpp").bfloat16()
        with pytest.raises(ValueError, match="backend='cpp' cannot run bilstm on c"):
            net(*batch)


def replaced_by(module):
    """A module of the caller's that does what ``module`` does."""
    other = nn.Module()
    other.forward = module.forward
    return other


def replace_composition(net):
    """A composition layer of the caller's, with other names."""
    inner = net.infercomposition.composition
    net.infercomposition.composition = own = nn.Module()
    own.inner, own.forward = inner, inner.forward


def wider_encoder(net):
    """Layers of other sizes, which fit together."""
    net.encoder.lstm = nn.LSTM(WIDTH, 12, bidirectional=True)
    net.infercomposition.composition.F = nn.Linear(96, HIDDEN)
    net.infercomposition.composition.lstm = nn.LSTM(HIDDEN, 12, bidirectional=True)
    net.linear.mlp[1] = nn.Linear(96, HIDDEN)
    net.double()


NOTICED = {
    "a hook on local inference": lambda net: net.inference.register_forward_hook(lambda *_: None),
    "a hook on the composition": lambda net: net.infercomposition.register_forward_pre_hook(lambda *_: None),
    "a hook on the projection's layer": lambda net: net.infercomposition.composition.register_forward_hook(
        lambda *_: None
    ),
    "a hook on the projection": lambda net: net.infercomposition.composition.F.register_forward_hook(lambda *_: None),
    "another local inference": lambda net: setattr(net, "inference", replaced_by(net.inference)),
    "another composition": lambda net: setattr(net, "infercomposition", replaced_by(net.infercomposition)),
    "another composition layer": replace_composition,
    "a wider projection": wider_encoder,
    "another forward": lambda net: setattr(net.inference, "forward", net.inference.forward),
    "no bias": lambda net: setattr(net.infercomposition.composition.F, "bias", None),
    "fp64": lambda net: net.double(),
    "the reference": lambda net: setattr(net.inference, "backend", "reference"),
}


class TestDifference:
    """On a CPU in fp32, local inference leaves out ``a - ã``, unless that would be noticed."""

    @pytest.fixture
    def net(self):
        torch.manual_seed(0)
        return esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, "cpu").eval()

    @pytest.fixture
    def shortened(self, monkeypatch):
        """The shape of each enhancement without the difference."""
        shapes, project = [], model.projection
        monkeypatch.setattr(model, "projection", lambda m, *weights: shapes.append(m.shape) or project(m, *weights))
        return shapes

    def test_logits_and_gradients_are_the_same(self, net, shortened):
        p, h = random_pairs([5, 9, 1, 7, 3], [4, 2, 6, 1, 8])
        results = []
        for _ in range(2):
            logits = net(p, h)
            results.append([logits, *torch.autograd.grad(logits.square().sum(), list(net.parameters()))])
            net.inference.register_forward_hook(lambda *_: None)
        assert shortened == [(46, 6 * HIDDEN)]
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("noticed", NOTICED.values(), ids=NOTICED)
    def test_is_there_if_somebody_looks(self, net, shortened, noticed, monkeypatch):
        p, h = random_pairs([5, 9], [4, 2])
        net(p, h)
        assert len(shortened) == 1
        noticed(net)
        logits = net(p, h)
        assert len(shortened) == 1
        monkeypatch.setattr(esim_fast.ESIM, "_absorbs_difference", lambda *_: False)
        assert torch.equal(logits, net(p, h))

    def test_is_there_under_autocast_and_global_hooks(self, net, shortened):
        p, h = random_pairs([5, 9], [4, 2])
        with torch.autocast("cpu", torch.bfloat16):
            net(p, h)
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        net(p, h)
        handle.remove()
        assert not shortened

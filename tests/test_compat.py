"""Other people's ESIMs: their state dicts give the same logits, and their training loops run unchanged."""

import copy
import json
import operator
import pickle
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

import esim_fast
from benchmarks.baselines import NotebookESIM, multiplied_softmax
from esim_fast import state_dicts
from esim_fast.compat import checkpoints, coetaur0
from esim_fast.data import DataError
from tests.sources import AllenNLP, Coetaur0, Notebook
from tests.untrusted.hostile import DEEP

WORDS, WIDTH, HIDDEN, LABELS = 40, 10, 12, 3
PREMISES, HYPOTHESES = [7, 7, 7, 7], [5, 5, 5, 5]  # without padding, the mathematics is the same
RAGGED = [7, 3, 5, 1], [2, 5, 4, 3]


def sentences(lengths, padding, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), padding)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(2, WORDS, (length,), generator=generator)
    return ids


def pair_batch(padding, lengths=(PREMISES, HYPOTHESES)):
    return [sentences(side, padding, seed) for seed, side in enumerate(lengths)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def theirs(name):
    if name == "notebook":
        return Notebook(HIDDEN, WIDTH, WORDS, LABELS, batch_first=True).eval()
    return {"coetaur0": Coetaur0, "allennlp": AllenNLP}[name](WORDS, WIDTH, HIDDEN).eval()


def their_logits(name, model, p, h):
    if name == "coetaur0":
        return model(p, (p != 0).sum(1), h, (h != 0).sum(1))[0]
    return model(p, h)


NAMES = list(state_dicts.NAMING_SCHEMES)


@pytest.mark.parametrize("name", NAMES)
class TestStateDicts:
    def ours(self, name):
        return esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, **state_dicts.NAMING_SCHEMES[name].options).eval()

    def test_the_same_logits(self, name):
        model, net, wrapper = theirs(name), self.ours(name), nn.ModuleDict({"pairs": self.ours(name)})
        state_dict = model.state_dict()
        before = list(state_dict)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))
        for ours in (net, copied):
            assert not ours.load_state_dict(state_dict).missing_keys
        assert list(state_dict) == before
        wrapper.load_state_dict({f"pairs.{key}": value for key, value in state_dict.items()})
        # The notebook's recurrence runs over padding.
        for lengths in [(PREMISES, HYPOTHESES)] + [RAGGED] * (name != "notebook"):
            p, h = pair_batch(net.config.padding_idx, lengths)
            for ours in (net, copied, wrapper["pairs"]):
                torch.testing.assert_close(ours(p, h), their_logits(name, model, p, h), rtol=1e-5, atol=1e-5)

    def test_mistakes_are_reported_in_their_names(self, name):
        scheme = state_dicts.NAMING_SCHEMES[name]
        weight, bias = (scheme.theirs(f"encoder.lstm.{part}") for part in ("weight_hh_l0", "bias_ih_l0_reverse"))
        state_dict = theirs(name).state_dict()
        broken = {**state_dict, weight: torch.zeros(3, 4), "_extra.weight": torch.zeros(2)}
        del broken[bias]
        with pytest.raises(RuntimeError) as caught:
            self.ours(name).load_state_dict(broken)
        message = str(caught.value)
        assert f'Missing key(s) in state_dict: "{bias}"' in message
        assert 'Unexpected key(s) in state_dict: "_extra.weight"' in message
        assert f"size mismatch for {weight}" in message
        assert name == "notebook" or "encoder.lstm" not in message
        del state_dict[bias]
        assert self.ours(name).load_state_dict(state_dict, strict=False).missing_keys == [bias]

    def test_the_table_names_every_entry(self, name):
        scheme = state_dicts.NAMING_SCHEMES[name]
        entries, ours = theirs(name).state_dict(), self.ours(name).state_dict()
        assert {scheme.ours(entry) for entry in entries} == set(ours)
        assert {scheme.theirs(entry) for entry in ours} == set(entries)
        json.dumps(scheme.options)


def test_networks_with_other_mathematics_give_a_warning():
    net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS)
    allennlps = r"AllenNLP: to reproduce its results, use ESIM\(..., padding_idx=0, classifier_activation='relu'\)"
    with pytest.warns(UserWarning, match=allennlps):
        net.load_state_dict(theirs("allennlp").state_dict())
    with pytest.warns(UserWarning, match=r"coetaur0/ESIM: to reproduce its results, use ESIM\(..., padding_idx=0\)"):
        net.load_state_dict(theirs("coetaur0").state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(theirs("notebook").state_dict())  # its names are also esim_fast's


class TestTheNotebooksAttributes:
    @pytest.mark.parametrize(
        "path",
        [
            "device",
            "embedding.weight",
            "encoder.lstm.weight_ih_l0",
            "inference",
            "infercomposition.composition.F.weight",
            "infercomposition.composition.dropout.p",
            "infercomposition.composition.hidden_size",
            "infercomposition.composition.lstm.bias_hh_l0_reverse",
            "infercomposition.pooling",
            "linear.activation",
            "linear.dropout.p",
            "linear.mlp.0",
            "linear.mlp.1.weight",
            "linear.mlp.2",
            "linear.mlp.3.bias",
        ],
    )
    @pytest.mark.parametrize("variant", ["paper", "notebook"])
    def test_paths(self, path, variant):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, torch.device("cpu"), variant=variant)
        assert operator.attrgetter(path)(net) is not None

    def test_names_of_parameters(self):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS)
        names = [name for name, _ in net.named_parameters()]
        assert names == list(net.state_dict()) == list(Notebook(HIDDEN, WIDTH, WORDS, LABELS).state_dict())

    def test_dropout_is_set_like_the_notebooks(self):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, variant="notebook", embedding_dropout=0.0)
        net.infercomposition.composition.dropout.p = net.linear.dropout.p = 0.0
        p, h = pair_batch(1)
        assert torch.equal(net.train()(p, h), net.eval()(p, h))
        assert isinstance(net.linear.activation, nn.ReLU)
        assert net.infercomposition.composition.hidden_size == HIDDEN

    @pytest.mark.parametrize("layer", [nn.Identity(), nn.Dropout(0.0)])
    def test_dropout_may_be_pytorchs(self, layer):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, variational_dropout=True, dropout=0.5)
        expected = net.eval()(*pair_batch(1))
        net.embedding_dropout = net.infercomposition.composition.dropout = layer
        assert torch.equal(net.eval()(*pair_batch(1)), expected)
        net.linear.dropout.p = net.linear.mlp[2][1].p = 0.0
        torch.testing.assert_close(net.train()(*pair_batch(1)), expected)


class TestTheOriginalNotebook:
    """As documented, its recurrence runs across the batch."""

    def test_a_pair_depends_on_its_neighbors(self):
        model, net = Notebook(HIDDEN, WIDTH, WORDS, LABELS).eval(), esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS).eval()
        p, h = pair_batch(1)
        others = p.clone()
        others[1:] = others[1:].flip(1)
        assert not torch.allclose(model(others, h)[0], model(p, h)[0], atol=1e-5)
        torch.testing.assert_close(net(others, h)[0], net(p, h)[0], rtol=1e-5, atol=1e-5)

    def test_only_single_words_in_a_single_pair_agree(self):
        model = Notebook(HIDDEN, WIDTH, WORDS, LABELS).eval()
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, variant="notebook").eval()
        net.load_state_dict(model.state_dict())
        p, h = pair_batch(1)
        torch.testing.assert_close(net(p[:1, :1], h[:1, :1]), model(p[:1, :1], h[:1, :1]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(net(p, h), model(p, h), atol=1e-3)


def test_softmax_by_multiplication_is_imprecise():
    """If all valid scores are far below zero, their softmax gives the weight to padding and then to no word."""
    premise, hypothesis = torch.full((1, 2, 4), 5.0), torch.full((1, 3, 4), -5.0)  # scores of -100
    mask = torch.tensor([[1, 0, 0]])  # a hypothesis of one word, padded to three
    aligned = multiplied_softmax(premise @ hypothesis.transpose(1, 2), mask.float()) @ hypothesis
    assert aligned.abs().max() < 1e-20
    m_p, _ = esim_fast.ops.local_inference(premise, hypothesis, a_mask=torch.ones(1, 2), b_mask=mask)
    torch.testing.assert_close(m_p[:, :, 4:8], torch.full((1, 2, 4), -5.0))  # it has only one word


class TestCoetaur0:
    def test_the_same_results_and_state_dict(self):
        model, ours = theirs("coetaur0"), coetaur0.ESIM(WORDS, WIDTH, HIDDEN).eval()
        ours.load_state_dict(model.state_dict())
        assert list(ours.state_dict()) == list(model.state_dict())
        p, h = pair_batch(0, RAGGED)
        arguments = p, (p != 0).sum(1), h, (h != 0).sum(1)
        for expected, found in zip(model(*arguments), ours(*arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        other = theirs("coetaur0")
        other.load_state_dict(ours.state_dict())  # and back
        assert torch.equal(other(*arguments)[0], model(*arguments)[0])
        wrapper = nn.ModuleDict({"pairs": ours})  # and inside a custom module
        assert list(wrapper.state_dict()) == [f"pairs.{name}" for name in model.state_dict()]
        wrapper.load_state_dict(wrapper.state_dict())

    @pytest.mark.parametrize("name", ["notebook", "allennlp"])
    def test_it_takes_the_others_state_dicts(self, name):
        ours = coetaur0.ESIM(WORDS, WIDTH, HIDDEN)
        state_dict = theirs(name).state_dict()
        with pytest.warns(UserWarning, match=r"classifier_activation='relu'\)$") as caught:
            ours.load_state_dict(state_dict)
        assert caught[0].filename == __file__
        state_dicts.rename(state_dict)
        for key, value in ours.esim.state_dict().items():
            assert torch.equal(value, state_dict[key])

    def test_mistakes(self):
        ours = coetaur0.ESIM(WORDS, WIDTH, HIDDEN)
        state_dict = ours.state_dict()
        state_dict["_projection.0.bias"] = torch.zeros(1)
        del state_dict["_composition._encoder.bias_hh_l0"]
        with pytest.raises(RuntimeError, match=r'Missing.*"_composition\._encoder\.bias_hh_l0"') as caught:
            ours.load_state_dict(state_dict)
        assert "size mismatch for _projection.0.bias" in str(caught.value)
        with pytest.raises(ValueError, match=r"^embeddings must be \[40, 10\], one row for each word, got \[4, 10\]$"):
            coetaur0.ESIM(WORDS, WIDTH, HIDDEN, embeddings=torch.zeros(4, WIDTH))

    def test_arguments(self):
        vectors = torch.randn(WORDS, WIDTH)
        ours = coetaur0.ESIM(WORDS, WIDTH, HIDDEN, vectors, padding_idx=3, dropout=0.25, num_classes=5, device="meta")
        assert torch.equal(ours.state_dict()["_word_embedding.weight"], vectors)
        assert (ours.device, ours.dropout, ours.num_classes) == ("meta", 0.25, 5)
        assert ours.esim.config.padding_idx == 3
        assert ours.esim.embedding_dropout.p == 0.25


class TestVariationalDropout:
    def test_all_words_of_a_sentence_lose_the_same(self):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, variational_dropout=True)
        p, h = sentences([4, 2, 0, 3], 1), sentences([1, 0, 3, 5], 1, seed=1)
        pairs = esim_fast.pack_pairs(p, h, (p != 1).sum(1), (h != 1).sum(1))
        dropped = net.embedding_dropout(torch.ones(len(pairs.tokens), WIDTH), pairs)
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        rows = pairs.rows(WIDTH).all
        kept = []
        for start, length in zip(rows.start, rows.lengths, strict=True):
            words = dropped[(start + rows.step[:length]) // WIDTH]
            assert (words == words[:1]).all()
            kept += words[:1]
        assert len({tuple(places.tolist()) for places in kept}) == len(kept)  # other sentences lose other elements

    def test_gradients_and_evaluation(self):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS, variational_dropout=True)
        p, h = pair_batch(1)
        net(p, h).sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())
        net.eval()
        plain = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS).eval()
        plain.load_state_dict(net.state_dict())
        assert torch.equal(net(p, h), plain(p, h))


def notebook_loop(make_model, batches, steps):
    """A training loop in the notebook's style; only ``make_model`` differs between the models."""
    device = torch.device("cpu")
    net = make_model(HIDDEN, WIDTH, WORDS, LABELS, device)
    net = net.to(device)
    optimizer = torch.optim.Adam(filter(lambda parameter: parameter.requires_grad, net.parameters()), lr=0.01)
    loss = nn.CrossEntropyLoss()
    losses, right, seen = [], 0, 0
    for _ in range(steps):
        for premise, hypothesis, label in batches:
            y_hat = net(premise.to(device), hypothesis.to(device))
            step_loss = loss(y_hat, label.to(device))
            optimizer.zero_grad()
            step_loss.backward()
            optimizer.step()
            losses.append(step_loss.cpu().item())
            right += (y_hat.argmax(dim=1) == label).sum().cpu().item()
            seen += label.shape[0]
    return losses, right / seen


def coetaur0_loop(make_model, batches, epochs):
    """A training loop in coetaur0's style: its optimizer, clipping and scheduler, and probabilities for metrics."""
    model = make_model(WORDS, WIDTH, HIDDEN, padding_idx=0, dropout=0.0, num_classes=LABELS, device="cpu").to("cpu")
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
    losses = []
    for _ in range(epochs):
        model.train()
        correct = count = 0
        for premises, hypotheses, labels in batches:
            lengths = [(ids != 0).sum(1).to(model.device) for ids in (premises, hypotheses)]
            optimizer.zero_grad()
            logits, probs = model(premises.to(model.device), lengths[0], hypotheses.to(model.device), lengths[1])
            loss = criterion(logits, labels.to(model.device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            losses.append(loss.item())
            correct += (probs.max(dim=1)[1] == labels).sum().item()
            count += len(labels)
        scheduler.step(correct / count)
    return losses, correct / count


class TestDropIn:
    """The same loop with their class and with ours gives the same losses at every step, from the same weights."""

    def assert_the_same(self, loop, theirs, ours, padding):
        generator, batches = torch.Generator().manual_seed(5), []
        for lengths in (([6, 3, 4, 2, 5, 6], [3, 5, 1, 4, 2, 5]), ([2, 2, 7, 5, 1, 3], [4, 6, 3, 2, 2, 1])):
            batches.append((*pair_batch(padding, lengths), torch.randint(LABELS, (6,), generator=generator)))
        (expected, accuracy), (found, our_accuracy) = (loop(make_model, batches, 15) for make_model in (theirs, ours))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-4)
        assert our_accuracy == accuracy
        assert found[-1] < found[0]  # the loss decreases

    def test_the_notebooks_loop(self):
        torch.manual_seed(3)
        peer = NotebookESIM(HIDDEN, WIDTH, WORDS, LABELS, dropout=0.0)  # corrected: along the sentence, without padding
        start = copy.deepcopy(peer.state_dict())

        def ours(*arguments):
            net = esim_fast.ESIM(*arguments, variant="notebook", dropout=0.0)
            net.load_state_dict(start)
            return net

        self.assert_the_same(notebook_loop, lambda *_: peer, ours, padding=1)

    def test_coetaur0s_loop(self):
        torch.manual_seed(4)
        start = Coetaur0(WORDS, WIDTH, HIDDEN).state_dict()

        def started(make):
            def make_model(*arguments, padding_idx, device, **options):
                more = {"padding_idx": padding_idx, "device": device} if make is coetaur0.ESIM else {}
                model = make(*arguments, **options, **more)
                model.load_state_dict(start)
                model.device = device
                return model

            return make_model

        self.assert_the_same(coetaur0_loop, started(Coetaur0), started(coetaur0.ESIM), padding=0)


VOCABULARIES = {
    "notebook": ["<unk>", "<pad>", *(f"word{i}" for i in range(2, WORDS))],
    "coetaur0": ["_PAD_", "_OOV_", "_BOS_", "_EOS_", *(f"word{i}" for i in range(4, WORDS))],
    "allennlp": ["@@UNKNOWN@@", *(f"word{i}" for i in range(2, WORDS))],  # as in its files, without padding
}
SENTENCES = ["word9 word7 Nothing word30", "word7 word12"]
NOT_FINITE = "must hold finite floating-point numbers"


class TestConvert:
    @pytest.mark.parametrize("name", NAMES)
    def test_raw_text_gives_their_probabilities(self, name, tmp_path):
        model = theirs(name)
        labels = ["no", "maybe", "yes"]
        checkpoints.convert(model.state_dict(), VOCABULARIES[name], labels).save_pretrained(tmp_path)
        found = esim_fast.Classifier.from_pretrained(tmp_path)
        unknown = 0 if name == "notebook" else 1
        ids = [[int(word[4:]) if word.startswith("word") else unknown for word in text.split()] for text in SENTENCES]
        if name == "coetaur0":
            ids = [[2, *words, 3] for words in ids]  # between _BOS_ and _EOS_
        expected = their_logits(name, model, *(torch.tensor([words]) for words in ids)).softmax(1)[0]
        label, probabilities = found.predict(tuple(SENTENCES))
        torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=1e-5)
        assert label == labels[expected.argmax()]
        found = checkpoints.convert(model.state_dict())  # without a vocabulary, ids become words
        expected = their_logits(name, model, torch.tensor([[9, 7, 30]]), torch.tensor([[12, 2]])).softmax(1)[0]
        torch.testing.assert_close(found.predict(("9 7 30", "12 2")).probabilities, expected, rtol=1e-5, atol=1e-5)
        assert found.labels == ["0", "1", "2"]

    def test_esim_fast_state_dicts(self):
        net = esim_fast.ESIM(HIDDEN, WIDTH, WORDS, LABELS).eval()
        found = checkpoints.convert(net.state_dict(), source="esim_fast")
        p, h = pair_batch(1)
        assert torch.equal(found.net(p, h), net(p, h))

    @pytest.mark.parametrize(
        ("wrap", "name"),
        [
            (lambda state: state, "state.pt"),
            (lambda state: {"epoch": 3, "model": state, "best_score": 0.5, "train_losses": [1.0]}, "best.pth.tar"),
            (lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}}, "parallel.ckpt"),
            (lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()}, "compiled.pt"),
            (lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}}, "lightning.ckpt"),
        ],
    )
    def test_checkpoints(self, wrap, name, tmp_path):
        state_dict = theirs("coetaur0").state_dict()
        torch.save(wrap(state_dict), tmp_path / name)
        found = checkpoints.read_state_dict(tmp_path / name)
        assert found.keys() == state_dict.keys()
        safetensors.torch.save_file(state_dict, tmp_path / "state.safetensors")
        assert checkpoints.read_state_dict(tmp_path / "state.safetensors").keys() == state_dict.keys()

    def test_executable_content_is_rejected(self, tmp_path):
        torch.save(theirs("coetaur0"), tmp_path / "whole.pt")
        message = r"whole.pt: holds Python objects \(tests.sources.Coetaur0\).*net.state_dict\(\)"
        with pytest.raises(DataError, match=message):
            checkpoints.read_state_dict(tmp_path / "whole.pt")

        class Trap:
            def __reduce__(self):
                return open, (str(tmp_path / "sprung"), "w")

        for content in (Trap(), {"model": Trap()}):
            torch.save(content, tmp_path / "trap.pt", pickle_protocol=2)
            with pytest.raises(DataError, match="holds Python objects"):
                checkpoints.read_state_dict(tmp_path / "trap.pt")
        (tmp_path / "words.pkl").write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
        with pytest.raises(DataError, match=r"words.pkl: a pickle, which would run code when loaded"):
            checkpoints.read_words(tmp_path / "words.pkl")
        with pytest.raises(DataError, match=r"words\.pkl: "):
            checkpoints.read_state_dict(tmp_path / "words.pkl")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"hello", bytes(1000)])
    @pytest.mark.parametrize("name", ["state.pt", "state.safetensors"])
    def test_damaged_files(self, content, name, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: ") as caught:
            checkpoints.read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_other_content(self, tmp_path):
        for content in ([1, 2], {"epoch": 1}, {"model": {"a": 1}}, {0: torch.zeros(3)}, torch.zeros(3)):
            torch.save(content, tmp_path / "other.pt")
            with pytest.raises(
                DataError, match=r"other.pt: expected a state dict, or a checkpoint with one as model or"
            ):
                checkpoints.read_state_dict(tmp_path / "other.pt")

    @pytest.mark.parametrize(
        ("entry", "value", "message"),
        [
            ("_projection.0.bias", None, "is missing"),
            ("_word_embedding.weight", None, "is missing"),
            ("_extra", torch.zeros(1), "is not a parameter of ESIM"),
            ("_encoding._encoder.weight_ih_l1", torch.zeros(1), "is not a parameter of ESIM"),
            ("_projection.0.bias", torch.zeros(4), r"has shape \[4\], expected \[12\]"),
            ("_word_embedding.weight", torch.zeros(4), r"has shape \[4\], expected two nonzero dimensions"),
            ("_classification.4.bias", torch.full((3,), float("nan")), NOT_FINITE),
            (
                "_classification.4.bias",
                torch.full((3,), 1e300, dtype=torch.float64),
                NOT_FINITE,
            ),  # beyond fp32's range
            ("_classification.4.bias", torch.zeros(3, dtype=torch.int64), NOT_FINITE),
            ("_classification.4.bias", torch.zeros(3).to(torch.float8_e4m3fn), NOT_FINITE),
            ("_classification.4.bias", torch.zeros(3).to_sparse(), NOT_FINITE),
            ("_classification.4.bias", torch.zeros(3, device="meta"), NOT_FINITE),
        ],
    )
    def test_mistakes_are_reported_in_their_names(self, entry, value, message):
        state_dict = {**theirs("coetaur0").state_dict(), entry: value}
        if value is None:
            del state_dict[entry]
        with pytest.raises(ValueError, match=rf"^{entry} {message}$"):
            checkpoints.convert(state_dict)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions(self, dtype):
        state_dict = {name: value.to(dtype) for name, value in theirs("notebook").state_dict().items()}
        net = checkpoints.convert(state_dict).net
        for name, value in net.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state_dict[name].float())

    def test_their_special_words_come_first(self):
        """Special words of other libraries may be words of the text."""
        words = ["_PAD_", "_OOV_", "_BOS_", "_EOS_", "<unk>", "<pad>", *(f"word{i}" for i in range(6, WORDS))]
        state_dict = theirs("coetaur0").state_dict()
        with pytest.raises(ValueError, match=r"^expected distinct words, got '<unk>' 2 times$"):
            checkpoints.convert(state_dict, words)
        words[4:6] = ["[UNK]", "[PAD]"]
        found = checkpoints.convert(state_dict, words)
        assert torch.equal(found.net.embedding.weight[:2], state_dict["_word_embedding.weight"][[1, 0]])

    def test_words_in_another_order(self):
        message = r"^expected padding as word 0, as in coetaur0/ESIM, got '<pad>' as word 1"
        with pytest.raises(ValueError, match=message):
            checkpoints.convert(theirs("coetaur0").state_dict(), VOCABULARIES["notebook"])

    def test_labels_by_id(self):
        for labels in ({"yes": 2, "no": 0, "maybe": 1}, {"2": "yes", "0": "no", "1": "maybe"}, ("no", "maybe", "yes")):
            model = checkpoints.convert(theirs("notebook").state_dict(), labels=labels)
            assert model.labels == ["no", "maybe", "yes"]
        with pytest.raises(TypeError, match=r"^labels must be .*, got set$"):
            checkpoints.convert(theirs("notebook").state_dict(), labels={"no", "maybe", "yes"})

    def test_other_mistakes(self):
        state_dict = theirs("notebook").state_dict()
        with pytest.raises(ValueError, match=r"^the network has 40 word vectors, but the vocabulary has 39 words$"):
            checkpoints.convert(state_dict, VOCABULARIES["notebook"][:-1])
        with pytest.raises(ValueError, match=r"^expected one of <pad>, _PAD_, .* among the words, got none$"):
            checkpoints.convert(state_dict, ["<unk>", *(f"word{i}" for i in range(1, WORDS))])
        with pytest.raises(ValueError, match=r"^expected distinct words, got 'word2' 2 times$"):
            checkpoints.convert(state_dict, [*VOCABULARIES["notebook"][:-1], "word2"])
        with pytest.raises(ValueError, match=r"^labels must name the network's 3 outputs, got 2: yes, no$"):
            checkpoints.convert(state_dict, labels=["yes", "no"])
        with pytest.raises(
            ValueError,
            match=r"^expected a state dict with the names of the notebook, coetaur0/ESIM, AllenNLP, got a, b",
        ):
            checkpoints.convert({"a": torch.zeros(1), "b": torch.zeros(1)})

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("words.txt", "<unk>\n<pad>\na\n", ["<unk>", "<pad>", "a"]),
            ("words.txt", "<unk>\r\n<pad>\r\na\r\n", ["<unk>", "<pad>", "a"]),
            ("words.json", '["<unk>", "<pad>", "a"]', ["<unk>", "<pad>", "a"]),
            ("words.json", '{"a": 2, "_PAD_": 0, "_OOV_": 1}', ["_PAD_", "_OOV_", "a"]),
        ],
    )
    def test_vocabularies(self, name, content, words, tmp_path):
        (tmp_path / name).write_text(content)
        assert checkpoints.read_words(tmp_path / name) == words

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("words.json", "{", "not valid JSON"),
            ("words.json", "9" * 5000, "not valid JSON"),
            ("words.json", '{"a": 1, "b": 1}', r"expected the ids 0 to 1, each once"),
            ("words.json", '{"a": "0"}', r"expected the ids 0 to 0, each once"),
            ("words.json", "[1, 2]", "expected a list of words"),
            ("words.json", "3", "expected a list of words"),
            ("words.json", "[" * DEEP, ".*nested more than 100 levels deep"),
            ("words.json", '{"a": 0, "b": 1, "a": 2}', ".*the key 'a' is repeated"),
            ("words.json", '{"a": 0, "b": 0}', "expected the ids 0 to 1, each once"),
            ("words.json", '{"a": 0, "b": 99999999999999999999}', "expected the ids 0 to 1, each once"),
            ("words.json", '{"a": [0], "b": {}}', "expected the ids"),
            ("words.json", '["a", null]', "expected a list of words"),
            ("words.json", '["\\ud800"]', ".*surrogates not allowed"),
            ("words.json", "\0\1", "not valid JSON"),
            ("words.txt", b"\xff\xfe", "not valid UTF-8 at byte 1"),
        ],
    )
    def test_bad_vocabularies(self, name, content, message, tmp_path):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=rf"{name}: {message}") as caught:
            checkpoints.read_words(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match="nowhere: No such file"):
            checkpoints.read_words(tmp_path / "nowhere")

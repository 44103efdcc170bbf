"""Classifier: raw text in, labels out; its directory is complete or rejected with a reason."""

import io
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

import esim_fast
from esim_fast import Classifier
from esim_fast.data import DataError, EncodedPairs, Vocabulary
from esim_fast.ops import int8

PAIRS = [("A man sleeps.", "A person rests."), ("A man sleeps.", ""), ("", ""), ("Two dogs run", "A man rests")]


@pytest.fixture
def model():
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", "a", "man", "person", "rests", "sleeps", ".", "dogs"]
    net = esim_fast.ESIM(6, 5, len(words), 3).eval()
    return Classifier(net, Vocabulary(words), ["contradiction", "entailment", "neutral"])


def test_predict(model):
    labels, probabilities = model.predict(PAIRS)
    assert probabilities.shape == (4, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    assert labels == [model.labels[i] for i in probabilities.argmax(1)]
    assert model.predict([]).labels == []
    assert model.predict(zip(*zip(*PAIRS, strict=True), strict=True)).labels == labels  # pairs from an iterator


@pytest.mark.parametrize("pair", [PAIRS[0], list(PAIRS[0]), ("", "")])
def test_predict_one_pair(model, pair):
    label, probabilities = model.predict(pair)
    expected = model.predict([tuple(pair)])
    assert [label] == expected.labels
    assert torch.equal(probabilities, expected.probabilities[0])
    assert len(model.predict([PAIRS[0], PAIRS[1]]).labels) == 2  # two pairs, not a pair of sentences


def test_device(model):
    assert model.device == model.net.device == torch.device("cpu")
    assert model.to("cpu") is model
    assert model.to(torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "torch finds no usable GPU here"), ("gpu", "Expected one of cpu"), ("cuda:-2", "Invalid device string")],
)
def test_devices_that_do_not_exist(model, tmp_path, device, message):
    model.save_pretrained(tmp_path)
    for refuse in (model.to, lambda device: Classifier.from_pretrained(tmp_path, device=device)):
        with pytest.raises(ValueError, match=message):
            refuse(device)
    assert model.device == torch.device("cpu")


@pytest.mark.gpu
def test_to_a_gpu_and_back(model):
    expected = model.predict(PAIRS).probabilities
    assert model.to("cuda").device.type == "cuda"
    torch.testing.assert_close(model.predict(PAIRS).probabilities, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"^device cuda:99: torch finds \d+ GPUs here$"):
        model.to("cuda:99")
    assert torch.equal(model.to("cpu").predict(PAIRS).probabilities, expected)
    model.precision = "fp16"  # CPUs do not support it
    model.to("cuda")
    with pytest.raises(ValueError, match=r"^precision fp16 needs a GPU"):
        model.to("cpu")
    assert model.device.type == "cuda"


def test_a_device_must_support_the_precision(model):
    model.precision = "fp16"
    with pytest.raises(ValueError, match=r"^precision fp16 needs a GPU"):
        model.to("cpu")
    model.precision = "fp32"
    model.net.encoder.backend = "cudnn"
    with pytest.raises(ValueError, match=r"^backend='cudnn' cannot run any op on cpu"):
        model.to("cpu")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("shown", [True, None, False])
@pytest.mark.parametrize("stderr", [Terminal, io.StringIO])
@pytest.mark.parametrize("slow", [True, False])
def test_progress_bar(model, monkeypatch, shown, stderr, slow):
    monkeypatch.setattr("sys.stderr", stderr())
    clock = itertools.count(0, 0.4 if slow else 1e-6)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    labels = model.predict(PAIRS * 3, batch_size=2, show_progress_bar=shown).labels
    assert labels == model.predict(PAIRS).labels * 3
    text = sys.stderr.getvalue()
    if shown or (shown is None and slow and stderr is Terminal):
        assert "/12 [" in text
        if slow:
            assert "12/12" in text
    else:
        assert text == ""


def test_no_stderr(model, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert len(model.predict(PAIRS).labels) == 4


def test_precision(model, tmp_path):
    exact = model.predict(PAIRS).probabilities
    model.save_pretrained(tmp_path)
    rounded = Classifier.from_pretrained(tmp_path, device="cpu", precision="bf16").predict(PAIRS).probabilities
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)
    with pytest.raises(
        ValueError, match=r"^precision must be one of 'fp32', 'bf16', 'fp16', 'int8', 'auto', got 'int4'$"
    ):
        Classifier.from_pretrained(tmp_path, precision="int4")
    model.precision = "int4"
    with pytest.raises(ValueError, match=r"^precision must be one of"):
        model.predict(PAIRS)
    with pytest.raises(ValueError, match=r"^precision fp16 needs a GPU"):
        Classifier.from_pretrained(tmp_path, device="cpu", precision="fp16")


def test_int8_or_a_clear_error_and_fp32(model, tmp_path, monkeypatch):
    exact = model.predict(PAIRS).probabilities
    model.save_pretrained(tmp_path)
    if int8.LANES:
        for precision in ("int8", "auto"):
            rounded = Classifier.from_pretrained(tmp_path, device="cpu", precision=precision)
            probabilities = rounded.predict(PAIRS).probabilities
            assert not torch.equal(probabilities, exact)
            torch.testing.assert_close(probabilities, exact, rtol=0.02, atol=0.005)
            assert rounded.predict([]).labels == []
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(rounded.predict(PAIRS).probabilities, probabilities)
        rounded.net.double()
        rounded.precision = "int8"
        with pytest.raises(ValueError, match=r"^precision int8 needs parameters in float32, got torch\.float64$"):
            rounded.predict(PAIRS)
        rounded.precision = "auto"
        rounded.predict(PAIRS)  # rounded weights, computed in fp64
        hook = rounded.net.float().linear.register_forward_hook(lambda *_: None)
        assert torch.equal(rounded.predict(PAIRS).probabilities, exact)
        rounded.precision = "int8"
        with pytest.raises(ValueError, match=r"^precision int8 needs unmodified layers, because hooks"):
            rounded.predict(PAIRS)
        hook.remove()
        rounded.predict(PAIRS)
        rounded.net.encoder.lstm = torch.nn.LSTM(5, 6, num_layers=2, bidirectional=True)  # one of the layers would run
        with pytest.raises(ValueError, match=r"^precision int8 needs unmodified layers"):
            rounded.predict(PAIRS)
    monkeypatch.setattr(int8, "LANES", 0)  # like a processor without VNNI
    with pytest.raises(ValueError, match=r"^precision int8 needs a CPU with AVX512-VNNI or AVX-VNNI$"):
        Classifier.from_pretrained(tmp_path, device="cpu", precision="int8")
    again = Classifier.from_pretrained(tmp_path, device="cpu", precision="auto")
    assert torch.equal(again.predict(PAIRS).probabilities, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_uses_an_available_gpu(model, tmp_path, precision):
    model.save_pretrained(tmp_path)
    found = Classifier.from_pretrained(tmp_path, precision=precision)
    assert found.net.device.type == "cuda"
    ours, expected = (which.predict(PAIRS).probabilities for which in (found, model))
    torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.01)


def test_predict_keeps_the_order_for_any_batches(model):
    expected = model.predict(PAIRS).probabilities
    for batch_size in (1, 2, 3):
        torch.testing.assert_close(model.predict(PAIRS, batch_size=batch_size).probabilities, expected)
    torch.testing.assert_close(model.predict(PAIRS[::-1]).probabilities, expected.flip(0))


def test_training_mode_does_not_change(model):
    model.net.train()
    first = model.predict(PAIRS).probabilities
    assert torch.equal(first, model.predict(PAIRS).probabilities), "dropout is on"
    assert model.net.training
    with pytest.raises(ValueError, match="is not a token id"):
        model.logits(EncodedPairs([[99]], [[2]], None))
    assert model.net.training


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", None), ("a", "b", "c")])
def test_predict_rejects_what_is_not_a_pair(model, pair):
    with pytest.raises(TypeError, match=r"pairs\[1\] must be a \(premise, hypothesis\) pair of strings"):
        model.predict([("a", "b"), pair])


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    names = {"model.safetensors", "config.json", "vocabulary.txt", "labels.json"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    again = Classifier.from_pretrained(tmp_path / "model")
    assert again.labels == model.labels
    assert again.vocabulary == model.vocabulary
    assert torch.equal(again.predict(PAIRS).probabilities, model.predict(PAIRS).probabilities)
    model.save_pretrained(tmp_path / "model")  # replaces the first one


def test_labels_by_id(model, tmp_path):
    expected = model.predict(PAIRS)
    for labels in ({"neutral": 2, "contradiction": 0, "entailment": 1}, dict(enumerate(model.labels))):
        again = Classifier(model.net, model.vocabulary, labels)
        assert again.labels == model.labels
        assert again.predict(PAIRS).labels == expected.labels
        again.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "labels.json").read_text()) == model.labels


def test_every_option_of_the_network_is_saved(tmp_path):
    options = {"padding_idx": 0, "dropout": 0.25, "variational_dropout": True, "freeze_embedding": True}
    options |= {"variant": "notebook", "projection_activation": "tanh", "classifier_activation": None}
    net = esim_fast.ESIM(4, 3, 2, 2, **options)
    Classifier(net, Vocabulary(["<unk>", "<pad>"]), ["no", "yes"]).save_pretrained(tmp_path)
    assert Classifier.from_pretrained(tmp_path).net.config == net.config


def test_bad_directories(model, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such model directory"):
        Classifier.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="vocabulary must have 9 words, one for each row of the embedding, got 2"):
        Classifier(model.net, Vocabulary(["<unk>", "<pad>"]), model.labels)
    for labels, message in (
        (["a", "a", "b"], r"^labels must be distinct, got 'a' 2 times$"),
        (["a", "b\n"], r"^labels must name the network's 3 outputs, got 2: a, b\\n$"),
        ({}, r"^labels must name the network's 3 outputs, got none$"),
        (
            [f"label {number}" for number in range(1000)],
            r"^labels must name the network's 3 outputs, got 1000: label 0, .{190,} …$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Classifier(model.net, model.vocabulary, labels)
    for labels in ({*model.labels}, "abc", None, [0, 1, 2]):
        with pytest.raises(TypeError, match=r"^labels must be "):
            Classifier(model.net, model.vocabulary, labels)
    with pytest.raises(TypeError, match="tokenizer must be a name or a function, got 5"):
        Classifier(model.net, model.vocabulary, model.labels, 5)


def shout(text):
    """A custom tokenizer."""
    return text.upper().split()


class TestCustomTokenizer:
    @pytest.fixture
    def directory(self, model, tmp_path):
        own = Classifier(model.net, Vocabulary(["<unk>", "<pad>", *"ABCDEFG"]), model.labels, shout)
        own.save_pretrained(tmp_path)
        return tmp_path

    def test_its_name_is_saved_and_it_is_used(self, directory):
        own = Classifier.from_pretrained(directory, tokenizer=shout)
        lower, upper = (own.predict([pair]).probabilities for pair in (("a b", "c"), ("A  B", "C")))
        torch.testing.assert_close(lower, upper)
        own.save_pretrained(directory / "again")
        for folder in (directory, directory / "again"):
            assert json.loads((folder / "config.json").read_text())["tokenizer"] == f"{__name__}:shout"

    def test_nothing_is_imported_because_a_file_names_it(self, directory, monkeypatch):
        (directory / "evil.py").write_text("raise SystemExit('imported')")
        monkeypatch.syspath_prepend(str(directory))
        config = json.loads((directory / "config.json").read_text()) | {"tokenizer": "evil:tokenize"}
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match=r"a custom tokenizer, .*: --tokenizer evil:tokenize, or tokenizer="):
            Classifier.from_pretrained(directory)

    @pytest.mark.parametrize(
        ("returns", "message"),
        [
            (None, "expected a list of words, got NoneType"),
            ("A B", "expected a list of words, got str"),
            ({"A": 1}, "expected a list of words, got dict"),
            (["A", ""], "expected words as nonempty strings, got an empty string"),
            (["A", 5], "expected words as nonempty strings, got int"),
            ([["A"]], "expected words as nonempty strings, got list"),
            (iter(["A", Path("B")]), f"expected words as nonempty strings, got {type(Path()).__name__}"),
        ],
    )
    def test_bad_return_values(self, model, returns, message):
        def odd(text):
            return returns

        own = Classifier(model.net, model.vocabulary, model.labels, odd)
        name = f"{__name__}:TestCustomTokenizer.test_bad_return_values.<locals>.odd"
        sentence = "a sentence " * 9
        with pytest.raises(DataError) as caught:
            own.predict((sentence, "b"))
        assert str(caught.value) == f"tokenizer {name}: {message} for {sentence[:40]!r}"

    @pytest.mark.parametrize("kind", [list, tuple, iter])
    def test_good_return_values(self, model, kind):
        own = Classifier(model.net, model.vocabulary, model.labels, lambda text: kind(text.split(" ")))
        assert own.split("a dog\n rests") == ["a", "dog\n", "rests"]
        assert own.encode("a dog\n rests") == [2, 0, 5]  # a line break only makes the word unknown
        assert own.explain("a man", "a dog").hypothesis == ["a", "dog"]

    def test_a_tokenizer_that_raises(self, model):
        own = Classifier(model.net, model.vocabulary, model.labels, lambda text: (1 / 0 for _ in text))
        with pytest.raises(DataError, match=r"<lambda>: ZeroDivisionError: division by zero$"):
            own.encode("a")

    def test_another_tokenizer_than_in_training(self, directory):
        with pytest.raises(DataError, match=r"was trained with the tokenizer .*:shout, not nltk$"):
            Classifier.from_pretrained(directory, tokenizer="nltk")


def regression_model():
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", "a", "man", "person", "rests", "sleeps", ".", "dogs"]
    return Classifier(esim_fast.ESIM(6, 5, len(words), 1).eval(), Vocabulary(words), ["score"])


def test_regression(tmp_path):
    model = regression_model()
    assert model.task == "regression"
    scores = model.predict(PAIRS)
    pairs = EncodedPairs(*([model.encode(pair[side]) for pair in PAIRS] for side in (0, 1)), None)
    assert torch.equal(scores, model.logits(pairs)[:, 0])
    assert model.predict(PAIRS[0]) == pytest.approx(scores[0].item(), abs=1e-6)
    explanation = model.explain(*PAIRS[0])
    assert (explanation.label, explanation.probabilities) == (f"score {model.predict(PAIRS[0]):.4g}", {})
    explanation.save(tmp_path / "map.html")
    model.save_pretrained(tmp_path)
    assert torch.equal(Classifier.from_pretrained(tmp_path, device="cpu").predict(PAIRS), scores)


@pytest.mark.parametrize(("labels", "positive"), [(["0", "1"], 1), (["entailment", "no"], 0), (["a", "b"], 1)])
def test_threshold_and_temperature(tmp_path, labels, positive):
    torch.manual_seed(0)
    words = ["<unk>", "<pad>", "a", "man", "person", "rests", "sleeps", ".", "dogs"]
    net = esim_fast.ESIM(6, 5, len(words), 2).eval()
    model = Classifier(net, Vocabulary(words), labels)
    assert model.positive == positive
    logits = model.logits(EncodedPairs([[2], [3]], [[4], []], None))
    model.temperature = 0.01
    expected = (logits.double() / 0.01).softmax(1).float()
    torch.testing.assert_close(model.probabilities(logits), expected)
    middle = 0.5 * sum(model.predict(PAIRS).probabilities[:2, positive].tolist())
    model.threshold = middle
    given, probabilities = model.predict(PAIRS)
    assert given == [labels[positive if row[positive] >= middle else 1 - positive] for row in probabilities]
    assert len(set(given)) == 2
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path, device="cpu")
    assert (again.temperature, again.threshold) == (0.01, middle)
    assert again.predict(PAIRS).labels == given
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value, message in [
        ("temperature", 0, "temperature must be positive, got 0"),
        ("temperature", "1", "temperature must be a number, got '1'"),
        ("threshold", 1.5, "threshold must lie between 0 and 1, got 1.5"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(DataError, match=f"config.json: {message}$"):
            Classifier.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"^threshold needs a model with two labels, this one has 3$"):
        Classifier(esim_fast.ESIM(6, 5, len(words), 3), Vocabulary(words), ["a", "b", "c"], threshold=0.5)

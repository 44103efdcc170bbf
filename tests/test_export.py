"""Exported models give the network's results in ONNX Runtime, and failed exports leave files unchanged."""

import builtins
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nltk
import numpy as np
import pytest
import torch

from esim_fast import ESIM, Classifier
from esim_fast.compat import coetaur0
from esim_fast.data import EncodedPairs, Vocabulary
from esim_fast.errors import DataError
from esim_fast.export import to_onnx
from esim_fast.tokenizing import TOKENIZERS
from tests.pages import ROOT, code_of

pytest.importorskip("onnx", reason='needs onnx: pip install "esim_fast[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "esim_fast[onnx]"')

DOCS = (ROOT / "docs/export.md").read_text(encoding="utf-8")
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "esim_fast", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
"""
WORDS = ["<unk>", "<pad>", "a", "man", "is", "sleeping", "awake", "dog", "runs", "it", "moves", "."]
PAIRS = [
    ("A man is sleeping.", "A man is awake."),
    ("A dog runs.", "It moves."),
    ("Nobody knows <pad> or <unk> .", ""),
    ("", ""),
    ("man", "man"),
]
CONFIGS = {
    "paper": {},
    "notebook": {"variant": "notebook"},
    "no padding id": {"padding_idx": None, "projection_activation": "tanh", "classifier_activation": None},
    "another padding id": {"padding_idx": 3, "projection_activation": "relu", "classifier_activation": "tanh"},
    "regression": {"num_labels": 1, "variational_dropout": True, "classifier_activation": "relu"},
}


def network(seed=0, **options):
    """A network with weights as large as trained ones; new weights are so small that biases would decide."""
    torch.manual_seed(seed)
    options = {"hidden_size": 7, "embedding_dim": 5, "vocab_size": 30, "num_labels": 3, **options}
    net = ESIM(**options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net


def classifier(labels=("entailment", "neutral", "contradiction"), **options):
    """A classifier that gives PAIRS different labels."""
    net = network(vocab_size=len(WORDS), num_labels=len(labels))
    model = Classifier(net, Vocabulary(WORDS), labels, **options)
    sides = ([Vocabulary(WORDS).encode(pair[side].lower().split()) for pair in PAIRS] for side in (0, 1))
    net.linear.mlp[3].bias.data -= model.logits(EncodedPairs(*sides, None)).mean(0)
    return model


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def inputs(p, h, p_lengths, h_lengths):
    values = {"premise": p, "hypothesis": h, "premise_lengths": p_lengths, "hypothesis_lengths": h_lengths}
    return {name: np.asarray(value) for name, value in values.items()}


def random_batch(generator, config, pairs, longest):
    """Random ids, none of them padding, and lengths from 0 to ``longest``."""
    known = [index for index in range(config.vocab_size) if index != config.padding_idx]
    ids = [generator.choice(known, (pairs, longest)) for _ in "ph"]
    return [*ids, *(generator.integers(longest + 1, size=pairs) for _ in "ph")]


@torch.no_grad()
def exact_logits(net, batch):
    return net.double()(*map(torch.from_numpy, batch)).numpy()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("name", CONFIGS)
def test_random_batches(name, path):
    net, generator = network(**CONFIGS[name]), np.random.default_rng(1)
    to_onnx(net, path)
    run, largest = session(path), 0.0
    for number in range(100):
        batch = random_batch(generator, net.config, pairs=1 if number % 4 == 0 else 6, longest=number % 13)
        (logits,) = run.run(None, inputs(*batch))
        np.testing.assert_allclose(logits, exact_logits(net, batch), atol=1e-5, rtol=1e-5)
        largest = max(largest, np.abs(logits).max())
    assert largest > 1  # so that 1e-5 is a strict bound


def test_long_sentences_and_nothing(path):
    net, generator = network(), np.random.default_rng(2)
    to_onnx(net, path)
    for pairs, longest in ((2, 2000), (1, 1), (3, 0), (0, 4), (0, 0)):
        batch = random_batch(generator, net.config, pairs, longest)
        batch[2][:1] = longest
        (logits,) = session(path).run(None, inputs(*batch))
        assert logits.shape == (pairs, 3)
        np.testing.assert_allclose(logits, exact_logits(net, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_other_dtypes_and_training(dtype, path):
    """They are exported as float32, and the network does not change."""
    net = network(dropout=0.9).to(dtype).train()
    before, state = {name: entry.clone() for name, entry in net.state_dict().items()}, torch.get_rng_state()
    file = to_onnx(net, path)
    assert (net.training, net.linear.mlp[1].weight.dtype) == (True, dtype)
    assert all(torch.equal(entry, before[name]) for name, entry in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert (file.path, file.size) == (path, path.stat().st_size)
    assert file.difference < 1e-5
    assert json.loads(file.description.read_text()) == {"model": "ESIM", "inputs": "ids", "padding_id": 1}
    batch = random_batch(np.random.default_rng(3), net.config, 4, 9)
    (logits,) = session(path).run(None, inputs(*batch))
    np.testing.assert_allclose(logits, exact_logits(net.eval(), batch), atol=1e-5, rtol=1e-5)


def test_int8(path):
    net = network(hidden_size=64, embedding_dim=64, variant="notebook")
    exact, small = to_onnx(net, path), to_onnx(net, path.with_name("small.onnx"), int8=True)
    assert small.size < exact.size / 3
    batch = random_batch(np.random.default_rng(4), net.config, 50, 20)
    (logits,), expected = session(small.path).run(None, inputs(*batch)), exact_logits(net, batch)
    assert 0 < np.linalg.norm(logits - expected) < 0.1 * np.linalg.norm(expected)
    for pairs, longest in ((1, 0), (0, 3)):
        batch = random_batch(np.random.default_rng(5), net.config, pairs, longest)
        assert session(small.path).run(None, inputs(*batch))[0].shape == (pairs, 3)


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (("entailment", "neutral", "contradiction"), {"temperature": 2.5}),
        (("0", "1"), {"threshold": 0.49}),
        (("entailment", "other"), {"threshold": 0.51, "temperature": 0.5}),
        (("score",), {}),
    ],
)
@pytest.mark.parametrize("words", [False, True])
def test_a_classifier(labels, options, words, path):
    model = classifier(labels, tokenizer="whitespace", **options)
    file = to_onnx(model, path, words=words)
    about = json.loads(file.description.read_text())
    assert about["labels"] == list(labels)
    split = [[model.split(pair[side]) for pair in PAIRS] for side in (0, 1)]
    lengths = [np.array([len(row) for row in rows]) for rows in split]
    padded = [[row + ["."] * (max(map(len, rows)) - len(row)) for row in rows] for rows in split]
    given = padded if words else [[[about["vocabulary"].get(word, 0) for word in row] for row in x] for x in padded]
    run = session(path)
    found = dict(
        zip([output.name for output in run.get_outputs()], run.run(None, inputs(*given, *lengths)), strict=True)
    )
    expected = model.predict(PAIRS)
    if labels == ("score",):
        assert found.keys() == {"logits"}
        np.testing.assert_allclose(found["logits"][:, 0], expected, atol=1e-5)
    else:
        np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)
        assert [labels[index] for index in found["label"]] == expected.labels
        assert len({*expected.labels}) > 1


class TestMistakes:
    """Nothing is written, and existing files do not change."""

    @pytest.fixture
    def path(self, path):
        to_onnx(classifier(), path)
        before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
        assert before.keys() == {"model.onnx", "model.onnx.json"}
        yield path
        assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before

    def test_results_that_differ_from_the_networks(self, path):
        model = classifier()
        model.net.linear.register_forward_hook(lambda net, v, logits: logits + 1e-3)
        with pytest.raises(
            ValueError, match=r"model\.onnx: its logits differ from the network's by 1\.0e-03: hooks and"
        ):
            to_onnx(model, path)
        model.net.linear.register_forward_hook(lambda net, v, logits: logits * 2)
        with pytest.raises(ValueError, match=r"in int8 its logits differ from the network's by .*, more than a tenth"):
            to_onnx(model, path, int8=True)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, path, value):
        net = network()
        net.linear.mlp[1].bias.data[2] = value
        message = r"model\.onnx: linear\.mlp\.1\.bias must hold finite"
        with pytest.raises(ValueError, match=message):
            to_onnx(net, path)

    def test_names_and_kinds(self, path):
        with pytest.raises(ValueError, match=r"^model\.pb: expected a name that ends in \.onnx$"):
            to_onnx(classifier(), "model.pb")
        other = coetaur0.ESIM(20, 5, 6)
        with pytest.raises(TypeError, match=r"or an esim_fast\.ESIM, got <class 'esim_fast\.compat\."):
            to_onnx(other, path)
        with pytest.raises(ValueError, match=r"^words need a vocabulary: pass the Classifier"):
            to_onnx(network(), path, words=True)
        own = classifier(tokenizer=str.split)
        with pytest.raises(ValueError, match=r"^tokenizer builtins:str\.split: a custom function cannot be exported"):
            to_onnx(own, path)

    def test_too_large(self, path):
        with torch.device("meta"):
            net = ESIM(300, 300, 2_200_000, 3)
        with pytest.raises(ValueError, match=r"model\.onnx: the weights take 2\.7 GB, and an ONNX file holds"):
            to_onnx(net, path)

    @pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
    def test_a_missing_package(self, path, package):
        message = rf'model\.onnx: needs {package}: pip install "esim_fast\[onnx\]"$'
        with mock.patch.dict(sys.modules, {package: None}), pytest.raises(ImportError, match=message):
            to_onnx(classifier(), path)

    def test_a_full_disk(self, path):
        """The second file does not fit."""
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            mock.patch.object(Path, "write_bytes", side_effect=full),
            pytest.raises(OSError, match="No space") as caught,
        ):
            to_onnx(classifier(temperature=3), path)
        assert caught.value.filename == str(path)


def test_a_path_that_is_not_a_file(tmp_path):
    (tmp_path / "model.onnx.json").mkdir()
    with pytest.raises(DataError, match=r"model\.onnx\.json: expected a file, got something else"):
        to_onnx(classifier(), tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx.json"]


def test_an_interruption_between_the_two_files(path):
    """It leaves no model beside another model's vocabulary."""
    to_onnx(classifier(), path)
    replace, calls = os.replace, []

    def stop(*names):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*names)

    with mock.patch("os.replace", stop), pytest.raises(KeyboardInterrupt):
        to_onnx(classifier(temperature=3), path)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx.json"]


class TestDocs:
    def test_the_script_needs_no_torch(self, tmp_path):
        to_onnx(classifier(), tmp_path / "model.onnx")
        script = code_of("docs/export.md", "python")[0]
        assert len([line for line in script.splitlines() if line]) <= 15
        run = subprocess.run([sys.executable, "-c", BLOCK + script], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        labels, _, probabilities = run.stdout.partition("] ")
        expected = classifier().predict(PAIRS[:2])
        assert json.loads(labels.replace("'", '"') + "]") == expected.labels
        np.testing.assert_allclose(json.loads(probabilities), expected.probabilities, atol=1e-5)

    @pytest.mark.parametrize("text", ["A man's dog can't cannot run, e.g. at 3.5.  (He said.)", " ", "狗 Runs 42次"])
    def test_the_table_of_tokenizers(self, text):
        rows = dict(re.findall(r"^\| `([\w-]+)` \| `(.*)` \|$", DOCS, re.M))
        assert rows.keys() == TOKENIZERS.keys()
        names = {"re": re, "nltk": nltk, "NLTKWordTokenizer": nltk.tokenize.NLTKWordTokenizer, "text": text}
        for name, code in rows.items():
            if name != "nltk-punkt" or has_punkt():
                assert eval(code.replace("\\|", "|"), vars(builtins) | names) == list(TOKENIZERS[name](text)), name


def has_punkt():
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True

"""``esim-fast convert`` turns checkpoints of other ESIMs into models."""

import json
import pickle
import tarfile

import numpy as np
import pytest
import torch

from esim_fast import Classifier
from tests.cli.commands import esim_fast, fails, succeeds
from tests.sources import AllenNLP, Coetaur0, Notebook


@pytest.fixture
def state(tmp_path):
    torch.manual_seed(0)
    net = Coetaur0(12, 4, 6)
    torch.save({"epoch": 1, "model": net.state_dict()}, tmp_path / "best.pth.tar")
    words = {word: i for i, word in enumerate(["_PAD_", "_OOV_", "_BOS_", "_EOS_", *"ABCDEFGH"])}
    (tmp_path / "worddict.json").write_text(json.dumps(words))
    return tmp_path


def test_a_checkpoint(state):
    options = "--vocabulary", state / "worddict.json", "--labels", "yes, maybe,no"
    result = esim_fast("convert", state / "best.pth.tar", state / "model", *options)
    assert result.returncode == 0
    assert result.stderr == (
        f"{state / 'model'}: 12 words of 4 numbers, hidden size 6, 3 labels, tokenizer coetaur0, "
        "parameter names from coetaur0/ESIM\n"
    )
    answer = json.loads(succeeds("predict", state / "model", "--premise", "A C", "--hypothesis", "H"))
    assert set(answer["probabilities"]) == {"yes", "maybe", "no"}


def test_a_checkpoint_alone(state):
    result = esim_fast("convert", state / "best.pth.tar", state / "model")
    assert "without --vocabulary, write sentences as word ids separated by spaces" in result.stderr
    answer = json.loads(succeeds("predict", state / "model", "--premise", "7 3 5", "--hypothesis", "11"))
    assert set(answer["probabilities"]) == {"0", "1", "2"}


@pytest.fixture
def run(tmp_path):
    """The files of an AllenNLP training run."""
    torch.manual_seed(0)
    (tmp_path / "run" / "vocabulary").mkdir(parents=True)
    torch.save({**AllenNLP(5, 4, 6).state_dict(), "_loss.weight": torch.ones(3)}, tmp_path / "run" / "weights.th")
    (tmp_path / "run" / "vocabulary" / "tokens.txt").write_text("@@UNKNOWN@@\na\nb\nc\n")
    (tmp_path / "run" / "vocabulary" / "labels.txt").write_text("entailment\nneutral\ncontradiction\n")
    (tmp_path / "run" / "config.json").write_text("{}")
    return tmp_path / "run"


def test_a_folder_of_allennlps(run, tmp_path):
    succeeds("convert", run, tmp_path / "model")
    found = Classifier.from_pretrained(tmp_path / "model")
    assert found.labels == ["entailment", "neutral", "contradiction"]
    assert found.vocabulary.words == ["<unk>", "<pad>", "a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "packing", "inside", "form"),
    [
        ("model.tar.gz", "gz", "", tarfile.GNU_FORMAT),
        ("model.tgz", "gz", "./", tarfile.USTAR_FORMAT),
        ("archive", "gz", "run/", tarfile.PAX_FORMAT),
        ("model.tar", "", "./run/", tarfile.PAX_FORMAT),
    ],
)
def test_an_archive_of_allennlps(run, tmp_path, name, packing, inside, form):
    with tarfile.open(tmp_path / name, f"w:{packing}", format=form) as archive:
        for part in ("config.json", "weights.th", "vocabulary"):
            archive.add(run / part, f"{inside}{part}")
    result = esim_fast("convert", tmp_path / name, tmp_path / "model")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(f"{tmp_path / name}: skipped entries that are not part of the network: _loss.wei")
    succeeds("convert", run, tmp_path / "expected")
    for part in (tmp_path / "expected").iterdir():
        assert (tmp_path / "model" / part.name).read_bytes() == part.read_bytes()


def test_archives_without_a_model(run, tmp_path):
    for left_out, message in (
        ("weights.th", ": expected a file or an AllenNLP folder; this one has neither best.th nor weights.th"),
        ("vocabulary/tokens.txt", "/vocabulary/tokens.txt: No such file or directory"),
        ("vocabulary/labels.txt", "/vocabulary/labels.txt: No such file or directory"),
    ):
        (run / left_out).rename(tmp_path / "aside")
        with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
            archive.add(run, "")
        (tmp_path / "aside").rename(run / left_out)
        assert f"{tmp_path / 'model.tar.gz'}{message}" in fails(
            "convert", tmp_path / "model.tar.gz", tmp_path / "model"
        )
    (tmp_path / "words.txt").write_text("a\nb\n")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(run, "")
    message = fails("convert", tmp_path / "model.tar.gz", tmp_path / "model", "--vocabulary", tmp_path / "words.txt")
    assert f"{tmp_path / 'model.tar.gz'}/weights.th with {tmp_path / 'words.txt'}: the network has 5 word" in message
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_from_lightning(state):
    """A Lightning checkpoint with averaged weights, a loss and NumPy numbers beside the network."""
    net = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(Coetaur0(12, 4, 6)))
    entries = {**{f"esim.{name}": entry for name, entry in net.state_dict().items()}, "criterion.weight": torch.ones(3)}
    content = {"epoch": 3, "best_score": np.float64(0.5), "callbacks": {}, "model_state": entries}
    torch.save({**content, "ema": {**entries}}, state / "last.ckpt")
    result = esim_fast("convert", state / "last.ckpt", state / "model", "--vocabulary", state / "worddict.json")
    assert result.stderr.splitlines()[:2] == [
        f"{state / 'last.ckpt'}: holds several state dicts: using the entry model_state, skipping the entry ema",
        f"{state / 'last.ckpt'}: skipped entries that are not part of the network: esim.n_averaged, criterion.weight",
    ]
    found = Classifier.from_pretrained(state / "model").net
    assert torch.equal(found.linear.mlp[3].bias, net.module.module._classification[4].bias)


def test_a_pickled_dictionary_of_words(state):
    (state / "worddict.pkl").write_bytes(pickle.dumps({"_PAD_": 0}))
    message = fails("convert", state / "best.pth.tar", state / "model", "--vocabulary", state / "worddict.pkl")
    assert f'pickle.load(open("{state / "worddict.pkl"}", "rb"))' in message
    assert f"pass {state / 'worddict.json'} instead" in message


def test_checkpoints_of_the_notebook(tmp_path):
    torch.save(Notebook(6, 4, 5, 3).state_dict(), tmp_path / "net.pt")
    assert "LSTMs ran across the batch" in esim_fast("convert", tmp_path / "net.pt", tmp_path / "model").stderr
    own = tmp_path / "own"
    assert "already holds a model; choose another" in fails("convert", tmp_path / "net.pt", tmp_path / "model")
    result = esim_fast("convert", tmp_path / "net.pt", own, "--from", "esim_fast")
    assert "across the batch" not in result.stderr
    assert "expected a file or an AllenNLP folder; this one is a model already" in fails("convert", own, "x")
    assert Classifier.from_pretrained(own).net.config.classifier_activation == "tanh"


def test_mistakes(state):
    model, source, words = state / "model", state / "best.pth.tar", state / "words.txt"
    words.write_text("a\nb\n")
    torch.save(Coetaur0(12, 4, 6), state / "whole.pt")
    for path, options, message in (
        (state / "nowhere", [], "nowhere: No such file"),
        (state, [], "this one has neither best.th nor weights.th"),
        (state / "whole.pt", [], "whole.pt: holds Python objects"),
        (source, ["--labels", "yes,no"], f"{source}: labels must name the network's 3 outputs, got 2"),
        (source, ["--labels", "a,,b"], "expected distinct labels separated by commas, got 'a,,b'"),
        (
            source,
            ["--vocabulary", words],
            f"{source} with {words}: the network has 12 word vectors, but the vocabulary has 2",
        ),
    ):
        assert message in fails("convert", path, model, *options)
    assert not model.exists()

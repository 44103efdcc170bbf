"""``esim-fast convert``: checkpoints of other ESIMs become models."""

import json

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
        "from the names of coetaur0/ESIM\n"
    )
    answer = json.loads(succeeds("predict", state / "model", "--premise", "A C", "--hypothesis", "H"))
    assert set(answer["probabilities"]) == {"yes", "maybe", "no"}


def test_nothing_but_a_checkpoint(state):
    result = esim_fast("convert", state / "best.pth.tar", state / "model")
    assert "without --vocabulary, sentences are word ids with blanks between them" in result.stderr
    answer = json.loads(succeeds("predict", state / "model", "--premise", "7 3 5", "--hypothesis", "11"))
    assert set(answer["probabilities"]) == {"0", "1", "2"}


def test_a_folder_of_allennlps(tmp_path):
    (tmp_path / "run" / "vocabulary").mkdir(parents=True)
    torch.save(AllenNLP(5, 4, 6).state_dict(), tmp_path / "run" / "weights.th")
    (tmp_path / "run" / "vocabulary" / "tokens.txt").write_text("@@UNKNOWN@@\na\nb\nc\n")
    (tmp_path / "run" / "vocabulary" / "labels.txt").write_text("entailment\nneutral\ncontradiction\n")
    succeeds("convert", tmp_path / "run", tmp_path / "model")
    found = Classifier.from_pretrained(tmp_path / "model")
    assert found.labels == ["entailment", "neutral", "contradiction"]
    assert found.vocabulary.words == ["<unk>", "<pad>", "a", "b", "c"]


def test_the_notebooks_are_told_what_they_have(tmp_path):
    torch.save(Notebook(6, 4, 5, 3).state_dict(), tmp_path / "net.pt")
    assert "Its LSTMs ran across the batch" in esim_fast("convert", tmp_path / "net.pt", tmp_path / "model").stderr
    own = tmp_path / "own"
    assert "already holds a model: choose another" in fails("convert", tmp_path / "net.pt", tmp_path / "model")
    result = esim_fast("convert", tmp_path / "net.pt", own, "--from", "esim_fast")
    assert "across the batch" not in result.stderr
    assert "expected a file, or a folder of AllenNLP's; this one is a model already" in fails("convert", own, "x")
    assert Classifier.from_pretrained(own).net.config.classifier_activation == "tanh"


def test_mistakes(state):
    model, source, words = state / "model", state / "best.pth.tar", state / "words.txt"
    words.write_text("a\nb\n")
    torch.save(Coetaur0(12, 4, 6), state / "whole.pt")
    for path, options, message in (
        (state / "nowhere", [], "nowhere: No such file"),
        (state, [], "this one has neither best.th nor weights.th"),
        (state / "whole.pt", [], "whole.pt: holds objects of Python"),
        (source, ["--labels", "yes,no"], f"{source}: the network has 3 labels, got 2"),
        (source, ["--labels", "a,,b"], "expected distinct labels with commas between, got 'a,,b'"),
        (source, ["--vocabulary", words], f"{source} with {words}: the network has 12 word vectors, the vocabulary 2"),
    ):
        assert message in fails("convert", path, model, *options)
    assert not model.exists()

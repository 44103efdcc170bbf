"""The code of docs/attribution.md and docs/compile.md runs as it is written."""

from functools import partial

import pytest
import torch

import esim_fast
from esim_fast.data import Vocabulary
from tests.pages import code_of


def run(page, names):
    for block in code_of(f"docs/{page}", "python"):
        exec(compile(block, page, "exec"), names)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a model in it whose logits differ from pair to pair."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vocabulary = Vocabulary(["<unk>", "<pad>", *["a", ".", "man", "is", "sleeping", "on", "bench", "awake"]])
    net = esim_fast.ESIM(16, 12, len(vocabulary), 3)
    with torch.no_grad():
        net.linear.mlp[3].weight.mul_(50)
    esim_fast.Classifier(net, vocabulary, ["entailment", "neutral", "contradiction"]).save_pretrained("model")


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore:Setting forward")  # Captum says what it does
def test_attribution(capsys):
    pytest.importorskip("captum")
    names = {}
    run("attribution.md", names)
    printed = capsys.readouterr().out.splitlines()
    words = "a man is sleeping on a bench . a man is awake ."
    assert [line.split()[1] for line in printed[1:]] == words.split()
    net, label, vectors = names["model"].net.eval(), names["label"], names["vectors"]
    lengths = [torch.tensor([8]), torch.tensor([5])]
    at_zero = net(None, None, *lengths, embedded=[torch.zeros_like(x) for x in vectors])
    difference = (net(None, None, *lengths, embedded=vectors) - at_zero)[0, label].item()
    assert abs(difference) > 0.05
    assert float(sum(x.sum() for x in names["attributions"])) == pytest.approx(difference, abs=1e-3)
    # The same by the layer, whose baseline is the vector of padding: zeros.
    torch.testing.assert_close(names["both"], torch.cat(names["attributions"], 1), rtol=1e-3, atol=1e-4)
    assert names["scores"].shape == (2, 3)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_attribution_to_the_layer():
    """Of several pairs with padding at either end, by a method that goes by pairs and one that goes by layers."""
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = esim_fast.ESIM(8, 12, 50, 3).eval()
    ids = torch.tensor([[5, 6, 7], [1, 9, 1]]), torch.tensor([[5, 6], [9, 1]])
    baselines = tuple(torch.ones_like(side) for side in ids)
    by_layer = attr.LayerIntegratedGradients(net, net.embedding).attribute(ids, baselines, target=0, n_steps=8)
    vectors = tuple(net.embedding(side).detach() for side in ids)
    forward = attr.IntegratedGradients(lambda x_p, x_h, p, h: net(p, h, embedded=(x_p, x_h)))
    by_vectors = forward.attribute(vectors, target=0, n_steps=8, additional_forward_args=ids)
    torch.testing.assert_close(by_layer, torch.cat(by_vectors, 1).to(by_layer), rtol=1e-4, atol=1e-6)
    assert by_layer[1, 1].any()
    assert not by_layer[1, [0, 2, 4]].any()
    assert not net.embedding._forward_hooks


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.ao.quantization
def test_compile(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # a minute less
    names = {}
    run("compile.md", names)
    assert all(parameter.grad is not None for parameter in names["net"].parameters())
    assert names["logits"].shape == (8, 3)

"""What the benchmarks rest on, without timing: the peers are the same model, lengths are the corpora's, reports are
written."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from baselines import Coetaur0ESIM, NotebookESIM
from corpus import PADDING, VOCABULARY, draw_lengths, draw_words, make_batches
from equality import TOLERANCE, difference
from torch.nn.functional import cross_entropy

from benchmarks import accuracy, report
from esim_fast import ESIM

SIZES = 8, 12, 50, 3  # hidden, embedding, words, labels
RAGGED = ([5, 9, 1, 7], [4, 2, 6, 3])
FULL = ([9] * 4, [6] * 4)
COMPARISON = {
    "title": "training, SNLI at batch 32: training step",
    "values": {"eager, as in the notebook": 0.4, "esim_fast, packed batches": 0.2},
    "rounds": 5,
    "notes": ["a note"],
    "unit": "s",
    "group": "training",
    "parameters": {"batch": 32, "lengths": "SNLI", "precision": "fp32", "pass": "training step"},
}


def results(net, lengths, *, with_lengths=False):
    """Logits and all gradients for random sentences of these lengths."""
    generator = torch.Generator().manual_seed(0)
    p, h = (torch.randint(2, SIZES[2], (len(n), max(n)), generator=generator) for n in lengths)
    p_lengths, h_lengths = (torch.tensor(n) for n in lengths)
    p, h = (
        ids.masked_fill(torch.arange(ids.shape[1]) >= n[:, None], PADDING)
        for ids, n in ((p, p_lengths), (h, h_lengths))
    )
    logits = net(p, h, p_lengths, h_lengths) if with_lengths else net(p, h)
    named = dict(net.named_parameters())
    gradients = torch.autograd.grad(cross_entropy(logits, torch.tensor([0, 1, 2, 0])), named.values())
    return {"logits": logits, **dict(zip(named, gradients, strict=True))}


@pytest.mark.parametrize(
    ("peer", "variant", "lengths"),
    [
        (NotebookESIM(*SIZES, dropout=0.0), "notebook", RAGGED),
        (NotebookESIM(*SIZES, dropout=0.0, packed=False), "notebook", FULL),
        (Coetaur0ESIM(*SIZES, dropout=0.0), "paper", RAGGED),
        (Coetaur0ESIM(*SIZES, dropout=0.0, variant="notebook"), "notebook", RAGGED),
    ],
    ids=["notebook", "notebook, padded", "coetaur0", "coetaur0 as the notebook"],
)
def test_peers_are_the_same_model(peer, variant, lengths):
    torch.manual_seed(0)
    ours = ESIM(*SIZES, variant=variant, dropout=0.0).double()
    peer.double().load_state_dict(ours.state_dict())
    exact = results(ours, lengths, with_lengths=True)
    got = results(peer, lengths, with_lengths=isinstance(peer, Coetaur0ESIM))
    assert difference(got, exact, 1e-10) is None


def test_a_padded_recurrence_is_another_model_where_there_is_padding():
    torch.manual_seed(0)
    packed, padded = NotebookESIM(*SIZES, dropout=0.0), NotebookESIM(*SIZES, dropout=0.0, packed=False)
    padded.load_state_dict(packed.state_dict())
    assert difference(results(padded, RAGGED), results(packed, RAGGED), 100 * TOLERANCE["fp32"])


@pytest.mark.parametrize(("kind", "premise", "hypothesis"), [("SNLI", 14.0, 8.2), ("MultiNLI", 21.7, 11.2)])
def test_lengths_are_the_corpus_s(kind, premise, hypothesis):
    means = draw_lengths(kind, 100_000, np.random.default_rng(0)).mean(0)
    np.testing.assert_allclose(means, [premise, hypothesis], rtol=0.04)


def test_words_are_frequent_and_rare_ones():
    words = draw_words(100_000, np.random.default_rng(0))
    assert words.min() == 2
    assert words.max() > 0.9 * VOCABULARY
    assert words.max() < VOCABULARY
    assert (words < 12).mean() > 0.1


def test_batches_are_bucketed_and_filled_up():
    for batch in make_batches("SNLI", 16, 2):
        assert batch.tokens == int(batch.p_lengths.sum() + batch.h_lengths.sum())
        assert torch.equal((batch.p != PADDING).sum(1), batch.p_lengths)
        assert int(batch.p_lengths.max() - batch.p_lengths.min()) <= 12
        filled = batch.filled()
        assert filled.p.shape == batch.p.shape
        assert not (filled.p == PADDING).any()
        assert torch.equal(filled.p[batch.p != PADDING], batch.p[batch.p != PADDING])


@pytest.fixture
def measured(tmp_path):
    larger = {**COMPARISON, "parameters": {**COMPARISON["parameters"], "batch": 128}}
    file = tmp_path / "measured.json"
    source = {"environment": "a processor; torch", "hardware": "a processor", "date": "2026-01-31"}
    file.write_text(json.dumps({**source, "measured": [COMPARISON, larger]}))
    return file


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib draws the report's plots")
def test_report(measured, tmp_path, capsys):
    folder = tmp_path / "results"
    assert report.main([str(measured), "--output", str(folder)]) == 0
    assert capsys.readouterr().err == ""
    page = (folder / "report.md").read_text()
    assert "| esim_fast, packed batches | 200.000 | 2.00 x |" in page
    assert json.loads((folder / "results.json").read_text()) == json.loads(measured.read_text())
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"training-fp32.png", "training-fp32-training-step-against-batch.png"}
    assert all(f"]({name})" in page for name in pictures)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("{", "not JSON"), ('{"measured": []}', "not what pytest"), ("[1]", "not what pytest")],
)
def test_report_refuses(content, reason, tmp_path, capsys):
    file = tmp_path / "measured.json"
    if content is not None:
        file.write_text(content)
    assert report.main([str(file), "--output", str(tmp_path / "results")]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert reason in message
    assert not (tmp_path / "results").exists()


def test_accuracy_of_recipes(tmp_path):
    """The table is made of what runs have left behind, those that are done."""
    for name, mean in (("paper", 0.69), ("words", 0.705)):
        (tmp_path / name / "seed-4").mkdir(parents=True)
        dev = {"mean": mean, "standard_deviation": 0.003, "accuracies": [mean]}
        (tmp_path / name / "seeds.json").write_text(json.dumps({"dev": dev, "seeds": [4]}))
        (tmp_path / name / "seed-4" / "metrics.jsonl").write_text(json.dumps({"dev_accuracy": mean}) + "\n")
    found = {name: result for name in accuracy.RECIPES if (result := accuracy.result(name, tmp_path))}
    lines = accuracy.page(found).splitlines()
    assert len(lines) == 3
    assert [line.split()[:4] for line in lines[1:]] == [
        ["paper", "69.00", "±", "0.30"],
        ["words", "70.50", "±", "0.30"],
    ]
    assert lines[2].split()[5] == "+1.50"

"""The tools of the benchmarks, without a GPU: commands run, peers are the same model, figures are right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accuracy import page, result
from baselines import Coetaur0ESIM, NotebookESIM
from corpus import PADDING, draw_lengths, make_batches
from equality import difference
from floors import Floor, bilstm, local_inference, masked_pool
from targets import COMPILED, EAGER, LAYOUTS, STEP, targets
from torch.nn.functional import cross_entropy

from esim_fast import ESIM

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = {"lengths": "SNLI", "precision": "fp32", "pass": "training step"}
MEASURED = {"title": "a step", "values": {"x": 1.0, "y": 0.5}, "rounds": 1, "notes": [], "unit": "s"}
MEASURED = [{**MEASURED, "group": "training", "parameters": {**PARAMETERS, "batch": batch}} for batch in (32, 128)]
FIGURES = {"environment": "a GPU", "hardware": "a GPU", "date": "2026-01-31", "measured": MEASURED}
SIZES = 8, 12, 50, 3  # hidden, embedding, words, labels
RAGGED, FULL = ([5, 9, 1, 7], [4, 2, 6, 3]), ([9] * 4, [6] * 4)
# Parts in place of the real ones: what they write and how they end.
STAND_INS = """
import json, sys
from benchmarks import gpu

def part(name, code, least=0.0):
    return gpu.Part(name, ["-c", "import json, sys, time; " + code, gpu.JSON], least)

chosen = [part(*arguments) for arguments in json.loads(sys.argv[1])]
gpu.parts = lambda dry_run: chosen
gpu.PATIENCE, gpu.RESERVE = 2.0, 0.0
sys.exit(gpu.main(sys.argv[2:]))
"""


def python(*arguments):
    command, environment = [sys.executable, *map(str, arguments)], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_all_is_kept_when_a_part_fails_or_the_time_is_up(tmp_path):
    writing = f"open(sys.argv[1], 'w').write({json.dumps(json.dumps(FIGURES))})"
    parts = [("tests", "sys.exit('one failed')"), ("ops", f"{writing}; time.sleep(60)"), ("growth", "", 0.1)]
    done = python("-c", STAND_INS, json.dumps(parts), "--dry-run", "--minutes", "0.1", "--out", tmp_path)
    assert done.returncode == 1, done.stderr
    outcomes = [part["outcome"] for part in json.loads((tmp_path / "run.json").read_text())["parts"].values()]
    assert outcomes == ["failed: exit code 1", "interrupted: the time was up", "not begun: the time was up"]
    assert json.loads((tmp_path / "ops.json").read_text()) == FIGURES
    assert "no figure here means anything" in (tmp_path / "summary.md").read_text()
    assert "Correctness is not settled" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpu"], "there is no NVIDIA GPU here (--dry-run needs none)"),
        (["gpu", "--dry-run", "--parts", "opps"], "no part is called opps; there are tests, "),
        (["gpu", "--dry-run", "--minutes", "0"], "expected a positive number, got '0'"),
        (["sweep"], "there is no NVIDIA GPU here"),
        (["report", "/no/such/file"], "No such file"),
        (["report", __file__], "not JSON"),
    ],
)
def test_mistakes(arguments, message):
    command, *options = arguments
    done = python("-m", f"benchmarks.{command}", *options)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr


def test_targets():
    values = {EAGER: 6.0, COMPILED: 1.5, LAYOUTS[0]: 1.0, LAYOUTS[1]: 0.5}
    at_256 = {"batch": 256, "lengths": "SNLI", "precision": "bf16", "pass": "forward"}
    measured = [
        ("local_inference", values, at_256, None),
        ("masked_pool against a copy", {"esim_fast": 1.0}, {"batch": 1024, "precision": "fp32"}, 0.85),
        ("memory", {EAGER: 10.0, STEP: 5.0}, {"batch": 512, "lengths": "SNLI", "precision": "tf32"}, None),
    ]
    measured = [dict(zip(("group", "values", "parameters", "floor"), row, strict=True)) for row in measured]
    epochs = [{"batch_size": 512, "precision": "bf16", "seconds": 25.0, "pairs": 549_367}]
    found = {target.what: (target.measured, target.outcome) for target in targets(measured, epochs)}
    # The slower of the two layouts counts.
    assert found["local_inference, SNLI at batch 256, bf16, forward: eager"] == (6.0, "met")
    assert found["local_inference, SNLI at batch 256, bf16, forward: torch.compile"] == (1.5, "missed")
    assert {(0.85, "met"), (0.5, "met"), (25.0, "missed")} < set(found.values())
    assert {target.outcome for target in targets([], [])} == {"not measured"}


def test_floors():
    """Counted by hand for one pair of 3 and 2 words."""
    pair, lengths = np.array([[3, 2]]), np.array([3, 2])
    assert local_inference(pair, 4, 2) == Floor(3 * 2 * 3 * 2 * 4, (5 * 4 + 5 * 16) * 2)
    assert local_inference(pair, 4, 2, backward=True) == Floor(9 * 48, (5 * 4 + 5 * 16 + 5 * 4) * 2)
    # Five tokens, two sentences' averages and maxima, and where those were.
    assert masked_pool(lengths, 4, 2) == Floor(0, 5 * 4 * 2 + 2 * 8 * 2 + 2 * 4 * 4)
    x, state = 2 * 8 * 5 * 6, 2 * 8 * 2 * 3  # products of a direction: five words' inputs, three of their states
    floor = bilstm(lengths, 6, 2, 4, training=False)
    assert floor == Floor(2 * 2 * (x // 2 + state // 2), 4 * (5 * 6 + 5 * 4 + 2 * 8 * (6 + 2 + 2)))
    assert bilstm(lengths, 6, 2, 4).bytes - floor.bytes == 4 * 5 * 2 * 5 * 2
    assert Floor(100, 10).seconds(bandwidth=1.0, rate=100.0) == Floor(10, 1).seconds(bandwidth=10.0, rate=1.0) == 10.0


def results(net, lengths, *, with_lengths=False):
    """Logits and all gradients for random sentences of these lengths."""
    generator = torch.Generator().manual_seed(0)
    lengths = [torch.tensor(n) for n in lengths]
    ids = [torch.randint(2, SIZES[2], (len(n), max(n)), generator=generator) for n in lengths]
    p, h = (x.masked_fill(torch.arange(x.shape[1]) >= n[:, None], PADDING) for x, n in zip(ids, lengths, strict=True))
    logits = net(p, h, *lengths) if with_lengths else net(p, h)
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
)
def test_peers_are_the_same_model(peer, variant, lengths):
    torch.manual_seed(0)
    ours = ESIM(*SIZES, variant=variant, dropout=0.0).double()
    peer.double().load_state_dict(ours.state_dict())
    exact = results(ours, lengths, with_lengths=True)
    got = results(peer, lengths, with_lengths=isinstance(peer, Coetaur0ESIM))
    assert difference(got, exact, 1e-10) is None


def test_lengths_are_the_corpora_s_and_batches_are_filled_up():
    for kind, means in (("SNLI", [14.0, 8.2]), ("MultiNLI", [21.7, 11.2])):
        found = draw_lengths(kind, 100_000, np.random.default_rng(0)).mean(0)
        np.testing.assert_allclose(found, means, rtol=0.04)
    for batch in make_batches("SNLI", 16, 2):
        assert batch.tokens == int(batch.p_lengths.sum() + batch.h_lengths.sum())
        assert torch.equal((batch.p != PADDING).sum(1), batch.p_lengths)
        assert int(batch.p_lengths.max() - batch.p_lengths.min()) <= 12
        assert not (batch.filled().p == PADDING).any()


def test_report(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws the report's plots")
    (tmp_path / "measured.json").write_text(json.dumps(FIGURES))
    done = python("-m", "benchmarks.report", tmp_path / "measured.json", "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "report.md").read_text()
    assert "| y | 500.000 | 2.00 x |" in page
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"training-fp32.png", "training-fp32-training-step-against-batch.png"}
    assert all(f"]({name})" in page for name in pictures)


def test_accuracy_of_recipes(tmp_path):
    """The table is made of what runs have left behind, those that are done."""
    for name, mean in (("paper", 0.69), ("words", 0.705)):
        (tmp_path / name / "seed-4").mkdir(parents=True)
        dev = {"mean": mean, "standard_deviation": 0.003, "accuracies": [mean]}
        (tmp_path / name / "seeds.json").write_text(json.dumps({"dev": dev, "seeds": [4]}))
        (tmp_path / name / "seed-4" / "metrics.jsonl").write_text(json.dumps({"dev_accuracy": mean}) + "\n")
    lines = page({name: result(name, tmp_path) for name in ("paper", "words")}).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["69.00", "70.50"]
    assert lines[2].split()[5] == "+1.50"

"""The benchmarks themselves: what is compared is equal, who is wrong is not timed, and what was measured is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.baselines import PADDING, Coetaur0ESIM, NotebookESIM
from benchmarks.corpus import draw_lengths, make_batches
from benchmarks.models import assert_equal
from esim_fast import ESIM

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).resolve().parents[2]
SIZES = (5, 4, 20, 3)  # hidden, embedding, vocabulary, labels
RAGGED, FULL = ([3, 1, 6, 2], [2, 5, 1, 4]), ([4] * 4, [3] * 4)
RACE = """
import time, pytest
from benchmarks.conftest import Variant

def wrong():
    raise AssertionError("y is off by 0.5")

def broken():
    raise RuntimeError("no such device")

VARIANTS = {
    "first": Variant(lambda: time.sleep(0.002), lambda: None),
    "slow": Variant(lambda: time.sleep(0.004), lambda: None, moves=1000, saves=lambda: 5),
    "wrong": Variant(lambda: open("timed", "w"), wrong),
    "peer": Variant(broken, broken),
    "esim_fast": Variant(broken, broken),
    "absent": "needs a GPU",
}

@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pairs", [32])
def test_of_turns(variant, pairs, race):
    race(variant, lambda: VARIANTS)
"""


def python(*arguments, **options):
    command, environment = [sys.executable, "-m", *map(str, arguments)], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


@pytest.fixture
def race(tmp_path):
    """``pytest`` with the benchmarks' settings on a small benchmark."""
    (tmp_path / "test_race.py").write_text(RACE)
    options = ["-c", ROOT / "benchmarks/pytest.ini", "--rootdir", tmp_path, "-p", "benchmarks.conftest"]
    options += ["-p", "no:cacheprovider", "--benchmark-max-time=0.1"]
    return lambda *more: python("pytest", tmp_path / "test_race.py", *options, *more, cwd=tmp_path)


def test_a_race_and_its_report(race, tmp_path):
    done = race("--benchmark-json=run.json")
    assert done.returncode == 1
    assert "2 failed, 2 passed, 2 skipped" in done.stdout, done.stdout
    assert "y is off by 0.5" in done.stdout
    assert "does not run here: no such device" in done.stdout
    assert "needs a GPU" in done.stdout
    assert not (tmp_path / "timed").exists()
    run = json.loads((tmp_path / "run.json").read_text())
    first, slow = run["benchmarks"]
    assert slow["group"] == "of turns, 32 pairs"
    assert slow["extra_info"]["compared_with"] == "first"
    assert slow["extra_info"]["times_as_fast"] == first["stats"]["median"] / slow["stats"]["median"] < 1
    assert slow["extra_info"]["saved_bytes"] == 5
    assert run["machine_info"]["torch"] == torch.__version__
    pytest.importorskip("matplotlib", reason="matplotlib draws the report's figures")
    done = python("benchmarks.report", "run.json", "--output", "report", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "report\n"), done.stderr
    line = f"| slow | {1e3 * slow['stats']['median']:,.3f} | {slow['extra_info']['times_as_fast']:.2f} |"
    assert line in (tmp_path / "report/report.md").read_text()
    (copied,) = {len(benchmark["stats"].get("data", ())) for benchmark in json.loads((tmp_path / "report/results.json").read_text())["benchmarks"]}
    assert copied == 0


def test_options_of_pytest_benchmark(race, tmp_path):
    done = race("--benchmark-disable", "-k", "slow or wrong")
    assert "1 failed, 1 passed" in done.stdout
    done = race("--benchmark-timer=time.time")
    assert done.returncode == 4
    assert "--benchmark-timer=time.time: variants are timed in turns" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpu"], "there is no NVIDIA GPU here"),
        (["gpu", "--dry-run", "--parts", "opps"], "opps"),
        (["gpu", "--dry-run", "--minutes", "0"], "0"),
        (["sweep"], "there is no NVIDIA GPU here"),
        (["report", "/no/such/file"], "No such file"),
        (["report", __file__], "expected what pytest benchmarks/ --benchmark-json writes"),
    ],
)
def test_mistakes(arguments, message):
    done = python(f"benchmarks.{arguments[0]}", *arguments[1:], cwd=ROOT)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr


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
    assert_equal(results(peer, lengths, with_lengths=isinstance(peer, Coetaur0ESIM)), exact, 1e-10)


def test_lengths_are_the_corpora_s():
    for kind, means in (("SNLI", [14.0, 8.2]), ("MultiNLI", [21.7, 11.2])):
        np.testing.assert_allclose(draw_lengths(kind, 100_000, np.random.default_rng(0)).mean(0), means, rtol=0.04)
    for batch in make_batches("SNLI", 16, 2):
        assert torch.equal((batch.p != PADDING).sum(1), batch.p_lengths)
        assert not (batch.filled().p == PADDING).any()

"""The benchmarks: variants must agree before they are timed, and results are recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.baselines import PADDING, Coetaur0ESIM
from benchmarks.corpus import draw_lengths, make_batches
from esim_fast import ESIM

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2].resolve()
RACE = """
import time, pytest
from benchmarks.measure import Variant

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


def python(*arguments, cwd=ROOT, **variables):
    inherited = {name: os.environ[name] for name in os.environ if not name.startswith("PYTEST_")}  # not xdist's workers
    environment = {**inherited, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def race(tmp_path):
    """Runs ``pytest`` with the benchmarks' settings on a small benchmark."""
    (tmp_path / "test_race.py").write_text(RACE)
    options = ["--rootdir=.", "-p", "benchmarks.conftest", "-p", "no:cacheprovider", "--benchmark-max-time=0.1", "."]
    return lambda *more: python("-m", "pytest", "-c", f"{ROOT}/benchmarks/pytest.ini", *options, *more, cwd=tmp_path)


def test_a_race_and_its_report(race, tmp_path):
    done = race("--benchmark-json=run.json")
    assert done.returncode == 1
    said = ("2 failed, 2 passed, 2 skipped", "y is off by 0.5", "does not run here: no such device", "needs a GPU")
    assert all(text in done.stdout for text in said), done.stdout
    assert not (tmp_path / "timed").exists()
    run = json.loads((tmp_path / "run.json").read_text())
    first, slow = (benchmark["stats"]["median"] for benchmark in run["benchmarks"])
    group, info = (run["benchmarks"][1][key] for key in ("group", "extra_info"))
    assert (group, info["compared_with"], info["times_as_fast"]) == ("of turns, 32 pairs", "first", first / slow)
    assert (info["bytes_per_second"], info["saved_bytes"]) == (1000 / slow, 5)
    assert run["machine_info"]["torch"] == torch.__version__
    pytest.importorskip("matplotlib", reason="matplotlib draws the report's figures")
    assert python("-m", "benchmarks.report", "run.json", "--output", "report", cwd=tmp_path).stdout == "report\n"
    assert f"| slow    | {1e3 * slow:,.3f} |" in (tmp_path / "report/report.md").read_text()
    assert "data" not in json.loads((tmp_path / "report/results.json").read_text())["benchmarks"][0]["stats"]


def test_options_of_pytest_benchmark(race, tmp_path):
    assert "1 failed, 1 passed" in race("--benchmark-disable", "-k", "slow or wrong").stdout
    assert "--benchmark-timer=time.time: variants are timed in turns" in race("--benchmark-timer=time.time").stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("gpu", "there is no NVIDIA GPU here"),
        ("gpu --dry-run --parts opps", "invalid choice: 'opps'"),
        ("gpu --dry-run --changed --parts tests", "not allowed with argument"),
        ("captured_steps", "there is no NVIDIA GPU here"),
        ("verdicts /no/such/folder", "/no/such/folder: expected the files of a run"),
        ("sweep", "there is no NVIDIA GPU here"),
        ("report /no/such/file", "No such file"),
        ("report setup.py", "setup.py: expected what pytest benchmarks/ --benchmark-json writes"),
    ],
)
def test_mistakes(command, message):
    done = python("-m", *f"benchmarks.{command}".split())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr


def test_baselines_and_their_batches():
    np.testing.assert_allclose(draw_lengths(100_000, np.random.default_rng(0)).mean(0), [14.0, 8.2], rtol=0.04)
    x = make_batches(16, 2)[1]
    assert torch.equal((x.p != PADDING).sum(1), x.p_lengths)
    assert (x.filled().p != PADDING).all()
    for variant in ("paper", "notebook"):
        ours, peer = (kind(5, 4, 40_000, 3, variant=variant).double().eval() for kind in (ESIM, Coetaur0ESIM))
        peer.load_state_dict(ours.state_dict())
        torch.testing.assert_close(peer(x.p, x.h, x.p_lengths, x.h_lengths), ours(x.pairs), rtol=1e-10, atol=1e-10)

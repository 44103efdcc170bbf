"""The sweep over launch configurations, as far as it goes without a GPU: what is tried, what wins, and when it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from benchmarks import candidates, measured, sweep
from benchmarks.candidates import Case, cases, configurations
from benchmarks.measured import Measured, winner
from esim_fast.ops.triton import runtime
from esim_fast.ops.triton.runtime import Config

ROOT = Path(__file__).resolve().parents[2]
CASES = cases()
ONE = CASES[0]
PRESENT, FIRST, SECOND, *OTHERS = configurations(ONE)
FORWARD = Case("forward", "half", (16, 16), (("SNLI", 2),))
NEVER = 1e18  # the end of the time


def of_times(*times: dict[Config, float], refused=()) -> Measured:
    """Measured seconds, a batch each."""
    named = {f"batch {i}": seconds for i, seconds in enumerate(times)}
    shares = {name: dict.fromkeys(seconds, 0.5) for name, seconds in named.items()}
    return Measured(dict.fromkeys(refused, "wrong"), named, shares)


def table(lines: list[str]) -> dict:
    return eval("{" + "\n".join(lines) + "}", {"Config": Config})


def test_winner():
    """The fastest over all batches, but none that is wrong, was not timed throughout, or is only just faster."""
    times = {PRESENT: 10.0, FIRST: 5.0, SECOND: 9.0}, {PRESENT: 1.0, FIRST: 2.1, SECOND: 0.9}
    assert winner(ONE, of_times(*times)) == SECOND
    assert winner(ONE, of_times(times[0], refused=[FIRST])) == SECOND
    assert winner(ONE, of_times({PRESENT: 10.0, FIRST: 1.0}, {PRESENT: 10.0})) == PRESENT
    assert winner(ONE, of_times({PRESENT: 1.0, FIRST: 0.99})) == winner(ONE, of_times()) == PRESENT


@pytest.mark.parametrize("case", [ONE, CASES[-1], *(c for c in CASES if c.present.max_registers)], ids=str)
def test_lines_are_the_table_s(case):
    best = configurations(case)[3]
    written = sweep.lines(case, of_times({case.present: 3e-5, best: 2e-5}, {case.present: 4e-6, best: 3e-6}))
    assert table(written) == {case.key: best}
    assert "20.0 3.0 µs (was 30.0 4.0), 50.0 50.0 % of a copy" in written[0]
    assert table(sweep.lines(case, of_times({case.present: 3e-5}))) == {case.key: case.present}


@pytest.fixture
def small(monkeypatch):
    """A case of two pairs, on tensors of the CPU; the later of several is the faster."""
    if torch.cuda.is_available() or not runtime.INTERPRETED:
        pytest.skip("the interpreter is off")

    def device_times(title, variants, *, rounds):
        for call in variants.values():
            call()
        return SimpleNamespace(values={name: 1.0 / (i + 1) for i, name in enumerate(variants)})

    monkeypatch.setattr(measured, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(measured, "device_times", device_times)
    monkeypatch.setattr(measured, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(candidates, "WIDTH", 40)
    monkeypatch.setattr(candidates, "batches_of", lambda *_: [np.array([[16, 3], [5, 9]]), np.array([[2, 2]])])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=0))


@pytest.mark.interpreter
def test_right_ones_are_timed_on_all_inputs(small):
    some = configurations(FORWARD)[:3]
    found = measured.measure(FORWARD, some, NEVER)
    seconds = {config: 1.0 / (i + 1) / 2 for i, config in enumerate(some)}  # of one of two batches
    assert found.seconds == {"SNLI at 2": seconds}
    moved = 37 * 40 * 5 * 2  # words, width, how often each number is read or written, its bytes
    shares = {config: pytest.approx(moved / 2 / s / 1e9) for config, s in seconds.items()}
    assert found.shares["SNLI at 2"] == shares


@pytest.mark.interpreter
def test_dry_run(tmp_path):
    file = tmp_path / "sweep.json"
    one_case = "import sys; from benchmarks import sweep; sweep.DRY_CASES = 1; sys.exit(sweep.main())"
    command = [sys.executable, "-c", one_case, "--dry-run", "--kernels", "forward", "--json", file]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "dry run: nothing was timed"
    written = json.loads(file.read_text())["cases"]
    assert [entry["case"] for entry in written] == [str(case) for case in cases(["forward"])]
    checked = [check["refused"] for case in written for check in case["interpreted"]]
    assert checked == [None] * sweep.DRY_CHECKED
    assert all(candidate["measured_us"] is None for case in written for candidate in case["candidates"])

"""The Triton kernels fit the GPUs they are launched on: the compiler says so, and no GPU is needed to ask it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A program of its own, because here Triton's interpreter may be on.
PROGRAM = """
import json, sys
import kernel_resources
from kernel_resources import Case, compile_for, launch, launches

cases, target, changes = json.loads(sys.argv[1])
for table, key, config in changes:
    getattr(launch, table)[tuple(key)] = launch.Config(*config)
for case in cases:
    for planned in launches(Case(*case)):
        found = compile_for(Case(*case), planned, target)
        print(json.dumps({**found._asdict(), "problem": found.problem}))
"""


def compiled(cases, target, changes=()) -> list[dict]:
    """What each launch of the cases needs, see ``kernel_resources.Resources``; ``changes`` to the tables first."""
    pytest.importorskip("triton")
    arguments = [sys.executable, "-c", PROGRAM, json.dumps([cases, target, changes])]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT / "tools")}
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("arithmetic", ["bf16", "tf32", "ieee"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_default_configurations_fit(arithmetic, target):
    """A tile and many tiles; tools/kernel_resources.py, which CI runs too, asks for all configurations and GPUs."""
    found = compiled([(arithmetic, 32, 16), (arithmetic, 100, 100)], target)
    many = ["forward"] * 2 + ["backward_statistics"] * 2 + ["backward"] * 2
    assert [of["kernel"] for of in found] == ["forward", "backward", *many]
    for of in found:
        assert of["problem"] is None, of
        assert 0 < of["shared"] < 100_000
        assert 32 <= of["registers"] <= 255
        assert of["spilled"] == 0


@pytest.mark.parametrize(
    ("change", "case", "problem"),
    [
        (
            ["ONE_TILE", ["backward", "ieee", 32, 32], [128, 128, 4, 3]],
            ("ieee", 32, 32),
            "shared memory, but sm_89 has",
        ),
        (["ONE_TILE", ["forward", "half", 64, 64], [64, 128, 4, 2]], ("bf16", 64, 64), "registers go to memory"),
        (["ONE_TILE", ["forward", "half", 16, 16], [16, 16, 8, 1]], ("bf16", 16, 16), "bytes at a time"),
    ],
)
def test_a_configuration_broken_on_purpose_is_found(change, case, problem):
    found = compiled([case], "sm_89", [change])
    assert any(problem in (of["problem"] or "") for of in found), found


@pytest.mark.parametrize("arithmetic", ["bf16", "ieee"])
def test_aligned_rows_move_16_bytes_at_a_time(arithmetic):
    """Which the compiler cannot know of packed rows unless it is told, and odd widths do not allow."""
    aligned, odd = (compiled([(arithmetic, 32, 32, "rows", width)], "sm_90") for width in (600, 601))
    assert [(of["widest_load"], of["widest_store"]) for of in aligned] == [(16, 16), (16, 16)]
    assert all(of["widest_load"] < 16 and of["widest_store"] < 16 for of in odd)

"""The Triton kernels fit the GPUs they are launched on: the compiler says so, and no GPU is needed to ask it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A program of its own, because here Triton's interpreter may be on.
PROGRAM = """
import json, sys
import kernel_resources
from kernel_resources import Case, compile_for, kernels, launches, runtime

cases, target, changes = json.loads(sys.argv[1])
for table, key, config in changes:
    getattr(kernels, table)[tuple(key)] = runtime.Config(*config)
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


@pytest.mark.parametrize(("arithmetic", "target"), [("bf16", "sm_90"), ("ieee", "sm_80")])
def test_default_configurations_fit(arithmetic, target):
    """A tile and many tiles; tools/kernel_resources.py, which CI runs too, asks for all configurations and GPUs."""
    found = compiled([(arithmetic, 32, 16), (arithmetic, 100, 100)], target)
    many = ["scores", "forward", "forward", *["backward_enhance"] * 2, "products"]
    many += ["backward_softmax"] * 2 + ["backward"] * 2
    assert [of["kernel"] for of in found] == ["forward", "backward", *many]
    for of in found:
        assert of["problem"] is None, of
        assert of["shared"] < 100_000
        assert 24 <= of["registers"] <= 255
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


def test_aligned_rows_move_16_bytes_at_a_time():
    """Which the compiler cannot know of packed rows unless it is told, and odd widths do not allow."""
    aligned, odd = (compiled([("bf16", 32, 32, "rows", width)], "sm_90") for width in (600, 601))
    assert [(of["widest_load"], of["widest_store"]) for of in aligned] == [(16, 16), (16, 16)]
    assert all(of["widest_load"] < 16 and of["widest_store"] < 16 for of in odd)


# A call as far as it goes without a GPU: from the operator to a compiled kernel, whose launch alone is left out.
CALLS = """
import json
import torch, triton
from triton.backends.compiler import GPUTarget

class NoGPU:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

triton.runtime.driver.set_active(NoGPU())
compiled = []
triton.knobs.runtime.jit_cache_hook = lambda *, repr, **_: compiled.append(repr)

from esim_fast import Rows
from esim_fast.ops.triton import local_inference as kernels, runtime

runtime.multiprocessors = lambda _: 132
runtime.Launch.start = lambda self: self.kernel.warmup(
    *self.arguments, grid=(self.programs,), **self.constants, **self.options
)

def call(layout, a_length, b_length, dtype, pairs=4):
    if layout == "one tensor":
        rows = Rows.concatenated([a_length] * pairs + [b_length] * pairs, 600)
        x = torch.zeros(rows.tokens, 600, dtype=dtype)
        halves = slice(0, pairs), slice(pairs, None)
        sides = [(rows.start[these], rows.step, rows.lengths[these], None) for these in halves]
        arguments = (x, *sides[0], *sides[1], a_length, b_length, True)
        m = kernels.forward_packed(*arguments)
        kernels.backward_packed(m, *arguments)
        return
    else:
        a, b = (torch.zeros(pairs, n, 600, dtype=dtype) for n in (a_length, b_length))
        if layout == "mask":
            sides = [(None, None, None, torch.ones(pairs, n, dtype=torch.bool)) for n in (a_length, b_length)]
        else:
            sides = [(None, None, torch.full((pairs,), n), None) for n in (a_length, b_length)]
        arguments = (a, b, *sides[0], *sides[1], a_length, b_length, False)
    m_a, m_b = kernels.forward(*arguments)
    kernels.backward(m_a, m_b, *arguments)

counts = []
for layout in ("one tensor", "mask", "lengths"):
    for lengths in ((14, 9), (16, 1), (9, 16), (100, 20), (128, 17)):
        call(layout, *lengths, torch.bfloat16)
        counts.append(len(compiled))
    call(layout, 13, 9, torch.bfloat16, pairs=3)
    counts.append(len(compiled))
print(json.dumps(counts))
"""


def test_lengths_do_not_make_the_kernels_compile_again():
    """Neither a multiple of 16 nor a 1 among them, nor an odd number of pairs, whose addresses begin anywhere."""
    pytest.importorskip("triton")
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
        run = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    # In each layout one tile takes two kernels and many take six, three of which are compiled for each side.
    tiles = [2, 2, 2, 11, 11, 11]
    assert counts == [layout * 11 + of for layout in range(3) for of in tiles]

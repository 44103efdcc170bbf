"""The Triton kernels fit the supported GPUs, according to the compiler, which needs no GPU."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.processes import output_of

ROOT = Path(__file__).resolve().parents[2]
# A separate program, because Triton's interpreter may be on here. It compiles each kernel once.
PROGRAM = """
import json, sys
from unittest import mock
import kernel_resources
from kernel_resources import Case, compile_for, kernels, launches, runtime

found = {}
for case, target, changes in json.loads(sys.argv[1]):
    case = Case(*case)
    if case.kernel:
        key = case.kernel, case.arithmetic.replace("bf16", "half"), case.a_length, case.b_length
        case = case._replace(candidate=kernels.CANDIDATES[key][0])
    with mock.patch.dict(kernels.ONE_TILE, {tuple(key): runtime.Config(*config) for key, config in changes}):
        resources = []
        for planned in launches(case):
            if changes and planned.kernel.__name__ != changes[0][0][0]:
                continue
            key = str((case[0], case[3:], planned.kernel.__name__, planned.constants, planned.options, target))
            if key not in found:
                found[key] = compile_for(case, planned, target)
            resources.append({**found[key]._asdict(), "problem": found[key].problem})
        print(json.dumps(resources), flush=True)
"""
FITTING = [("bf16", "sm_90"), ("ieee", "sm_80")]
BROKEN = [
    (["forward", "half", 64, 64], [128, 64, 4, 8], ("bf16", 64, 64), "shared memory, but sm_89 has"),
    (["forward", "half", 64, 64], [64, 128, 4, 2], ("bf16", 64, 64), "spills"),
    (["forward", "half", 16, 16], [16, 16, 8, 1], ("bf16", 16, 16), "bytes at a time"),
]
WIDTHS = [600, 601]
# Candidates: fp32 with the most registers, and on chip, with narrow rows because others take long to compile.
CANDIDATES = [
    ("ieee", 64, 32, "rows", 600, 1024, None, "backward"),
    ("bf16", 32, 16, "rows", 72, 1024, None, "backward"),
    ("bf16", 64, 32, "rows", 72, 1024, None, "forward"),
]


@pytest.fixture(scope="session")
def compiled(once):
    """The resources of each launch of some cases, see ``kernel_resources.Resources``."""
    pytest.importorskip("triton")
    jobs = {f"fits {name}": [(name, *lengths), target, []] for name, target in FITTING for lengths in [(32, 16)]}
    jobs |= {f"fits {name}, many tiles": [(name, 100, 100), target, []] for name, target in FITTING}
    jobs |= {problem: [case, "sm_89", [(key, config)]] for key, config, case, problem in BROKEN}
    jobs |= {f"width {width}": [("bf16", 32, 32, "rows", width), "sm_90", []] for width in WIDTHS}
    jobs |= {str(case): [case, "sm_80", []] for case in CANDIDATES}
    path = os.pathsep.join([str(ROOT / "tools"), *sys.path])

    def compile_all(folder):
        printed = output_of(PROGRAM, json.dumps([*jobs.values()]), TRITON_INTERPRET="0", PYTHONPATH=path)
        (folder / "resources.jsonl").write_text(printed)

    lines = (once("kernel-resources", compile_all) / "resources.jsonl").read_text().splitlines()
    return dict(zip(jobs, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("arithmetic", [name for name, _ in FITTING])
def test_default_configurations_fit(compiled, arithmetic):
    """One tile and many tiles; CI also runs tools/kernel_resources.py for all configurations and GPUs."""
    found = compiled[f"fits {arithmetic}"] + compiled[f"fits {arithmetic}, many tiles"]
    many = ["scores", *["forward"] * 2, *["backward_enhance"] * 2, "products"]
    many += ["backward_softmax"] * 2 + ["backward"] * 2
    assert [resources["kernel"] for resources in found] == ["forward", "backward", *many]
    for resources in found:
        assert resources["problem"] is None, resources
        assert resources["shared"] < 100_000
        assert 24 <= resources["registers"] <= 255
        assert resources["spilled"] == 0


@pytest.mark.parametrize("problem", [problem for *_, problem in BROKEN])
def test_a_configuration_broken_on_purpose_is_found(compiled, problem):
    assert any(problem in (resources["problem"] or "") for resources in compiled[problem]), compiled[problem]


@pytest.mark.parametrize("case", CANDIDATES, ids=str)
def test_candidates_fit(compiled, case):
    """``tools/kernel_resources.py --all`` compiles all of them for all GPUs."""
    (resources,) = compiled[str(case)]
    assert resources["problem"] is None, resources


def test_aligned_rows_move_16_bytes_at_a_time(compiled):
    """The compiler must be told that packed rows are aligned, and odd widths are not."""
    aligned, odd = (compiled[f"width {width}"] for width in WIDTHS)
    assert [(resources["widest_load"], resources["widest_store"]) for resources in aligned] == [(16, 16), (16, 16)]
    assert all(resources["widest_load"] < 16 and resources["widest_store"] < 16 for resources in odd)


# A call as far as possible without a GPU, from the operator to the kernels to compile.
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
compiled = set()
triton.knobs.runtime.jit_cache_hook = lambda *, key, **_: compiled.add(key) or True  # True: it is not compiled

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
    a, b = (torch.zeros(pairs, n, 600, dtype=dtype) for n in (a_length, b_length))
    sides = [(None, None, torch.full((pairs,), n), None) for n in (a_length, b_length)]
    if layout == "mask":
        sides = [(None, None, None, torch.ones(pairs, n, dtype=torch.bool)) for n in (a_length, b_length)]
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
    """Not even multiples of 16, a length of 1, or an odd number of pairs, whose addresses are not aligned."""
    pytest.importorskip("triton")
    counts = json.loads(output_of(CALLS, TRITON_INTERPRET="0"))
    # In each layout one tile needs two kernels. Many tiles need six, three of which are compiled for each side.
    tiles = [2, 2, 2, 11, 11, 11]
    assert counts == [layout * 11 + count for layout in range(3) for count in tiles]

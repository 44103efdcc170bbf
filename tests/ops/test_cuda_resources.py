"""The CUDA kernels of the BiLSTM fit the GPUs that they are offered on, according to nvcc, which needs no GPU."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.processes import output_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
# A separate program, because Triton's interpreter may be on here.
PROGRAM = """
import json, sys
from pathlib import Path
import cuda_resources
from kernel_resources import SHARED_MEMORY

sources, target = Path(sys.argv[1]), sys.argv[2]
listed = [variant for variant in cuda_resources.variants(sources) if variant.direction == "forward"]
found = cuda_resources.resources(target, SHARED_MEMORY[target], listed, sources)
print(json.dumps([{**r.variant._asdict(), **r._asdict(), "gap": r.gap, "problem": r.problem} for r in found]))
"""


def resources(sources, target):
    path = os.pathsep.join([str(ROOT / "tools"), *sys.path])
    return json.loads(output_of(PROGRAM, str(sources), target, TRITON_INTERPRET="0", PYTHONPATH=path))


@pytest.fixture(scope="session")
def hopper(once):
    """The forward kernels for compute capability 9.0; kernel_resources.py has all."""
    pytest.importorskip("triton")

    def compile_all(folder):
        (folder / "resources.json").write_text(json.dumps(resources(ROOT / "csrc", "sm_90")))

    return json.loads((once("cuda-resources", compile_all) / "resources.json").read_text())


def test_every_kernel_fits(hopper):
    assert all(found["problem"] is None and found["gap"] is None for found in hopper), hopper
    for found in hopper:
        assert found["registers"] * found["threads"] <= 65536
        assert found["in_steps"] == 0 or found["sentences"] == 64 or found["in_steps"] <= 100
        assert 0.5 < found["clocks"] / 1755 < 10  # microseconds


def test_every_size_and_format_is_offered(hopper):
    offered = {(found["format"], found["wide"], found["sentences"]) for found in hopper if found["cluster"]}
    assert offered >= {(half, wide, n) for half in ("bf16", "fp16") for wide in (False, True) for n in (8, 16, 64)}
    assert offered >= {(full, False, n) for full in ("tf32", "tf32x3") for n in (8, 16)}


@pytest.mark.parametrize(
    ("file", "before", "after", "problem"),
    [
        ("bilstm_cuda_team.h", "kMostShared = 232448", "kMostShared = 101376", "static assertion failed"),
        ("bilstm_cuda_forward.cu", "(Config::kThreads, 1)", "(Config::kThreads, 2)", "spills"),
    ],
)
def test_a_configuration_broken_on_purpose_is_found(tmp_path, file, before, after, problem):
    pytest.importorskip("triton")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    source = tmp_path / "csrc" / file
    text = source.read_text()
    assert before in text
    source.write_text(text.replace(before, after))
    try:
        found = str([kernel["problem"] for kernel in resources(tmp_path / "csrc", "sm_90")])
    except AssertionError as error:
        found = str(error)
    assert problem in found

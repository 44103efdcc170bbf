"""Steps of pairs with a capacity read nothing from the GPU, and are the same for all batches of a capacity."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from tests.ops.cuda_on_cpu import compiler

SOURCE = Path(__file__).with_name("guard.cpp")


def build(folder, command):
    """Compiles guard.cpp."""
    places = [f"-I{place}" for place in cpp_extension.include_paths()]
    places += [f"-{how}{place}" for place in cpp_extension.library_paths() for how in ("L", "Wl,-rpath,")]
    arguments = ["-std=c++20", "-fPIC", "-shared", *places, str(SOURCE), "-o", str(folder / "guard.so")]
    subprocess.run([*command, *arguments, "-ltorch_cpu", "-lc10"], check=True)


@pytest.fixture
def run(once):
    """Runs steps.py and returns the lines that it prints."""
    if sys.platform != "linux" or torch.version.cuda or not importlib.util.find_spec("triton"):
        pytest.skip("needs Linux, a torch without CUDA, and Triton")
    if (command := compiler()) is None:
        pytest.skip("no C++ compiler here")
    library = once("fake-gpu", lambda folder: build(folder, command)) / "guard.so"

    def lines(*arguments):
        places = {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "0"}
        program = [sys.executable, "-m", "tests.fake_gpu.steps", *arguments]
        done = subprocess.run(program, env={**os.environ, **places}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return lines


@pytest.mark.parametrize(
    ("precision", "dropout", "dtype"),
    [
        ("fp32", "plain", "torch.float32"),
        ("bf16", "plain", "torch.bfloat16"),
        ("fp16", "variational", "torch.float16"),
    ],
)
def test_a_capacity_fixes_everything(run, precision, dropout, dtype):
    """Also shows that nothing is read: the process raises an error otherwise, as the next test shows."""
    kernels, same, rows, pairs, longest = map(json.loads, run("compare", precision, dropout))
    names = ["bilstm_triton", "local_inference_packed_triton", "masked_pool"]
    assert kernels == [[f"esim_fast.{name}{end}.default", dtype] for name in names for end in ("", "_backward")]
    assert same == 30
    # For B pairs and longest sentences of L words, there are 4B + L + 2 addresses, and 2B + L + 2 without the lengths.
    # Variational dropout takes the last sentence, 2B - 1, and L + 1 steps.
    assert rows == [[1000, 1100]]
    sentence, steps = ([[63, 79]], [[17, 33]]) if dropout == "variational" else ([], [])
    assert pairs == sorted([[1 / 32, 1 / 40], [32, 40], [64, 80], *sentence, [82, 98], [146, 178]])
    assert longest == sorted([[16, 32], *steps, [18, 34], [82, 98], [146, 162]])


def test_every_mistake_is_noticed(run):
    noticed = dict(line.split(": ") for line in run("mistakes", "bf16", "plain"))
    assert len(noticed) == 10
    assert set(noticed.values()) == {"DataDependentOutputException", "DynamicOutputShapeException", "RuntimeError"}

"""Runs programs in which torch behaves as if it had a GPU."""

import importlib.util
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
    """``run(module, *arguments)`` runs a module of this folder and returns the lines that it prints."""
    if sys.platform != "linux" or torch.version.cuda or not importlib.util.find_spec("triton"):
        pytest.skip("needs Linux, a torch without CUDA, and Triton")
    if (command := compiler()) is None:
        pytest.skip("no C++ compiler here")
    library = once("fake-gpu", lambda folder: build(folder, command)) / "guard.so"

    def lines(module, *arguments):
        places = {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "0"}
        program = [sys.executable, "-m", f"tests.fake_gpu.{module}", *arguments]
        done = subprocess.run(program, env={**os.environ, **places}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return lines

"""Compiles CUDA files of csrc for the CPU, with the headers in fake_cuda and with rewritten launches."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import esim_fast.ops  # noqa: F401 (defines the operators)

HERE = Path(__file__).resolve().parent
FAKE_CUDA = HERE / "fake_cuda"
SOURCES = HERE.parents[1] / "csrc"
NAMESPACE = "esim_fast_cuda_on_cpu"
# The operators, and the files that they are in, by the name of the library for the CPU.
OPERATORS = {
    "masked_pool_cuda": ("masked_pool", "masked_pool_backward"),
    "bilstm_cuda": ("bilstm_cuda", "bilstm_cuda_backward", "bilstm_cuda_fits"),
}
TORCH_TARGET_VERSION = "0x020a000000000000"  # as in setup.py
FLAGS = (
    *("-std=c++20", "-O1", "-g1", "-fvisibility=hidden"),
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
    # CUDA code uses type punning; misaligned accesses, which stop a GPU, are recorded.
    *("-fno-strict-aliasing", "-fsanitize=alignment"),
    "-U_FORTIFY_SOURCE",  # longjmp to another stack is intended
    # A torch with CUDA has functions with the names of fake_cuda/cuda_runtime.h.
    "-Wl,-Bsymbolic-functions",
)


def compiler():
    """The C++ compiler, or None."""
    command = shlex.split(os.environ.get("CXX") or "g++")
    return command if shutil.which(command[0]) else None


def rewritten(source):
    """Rewrites launches, CUDA's one syntax extension, as calls, and registers the operators for the CPU."""
    source = re.sub(r"(\b\w+<[^<>;]*>)\s*<<<(.*?)>>>\(", r"cuda_on_cpu::Launch<\1>{\2}(", source, flags=re.DOTALL)
    if "<<<" in source:
        raise ValueError("kernels are launched in a way that is not known here")
    for key, key_here in (("CUDA", "CPU"), ("CompositeExplicitAutograd",) * 2):
        source = source.replace(f"_IMPL(esim_fast, {key}, m)", f"_IMPL({NAMESPACE}, {key_here}, m)")
    return source


def build(folder, name, command):
    """Compiles csrc/<name>*.cu to <name>.so in a folder."""
    sources = []
    for original in sorted(SOURCES.glob(f"{name}*.cu")):
        sources.append(folder / f"{original.stem}.cpp")
        code = rewritten(original.read_text(encoding="utf-8"))
        sources[-1].write_text(f'#line 1 "{original}"\n{code}', encoding="utf-8")
    _compile(folder / f"{name}.so", sources, command, "-fPIC", "-shared")


def build_mistakes(folder, command):
    """Compiles fake_cuda/mistakes.cpp to a program in a folder."""
    _compile(folder / "mistakes", [FAKE_CUDA / "mistakes.cpp"], command)


def _compile(result, sources, command, *flags):
    includes = [f"-I{folder}" for folder in (FAKE_CUDA, SOURCES, *cpp_extension.include_paths())]
    libraries = cpp_extension.library_paths()
    links = [*(f"-L{folder}" for folder in libraries), "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{libraries[0]}"]
    # Sanitizers of the tests should not slow down the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    sources = [*sources, FAKE_CUDA / "cuda_runtime.cpp"]
    arguments = [*command, *FLAGS, *flags, *includes, *map(str, sources), "-o", str(result), *links]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{result.name} does not compile for the CPU:\n{done.stderr[-4000:]}")


def cuda_on_cpu(once, name):
    """The operators in csrc/<name>*.cu, compiled once for all test workers."""
    if sys.platform != "linux":
        pytest.skip("CUDA code is built only on Linux")
    if (command := compiler()) is None:
        pytest.skip("no C++ compiler here to build CUDA code for the CPU")
    return CudaOnCpu(once(f"{name}-on-cpu", lambda folder: build(folder, name, command)) / f"{name}.so")


class CudaOnCpu:
    """The operators of a library that ``build`` made, for CPU tensors."""

    def __init__(self, library):
        # With the schemas of the real operators.
        self._definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
        self._names = OPERATORS[library.stem]
        for name in self._names:
            schema = str(getattr(torch.ops.esim_fast, name).default._schema)
            self._definitions.define(schema.removeprefix("esim_fast::"))
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_on_cpu_launches.restype = ctypes.c_char_p

    def operators(self):
        return {name: getattr(getattr(torch.ops, NAMESPACE), name) for name in self._names}

    def set(self, **values):
        """Sets the ``multiprocessors`` and ``capability`` of the GPU, and the ``policy`` and ``seed`` of schedules."""
        for name, value in values.items():
            ctypes.c_int.in_dll(self._library, f"cuda_on_cpu_{name}").value = value

    def launches(self):
        """The launches since the last call: a kernel, such as "pool_kernel<float, 4, 8>", or how its blocks live."""
        lines = self._library.cuda_on_cpu_launches().decode().splitlines()
        self._library.cuda_on_cpu_forget_launches()
        kernels = [re.search(r"\w+_kernel<[^<>]*>", line) for line in lines]
        return [re.sub(r"\w+::", "", name[0]) if name else line for name, line in zip(kernels, lines, strict=True)]

"""Compiles csrc/masked_pool_cuda.cu for the CPU, with the headers in fake_cuda and with rewritten launches."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

import esim_fast.ops  # noqa: F401 (defines the operators)

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "csrc"
LIBRARY = "masked_pool_cuda.so"
NAMESPACE = "esim_fast_cuda_on_cpu"
OPERATORS = ("masked_pool", "masked_pool_backward")
TORCH_TARGET_VERSION = "0x020a000000000000"  # as in setup.py
FLAGS = (
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden"),
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
    # CUDA code uses type punning; misaligned accesses, which stop a GPU, are recorded.
    *("-fno-strict-aliasing", "-fsanitize=alignment"),
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
    source, registrations = re.subn(
        r"STABLE_TORCH_LIBRARY_IMPL\(esim_fast, CUDA, m\)", f"STABLE_TORCH_LIBRARY_IMPL({NAMESPACE}, CPU, m)", source
    )
    if registrations != 1 or "<<<" in source:
        raise ValueError("masked_pool_cuda.cu launches kernels or registers operators in a way that is not known here")
    return source


def build(folder, command):
    """Compiles to ``LIBRARY`` in a folder."""
    source, library = folder / "masked_pool_cuda.cpp", folder / LIBRARY
    original = SOURCES / "masked_pool_cuda.cu"
    source.write_text(f'#line 1 "{original}"\n{rewritten(original.read_text(encoding="utf-8"))}', encoding="utf-8")
    includes = [f"-I{folder}" for folder in (HERE / "fake_cuda", SOURCES, *cpp_extension.include_paths())]
    links = [*(f"-L{folder}" for folder in cpp_extension.library_paths()), "-ltorch_cpu", "-ltorch", "-lc10"]
    # Sanitizers of the tests should not slow down the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    arguments = [*command, *FLAGS, *includes, str(source), "-o", str(library), *links]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"masked_pool_cuda.cu does not compile for the CPU:\n{done.stderr[-4000:]}")


class CudaOnCpu:
    """The operators of a library that ``build`` made, for CPU tensors."""

    def __init__(self, library):
        # With the schemas of the real operators.
        self._definitions = torch.library.Library(NAMESPACE, "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.esim_fast, name).default._schema)
            self._definitions.define(schema.removeprefix("esim_fast::"))
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_on_cpu_launches.restype = ctypes.c_char_p

    def operators(self):
        return {name: getattr(getattr(torch.ops, NAMESPACE), name) for name in OPERATORS}

    def set_multiprocessors(self, count):
        """Sets the size of the GPU for the next launches."""
        ctypes.c_int.in_dll(self._library, "cuda_on_cpu_multiprocessors").value = count

    def launches(self):
        """The kernels launched since the last call, such as "pool_kernel<float, 4, 8>"."""
        text = self._library.cuda_on_cpu_launches().decode()
        self._library.cuda_on_cpu_forget_launches()
        return [re.sub(r"\w+::", "", name) for name in re.findall(r"\w+_kernel<[^<>]*>", text)]

"""Build the single extension, esim_fast/_C.abi3.so, on LibTorch's stable ABI.

CPU code is always built, CUDA code if nvcc is found. The result runs on any torch >= 2.10, CPU or CUDA, whichever it
was built against. Environment variables: ESIM_FAST_CUDA=auto|0|1 (1 fails if CUDA code cannot be built), CXX,
CUDA_HOME, TORCH_CUDA_ARCH_LIST (default: those of DEFAULT_ARCHITECTURES that nvcc supports).
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from typing import NamedTuple

from setuptools import setup

DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")  # Turing, Ampere and Ada, Hopper, Blackwell
TORCH_TARGET, TORCH_TARGET_VERSION = "2.10", "0x020a000000000000"

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit("esim_fast: building needs torch >= 2.10: install it first, or omit --no-build-isolation")
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    sys.exit(f"esim_fast: building needs torch >= 2.10, got {torch.__version__}: update it first")


class Cuda(NamedTuple):
    home: str
    library_flags: list[str]


def find_cuda() -> Cuda | None:
    """Return the CUDA toolkit that nvcc belongs to, or None to build CPU code only."""
    wish = os.environ.get("ESIM_FAST_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"esim_fast: ESIM_FAST_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = (
        shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    )
    if nvcc is None or sys.platform != "linux":
        if wish == "1":
            sys.exit("esim_fast: ESIM_FAST_CUDA=1, but no nvcc was found: set CUDA_HOME or put nvcc on the PATH")
        return None
    # The nvcc on the PATH may be a wrapper, so ask nvcc itself where its toolkit and libraries are.
    plan = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"], stderr=subprocess.PIPE)
    text = plan.stderr.decode(errors="replace")
    top = re.search(r"^#\$ TOP=(.+)$", text, flags=re.MULTILINE)
    if plan.returncode != 0 or top is None:
        sys.exit(f"esim_fast: {nvcc} does not work (ESIM_FAST_CUDA=0 builds without it): {text.strip()[-300:]}")
    home = os.path.realpath(top[1])
    # NVIDIA's packages on PyPI have the libraries in lib, where their nvcc does not look.
    return Cuda(home, [*re.findall(r'"(-L[^"]+)"', text), f"-L{home}/lib"])


def cuda_architectures(cuda_home: str) -> list[str]:
    """Return the compute capabilities to compile for, such as ``["8.0", "9.0+PTX"]``."""
    if chosen := re.findall(r"[^\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")):
        for architecture in chosen:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", architecture):
                sys.exit(
                    f"esim_fast: TORCH_CUDA_ARCH_LIST must look like '8.0;9.0+PTX', got the entry {architecture!r}"
                )
        return chosen
    listing = subprocess.run([f"{cuda_home}/bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = [a for a in DEFAULT_ARCHITECTURES if f"compute_{a.replace('.', '')}" in listing.stdout.split()]
    if not known:
        sys.exit(
            f"esim_fast: {cuda_home}/bin/nvcc supports none of {', '.join(DEFAULT_ARCHITECTURES)}: use CUDA 11 or newer"
        )
    return [*known[:-1], f"{known[-1]}+PTX"]


def code_flags(architectures: list[str]) -> list[str]:
    """Return nvcc's flags; without them, torch compiles only for the GPUs it sees, or fails if there are none."""
    flags = []
    for architecture in architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def check_compiler() -> None:
    # torch compiles with the first of these, setuptools links with the second.
    linker = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    for command in (cpp_extension.get_cxx_compiler(), linker):
        if not shutil.which(command.split()[0]):
            sys.exit(
                f"esim_fast: no C++ compiler ({command.split()[0]} not found): "
                "install one (Debian and Ubuntu: apt-get install g++) or set CXX"
            )


def vnni_macros() -> list[tuple[str, None]]:
    """Return macros for the int8 instructions that the compiler and assembler support, for csrc/int8_cpu.h."""
    forms = {
        "ESIM_AVX512_VNNI": ("vpdpbusd %zmm0, %zmm0, %zmm0", "avx512vnni"),
        "ESIM_AVX_VNNI": ("{vex} vpdpbusd %ymm0, %ymm0, %ymm0", "avxvnni"),
    }
    command = [*cpp_extension.get_cxx_compiler().split(), "-x", "c++", "-c", "-", "-o", os.devnull]
    macros = []
    for macro, (instruction, feature) in forms.items():
        code = f'int f() {{ asm("{instruction}"); return __builtin_cpu_supports("{feature}"); }}'
        if subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0:
            macros.append((macro, None))
    return macros


def extension() -> cpp_extension.CppExtension:
    check_compiler()
    kernels = ("masked_pool", "bilstm", "bilstm_int8", "int8_products", "embedding", "local_inference")
    sources = ["csrc/ops.cpp", *(f"csrc/{name}_cpu.cpp" for name in kernels)]
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), *vnni_macros()]
    nvcc_args: list[str] = []
    # In a CUDA build of torch, libtorch.so loads the CUDA library, so it must stay linked although none of its symbols
    # is used directly.
    link_args = ["-Wl,--no-as-needed", "-ltorch"] if sys.platform == "linux" else []

    architectures: list[str] = []
    if cuda := find_cuda():
        architectures = cuda_architectures(cuda.home)
        kernels = ("masked_pool_cuda", "bilstm_cuda", "bilstm_cuda_forward", "bilstm_cuda_backward")
        sources += [f"csrc/{name}.cu" for name in kernels]
        macros.append(("USE_CUDA", None))
        nvcc_args = ["-O3", "-Xcompiler=-fvisibility=hidden", *code_flags(architectures)]
        link_args += [*cuda.library_flags, "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
        cpp_extension.CUDA_HOME = cuda.home
        # torch checks that its CUDA version matches nvcc's, because extensions usually share CUDA libraries with it.
        # This one links its own runtime statically and only gets a stream from torch.
        cpp_extension._check_cuda_version = lambda *_: None
    # For build_info(). Not in define_macros, because nvcc would split the values at commas.
    facts = [
        f"-DESIM_FAST_CUDA_ARCHITECTURES={','.join(architectures)}",
        f"-DESIM_FAST_TORCH_TARGET={TORCH_TARGET}",
        f"-DESIM_FAST_BUILT_WITH_TORCH={torch.__version__}",
    ]
    return cpp_extension.CppExtension(
        "esim_fast._C",
        sources,
        define_macros=macros,
        extra_compile_args={"cxx": ["-O3", "-g0", "-fvisibility=hidden", *facts], "nvcc": nvcc_args},
        extra_link_args=link_args,
        depends=glob.glob("csrc/*.h"),
        py_limited_api=True,
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

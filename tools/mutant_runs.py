"""A scratch copy of the tree, whose ops are changed on purpose, and the tests of it."""

import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import CodeType

import pytest
import torch
from hypothesis import Phase, settings
from torch.utils import cpp_extension

from tools.mutants import Mutant

ROOT = Path(__file__).resolve().parents[1]

# What is run for a file's mutants, one after the other until something fails: the quick and likely first.
_POOL = "tests/test_masked_pool.py"
_LOCAL = "tests/test_local_inference.py"
_SIZES = f"{_LOCAL}::TestKernels::test_sizes"
_OF_POOL = [f"{_POOL} -k 'not compile'"]
_OF_LOCAL = [
    f"{_LOCAL} -k 'not interpreted and not compile and not processors'",
    f"{_LOCAL} -k 'not interpreted and processors'",
]
_COMPILED = [f"{_POOL} {_LOCAL} -k 'compile and not interpreted'"]
_OF_MODEL = [
    "tests/test_operators.py tests/test_packed.py tests/test_row_addresses.py tests/test_model.py",
    "tests/test_layers.py tests/test_extension.py",
]
_ONE_TILE = f"'{_SIZES}[[(14, 8), (3, 12), (16, 16)]-600-triton-interpreted]'"
_MANY_TILES = f"'{_SIZES}[[(205, 1), (40, 64)]-24-triton-interpreted]'"
_MANY_BLOCKS = f"'{_SIZES}[[(113, 3)]-400-triton-interpreted]'"
_QUICK = "same_bits or strides or TestNothing or beyond or nan_and or one_of_two or penalty"
# Not all of the interpreter's: it takes minutes.
_OF_TRITON = ["tests/test_row_addresses.py -k triton", f"{_LOCAL} -k 'interpreted and ({_QUICK})'"]
_BF16 = f"{_LOCAL} -k 'interpreted and random_cases and bfloat16'"
TESTS = {
    "csrc/rows.h": [*_OF_POOL, *_OF_LOCAL, *_OF_MODEL],
    "csrc/masked_pool.h": [*_OF_POOL, *_OF_MODEL],
    "csrc/masked_pool_cpu.cpp": [*_OF_POOL, *_OF_MODEL],
    "csrc/local_inference_cpu.cpp": [*_OF_LOCAL, *_OF_MODEL],
    "csrc/local_inference_cpu.h": [*_OF_LOCAL, *_OF_MODEL],
    "esim_fast/ops/reference.py": [*_OF_POOL, *_OF_LOCAL, *_OF_MODEL],
    "esim_fast/ops/checks.py": [*_OF_POOL, *_OF_LOCAL, *_OF_MODEL, *_COMPILED, *_OF_TRITON],
    "esim_fast/ops/masked_pool.py": [*_OF_POOL, *_OF_MODEL, *_COMPILED],
    "esim_fast/ops/local_inference.py": [*_OF_LOCAL, *_OF_MODEL, *_COMPILED, *_OF_TRITON],
    "esim_fast/packed.py": [*_OF_MODEL, *_OF_POOL, *_OF_LOCAL, *_COMPILED],
    "esim_fast/ops/triton/tokens.py": [_ONE_TILE, _MANY_TILES, *_OF_TRITON, _BF16],
    "esim_fast/ops/triton/one_tile.py": [_ONE_TILE, *_OF_TRITON, _BF16],
    "esim_fast/ops/triton/many_tiles.py": [_MANY_TILES, _MANY_BLOCKS, *_OF_TRITON, _BF16],
}
# How the tests are run: alike every time, and nothing kept. Each run is forked from a process that has imported what
# takes long, and that has not imported esim_fast.
_PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--no-header"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tools.mutant_runs", "pytest", "hypothesis", "triton.language", "torch._dynamo"])
_MEMORY = 16 * 2**30  # bytes that a mutant may ask for
CAUGHT, SURVIVED = "caught", "survived"
NO_CODE, SAME_CODE, BY_RULE = "does not compile", "compiles to the same", "harmless by rule"


class Copy:
    """A copy of the tree to put mutants into, with an extension of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns("*.so", "__pycache__", ".hypothesis")
        for name in ("csrc", "esim_fast", "tests", "benchmarks", "tools"):
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.md"), ROOT / "setup.py"):
            shutil.copy(path, root)
        (root / "objects").mkdir()
        self.objects: dict[str, bytes] = {}
        for source in sorted(root.glob("csrc/*.cpp")):
            self.objects[source.stem] = self.compile(source.stem) or b""
        self.library = root / "esim_fast" / "_C.abi3.so"
        self.link()
        self.unchanged = self.library.read_bytes()
        self.seconds: dict[str, float] = {}

    def compile(self, name: str) -> bytes | None:
        """The object code of csrc/``name``.cpp, None where it does not compile."""
        out = self.root / "objects" / f"{name}.o"
        facts = "-DESIM_FAST_CUDA_ARCHITECTURES= -DESIM_FAST_TORCH_TARGET=2.10 -DESIM_FAST_BUILT_WITH_TORCH="
        flags = f"-c -O1 -g0 -fPIC -fvisibility=hidden -std=c++20 -w -DTORCH_TARGET_VERSION=0x020a000000000000 {facts}"
        includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_path("include"))]
        command = [_compiler(), *(flags + torch.__version__).split(), *includes, f"csrc/{name}.cpp", "-o", str(out)]
        done = subprocess.run(command, cwd=self.root, capture_output=True)
        return out.read_bytes() if done.returncode == 0 else None

    def link(self) -> None:
        objects = map(str, sorted(self.root.glob("objects/*.o")))
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        command = [_compiler(), "-shared", *objects, *libraries, "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
        subprocess.run([*command, "-o", str(self.library)], check=True, cwd=self.root)

    def try_out(self, mutant: Mutant) -> tuple[str, str]:
        """What becomes of a mutant, and what caught it."""
        path = self.root / mutant.file
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        lines[mutant.line - 1] = mutant.new + "\n"
        changed = "".join(lines)
        path.write_text(changed, encoding="utf-8")
        try:
            python = mutant.file.endswith(".py")
            verdict = _compare_python(text, changed) if python else self.rebuild(mutant.file)
            return (verdict, "") if verdict else self.test(mutant.file)
        finally:
            path.write_text(text, encoding="utf-8")
            if not mutant.file.endswith(".py"):
                for name in self.affected(mutant.file):
                    (self.root / "objects" / f"{name}.o").write_bytes(self.objects[name])
                self.library.write_bytes(self.unchanged)

    def affected(self, file: str) -> list[str]:
        """Which translation units see a source."""
        name = Path(file).name
        return [
            unit
            for unit in self.objects
            if name == f"{unit}.cpp" or name in self.seen_by(self.root / "csrc" / f"{unit}.cpp")
        ]

    def seen_by(self, source: Path) -> set[str]:
        included = {
            line.split('"')[1]
            for line in source.read_text(encoding="utf-8").splitlines()
            if line.startswith('#include "')
        }
        return included.union(*(self.seen_by(source.parent / name) for name in included))

    def rebuild(self, file: str) -> str | None:
        made = {}
        for name in self.affected(file):
            made[name] = self.compile(name)
            if made[name] is None:
                return NO_CODE
        if all(made[name] == self.objects[name] for name in made):
            return SAME_CODE
        self.link()
        return None

    def test(self, file: str) -> tuple[str, str]:
        for stage in TESTS[file]:
            failed = self.run(stage, limit=3 * self.seconds[stage] + 60)
            if failed is not None:
                return CAUGHT, failed
        return SURVIVED, ""

    def run(self, stage: str, limit: float | None) -> str | None:
        """What failed; None if nothing did. Without a limit what Python compiles is kept: nothing is changed then."""
        log = self.root / "log"
        process = _FORKS.Process(target=run_tests, args=(self.root, stage, log, limit is None))
        process.start()
        process.join(limit)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return f"took more than {limit:.0f} s: {stage}"
        if process.exitcode == 0:
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED tests", "ERROR tests"))]
        return named[0] if named else f"exit code {process.exitcode}: {stage}"

    def check_unchanged(self, file: str) -> None:
        """Without a mutant all tests of a file must pass; how long they take is the measure for hangs."""
        for stage in TESTS[file]:
            if stage in self.seconds:
                continue
            began = time.monotonic()
            if failed := self.run(stage, None):
                sys.exit(f"tools.mutate: without any mutant, {failed}")
            self.seconds[stage] = time.monotonic() - began
            print(f"{self.seconds[stage]:6.1f} s  {stage}", flush=True)


def run_tests(root: Path, stage: str, log: Path, keep: bool) -> None:
    """In a process of its own: runs tests of the copy, what they print goes to ``log``."""
    os.setsid()  # so that what they start is ended with them
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = not keep  # two mutants made in one second would be taken for the same
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import esim_fast

    if Path(esim_fast.__file__).parents[1] != root:
        sys.exit(f"{esim_fast.__file__} is imported, and not the copy in {root}")
    # That a test fails is enough: the example need be neither small nor known to the next mutant. tests/conftest.py
    # builds upon this.
    settings.register_profile("mutants", database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")
    sys.exit(pytest.main([*_PYTEST, *shlex.split(stage)]))


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _compare_python(text: str, changed: str) -> str | None:
    try:
        made = compile(changed, "mutant", "exec")
    except SyntaxError:
        return NO_CODE
    return SAME_CODE if _code(made) == _code(compile(text, "mutant", "exec")) else None


def _code(code: CodeType) -> tuple:
    """What a compiled source does, without where in the text it stood."""
    constants = [_code(of) if isinstance(of, CodeType) else repr(of) for of in code.co_consts]
    return (code.co_code, code.co_names, code.co_varnames, constants)

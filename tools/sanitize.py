"""Run the ops' tests under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tools.sanitize [--quick] [pytest arguments ...]

Builds the extension with GCC's sanitizers in a copy of the sources and runs the ops' tests there, for this processor,
for AVX2, and without AVX2 and AVX-512. First it plants errors in csrc/ and checks that they are found. The exit code is
1 if a sanitizer finds something or a test fails. ``--quick`` is for every push: it skips the other processors, threads
and data loaders, most large addresses, and the models built from the ops.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from esim_fast.cli.options import Parser

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("esim_fast", "csrc", "tests", "benchmarks", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# These come after all other flags and override -O3 and -g0 from setup.py, and -fwrapv, which hides overflows, from
# Pythons that were built with it.
CHECKS = "address,undefined,float-cast-overflow"
FLAGS = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv", "-D_GLIBCXX_ASSERTIONS"),
    *(f"-fsanitize={CHECKS}", f"-fno-sanitize-recover={CHECKS.removeprefix('address,')}"),
)
OPTIONS = {
    # Python and torch are not instrumented and never free some memory; torch rejects tensors that are too large itself.
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:abort_on_error=1:allocator_may_return_null=1:"
    "detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
REPORT = re.compile(r"runtime error: .*|ERROR: AddressSanitizer: .*|Assertion '.*' failed")

# Files in tests/.
QUICK = (
    *("ops/test_direct_calls.py", "ops/test_operators.py", "ops/test_row_addresses.py", "ops/test_masked_pool.py"),
    *("ops/test_masked_pool_cuda.py", "ops/test_local_inference.py", "ops/test_local_inference_integration.py"),
    *("ops/test_bilstm.py", "ops/test_int8.py", "test_packed.py", "test_layers.py"),
)
FULL = (*QUICK, "test_model.py", "ops/test_threads.py", "ops/test_memory_safety.py")
# Without masked_pool, which ignores ATEN_CPU_CAPABILITY.
OTHER_PROCESSORS = ("ops/test_direct_calls.py", "ops/test_local_inference.py", "ops/test_bilstm.py", "ops/test_int8.py")
# Not for sanitizers: tests that start compilers, Triton's kernels (they are not in the extension), tests that start
# processes (fresh ones, or with another processor's code), 4 GiB of results, a lack of memory, where sanitizers abort,
# and a deliberate error.
LEFT_OUT = (
    *("compile", "triton", "kind_of_processor", "other_processors", "spawn", "forkserver", "written_as_a_whole"),
    *("too_little_memory", "misaligned_rows"),
)

EMBEDDING = "csrc/embedding_cpu.cpp"
PLANTED = {  # an expected report, and the change of EMBEDDING that causes it
    "AddressSanitizer: heap-buffer-overflow": ("rows + n * width", "rows + (n + 1) * width"),
    "signed integer overflow": ("words = table.size(0);", "words = table.size(0) + (INT64_MAX + count);"),
}


class Run(NamedTuple):
    """A run of tests: the number of each outcome, and what sanitizers reported."""

    counts: dict[str, int]
    findings: list[str]
    output: str
    seconds: float

    @property
    def clean(self) -> bool:
        return not self.findings and not self.counts.keys() & {"failed", "error", "errors"} and "passed" in self.counts


def compiler(parser: Parser) -> str:
    """The name of GCC; Clang preloads its sanitizers differently."""
    name = os.environ.get("CXX") or "g++"
    if shutil.which(name) is None:
        parser.error(f"{name} not found: install GCC (Debian and Ubuntu: apt-get install g++) or set CXX")
    for library in libraries(name):
        if not Path(library).is_absolute():
            parser.error(f"{name} has no {library}: sanitizers need GCC with its sanitizer libraries")
    return name


def libraries(compiler: str) -> list[str]:
    """Libraries to preload, with libstdc++ so that the sanitizer can intercept exceptions."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    asking = [f"-print-file-name={name}" for name in names]
    found = [subprocess.run([compiler, asked], capture_output=True, text=True).stdout.strip() for asked in asking]
    return [path or name for path, name in zip(found, names, strict=True)]


def build(tree: Path, compiler: str) -> float:
    """Build in place what has changed; return the seconds it took."""
    wrapper = tree / "compiler"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {" ".join(FLAGS)}\n', encoding="utf-8")
    wrapper.chmod(0o755)
    begin = time.perf_counter()
    environment = {**os.environ, "CXX": str(wrapper), "ESIM_FAST_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\nsanitize: the extension does not build")
    return time.perf_counter() - begin


def run_tests(
    tree: Path, compiler: str, files: tuple[str, ...], arguments: list[str], processor: str | None = None
) -> Run:
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": ":".join(libraries(compiler)), "PYTHONPATH": str(tree)}
    environment["CXX"] = str(tree / "compiler")  # a test compiles the CUDA kernels for the CPU
    if processor:
        environment["ATEN_CPU_CAPABILITY"] = processor
    selected = ["-m", "not interpreter and not gpu", "-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    # --capture=sys lets reports reach stderr, because pytest is aborted before it could show them.
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *selected, *arguments]
    command += [f"tests/{name}" for name in files]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, errors="replace")
    output = done.stdout + done.stderr
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)\b", output)}
    if done.returncode and "failed" not in counts:  # aborted, by a sanitizer or not
        counts["failed"] = 1
    return Run(counts, REPORT.findall(output), output, time.perf_counter() - begin)


def plant(tree: Path, compiler: str, wanted: str) -> None:
    """Plant an error in the C++ and exit unless it is reported as ``wanted``."""
    source = tree / EMBEDDING
    original = source.read_text(encoding="utf-8")
    right, wrong = PLANTED[wanted]
    if original.count(right) != 1:
        sys.exit(f"sanitize: {EMBEDDING} no longer has {right!r}, where an error is planted")
    source.write_text(original.replace(right, wrong), encoding="utf-8")
    build(tree, compiler)
    run = run_tests(tree, compiler, ("test_layers.py",), ["-k", "opcheck"])
    source.write_text(original, encoding="utf-8")
    if not any(wanted in finding for finding in run.findings):
        sys.exit(f"{run.output[-3000:]}\nsanitize: a planted error was not found: {wanted}")
    print(f"planted and found: {wanted}", flush=True)


def main() -> int:
    parser = Parser(prog="python -m tools.sanitize", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the ops' own tests, on this processor")
    options, arguments = parser.parse_known_args()
    cxx = compiler(parser)
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    clean = True
    with tempfile.TemporaryDirectory(prefix="sanitize-") as folder:
        tree = Path(folder)
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            hidden = {"ignore": shutil.ignore_patterns("*.so", "__pycache__")} if copy is shutil.copytree else {}
            copy(ROOT / name, tree / name, **hidden)
        for wanted in list(PLANTED)[: 1 if options.quick else None]:
            plant(tree, cxx, wanted)
        print(f"rebuilt without it in {build(tree, cxx):.0f} s, {version}, {' '.join(FLAGS)}", flush=True)
        todo: dict[str, tuple[tuple[str, ...], str | None]] = {"this one": (QUICK if options.quick else FULL, None)}
        if not options.quick and platform.machine() == "x86_64":
            todo |= {name: (OTHER_PROCESSORS, name) for name in ("avx2", "default")}
        for name, (files, processor) in todo.items():
            run = run_tests(tree, cxx, files, arguments, processor)
            counts = ", ".join(f"{count} {word}" for word, count in run.counts.items())
            print(f"processor {name}: {counts}, {len(run.findings)} findings in {run.seconds:.0f} s", flush=True)
            clean &= run.clean
            if not run.clean:
                at = REPORT.search(run.output)
                print(run.output[at.start() :][:4000] if at else run.output[-4000:])
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())

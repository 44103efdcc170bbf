"""Fuzz everything that reads files, with atheris and coverage guidance.

    python -m tools.fuzz [--runs N | --total N] [--target NAME ...] [--seconds S] [--seed N]

Each target of tests/untrusted/fuzz_targets.py starts from valid files and runs in a separate process, with limits on
memory and on the time per input. Inputs that break a target are saved in tests/untrusted/crashes/TARGET/, and
tests/untrusted/test_files.py replays them from then on. The exit code is 1 if an input broke a target and 2 if atheris
(pip install 'atheris>=2.3,<4') is not installed.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import atheris
except ImportError:
    atheris = None
# Coverage is recorded only if the first import of esim_fast is instrumented.
with atheris.instrument_imports(include=["esim_fast"]) if atheris else contextlib.nullcontext():
    from esim_fast.cli.options import Parser, count
    from tests.untrusted import fuzz_targets

CRASHES = Path(__file__).parents[1] / "tests" / "untrusted" / "crashes"
_MEMORY = 2048  # MiB of a process, of which PyTorch takes 400
_PATIENCE = 10  # seconds per input
_LONGEST = 16384  # most bytes of an input
_CRASH = ("crash-", "timeout-", "oom-")


def main() -> int:
    parser = Parser(prog="python -m tools.fuzz", description="Fuzzes everything that reads files.")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--runs", type=count, default=300, metavar="N", help="runs of each target (default 300)")
    amount.add_argument("--total", type=count, metavar="N", help="runs of all targets together")
    parser.add_argument("--target", nargs="+", metavar="NAME", help="fuzz only these targets")
    parser.add_argument("--seconds", type=count, default=3600, metavar="S", help="most seconds of a target")
    parser.add_argument("--seed", type=count, default=1, metavar="N", help="random seed (default 1)")
    options = parser.parse_args()
    if atheris is None:
        parser.exit(2, f"{parser.prog}: needs atheris: pip install 'atheris>=2.3,<4'\n")
    chosen = options.target or list(fuzz_targets.TARGETS)
    for name in chosen:
        if name not in fuzz_targets.TARGETS:
            parser.error(f"expected a target among {', '.join(fuzz_targets.TARGETS)}, got {name!r}")
    runs = -(-options.total // len(chosen)) if options.total else options.runs
    total = crashes = 0
    for name in chosen:
        figures = _fuzz(name, runs, options.seconds, options.seed)
        total, crashes = total + figures["runs"], crashes + figures["crashes"]
        print(", ".join(f"{figure} {value}" for figure, value in {"target": name, **figures}.items()), flush=True)
    print(f"{total} runs of {len(chosen)} targets, {crashes} crashes")
    return 1 if crashes else 0


def _fuzz(name: str, runs: int, seconds: int, seed: int) -> dict[str, float]:
    """Run one target in a child process, because libFuzzer ends its process.

    Returns:
        Runs, seconds, new crashes, crashes kept from earlier runs (also used as seeds), and branches covered.
    """
    inputs = Path(tempfile.mkdtemp())
    for number, content in enumerate(fuzz_targets.seeds(name)):
        (inputs / f"seed-{number}").write_bytes(content)
    pieces = inputs.with_suffix(".dict")
    pieces.write_text("".join(f'"{_escaped(piece)}"\n' for piece in fuzz_targets.PIECES))
    crashes = CRASHES / name
    before = _crashes(crashes)
    for kept in before:
        shutil.copy(crashes / kept, inputs)
    arguments = {
        "runs": runs,
        "max_total_time": seconds,
        "seed": seed,
        "rss_limit_mb": _MEMORY,
        "timeout": _PATIENCE,
        "max_len": _LONGEST,
        "dict": pieces,
        "artifact_prefix": f"{crashes}/",
        "print_final_stats": 1,
    }
    crashes.mkdir(parents=True, exist_ok=True)
    begin, log = time.perf_counter(), inputs.with_suffix(".log")
    child = os.fork()
    if not child:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        atheris.Setup(
            ["fuzz", *(f"-{key}={value}" for key, value in arguments.items()), str(inputs)],
            fuzz_targets.TARGETS[name],
        )
        atheris.Fuzz()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    said = log.read_text(errors="replace")
    new = _crashes(crashes) - before
    if status:
        print("\n".join(line[:300] for line in said.splitlines() if not line.startswith(("#", "INFO")))[-3000:])
    done = re.findall(r"stat::number_of_executed_units: *(\d+)", said) or re.findall(r"^#(\d+)", said, re.MULTILINE)
    covered = re.findall(r"\bcov: (\d+)", said)
    shutil.rmtree(inputs)
    log.unlink()
    pieces.unlink()
    if not before and not new:
        crashes.rmdir()
    return {
        "runs": int(done[-1]) if done else 0,
        "seconds": round(time.perf_counter() - begin, 1),
        "crashes": len(new) or int(status != 0),
        "kept": len(before),
        "coverage": int(covered[-1]) if covered else 0,
    }


def _escaped(piece: str) -> str:
    """Escape a string for a libFuzzer dictionary."""
    return "".join(f"\\x{byte:02x}" for byte in piece.encode())


def _crashes(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*") if path.name.startswith(_CRASH)}


if __name__ == "__main__":
    sys.exit(main())

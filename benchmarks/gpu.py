"""Test and benchmark the library on an NVIDIA GPU, the most important parts first.

    python -m benchmarks.gpu [--minutes 8] [--out DIR] [--parts NAME ...] [--changed] [--dry-run]

Each part runs in a process and writes its log and its JSON to DIR; run.json records how it ended. At the end,
verdicts.md compares what was measured with the targets (benchmarks/verdicts.py). The exit code is 1 if a part failed;
a missed target is no failure. --changed repeats those parts of the run in DIR whose files have changed since or that
did not end well, except the sweep: first what is timed, the shortest first, then tests. --dry-run tries everything
once, at a small size, without a GPU.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import measure, report, verdicts
from esim_fast import build_info
from esim_fast.cli.options import Parser, UsageError, rate
from esim_fast.files import write_json
from tools.sanitize_cuda import NOT_THERE

ROOT = Path(__file__).resolve().parents[1]
# A part may take this many times its estimate. It is not started with fewer than LEAST seconds left, and has PATIENCE
# seconds to end after an interrupt.
SLACK, LEAST, PATIENCE = 1.5, 15.0, 10.0


class Part(NamedTuple):
    """A part of the run.

    Attributes:
        seconds: an estimate; none of these has been measured yet. None: as long as there is time.
        command: the command line after python -m.
        sources: what its result depends on, besides benchmarks/measure.py; patterns of files.
    """

    seconds: float | None
    command: str
    sources: str


EVERYTHING = "esim_fast/**/*.py csrc/*"
KERNELS = "esim_fast/ops/**/*.py csrc/*"
LOCAL_INFERENCE = "esim_fast/ops/local_inference.py " + " ".join(
    f"esim_fast/ops/triton/{module}.py"
    for module in ("arguments", "local_inference", "many_tiles", "on_chip", "one_tile", "runtime", "tokens")
)
BILSTM = (
    "esim_fast/ops/bilstm.py esim_fast/ops/persistent.py esim_fast/ops/triton/bilstm.py "
    "esim_fast/ops/triton/lstm_weights.py csrc/bilstm_cuda*"
)
STEPS = f"{EVERYTHING} benchmarks/captured_steps.py benchmarks/baselines.py benchmarks/models.py benchmarks/corpus.py"
OPS = "benchmarks/conftest.py benchmarks/baselines.py benchmarks/corpus.py"
# The most important first; training with the CUDA BiLSTM, which has never run on a GPU, comes late. By the estimates,
# tests and sanitizer together take 100 seconds, and everything up to the sweep 405, which leaves the sweep 75 of 8
# minutes.
PARTS = {
    "tests": Part(100, "pytest -m gpu {workers} tests", f"{EVERYTHING} tests/**/*.py"),
    "sanitizer": Part(100, "tools.sanitize_cuda {dry} --json {json}", f"{KERNELS} tools/sanitize_cuda.py"),
    "ceilings": Part(10, "benchmarks.ceilings {dry} --json {json}", "benchmarks/ceilings.py"),
    "captured": Part(100, "benchmarks.captured_steps {dry} --json {json}", STEPS),
    "bilstm": Part(25, "benchmarks.bilstm_steps {dry} --json {json}", f"{BILSTM} benchmarks/bilstm_steps.py"),
    "local_inference": Part(
        50,
        "pytest benchmarks/test_local_inference.py {quick} -k 'bf16 and device and (notebook or compile or packed)'",
        f"{LOCAL_INFERENCE} {OPS} benchmarks/test_local_inference.py",
    ),
    "masked_pool": Part(
        15,
        "pytest benchmarks/test_masked_pool.py {quick} -k device",
        f"esim_fast/ops/masked_pool.py csrc/masked_pool* csrc/rows.h {OPS} benchmarks/test_masked_pool.py",
    ),
    "epoch": Part(60, "benchmarks.epoch {dry} --json {json}", f"{STEPS} benchmarks/epoch.py"),
    "captured-cuda": Part(45, "benchmarks.captured_steps --backend cuda {dry} --json {json}", STEPS),
    "sweep": Part(None, "benchmarks.sweep {dry} --minutes {minutes} --json {json}", LOCAL_INFERENCE),
    "captured-fp32": Part(55, "benchmarks.captured_steps --precisions fp32 {dry} --json {json}", STEPS),
}
DEFAULT = [name for name in PARTS if name != "captured-fp32"]
UNTIMED = ["tests", "sanitizer"]  # run at the same time
# Parts with figures in report.md.
REPORTED = ["captured", "captured-cuda", "captured-fp32", "local_inference", "masked_pool"]


def digest(part: Part) -> str:
    """A digest of the part's command and of the files that its result depends on."""
    found = hashlib.sha256(part.command.encode())
    for pattern in ["benchmarks/measure.py", *part.sources.split()]:
        for file in sorted(ROOT.glob(pattern)):
            found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def changed(before: dict[str, dict]) -> list[str]:
    """The parts of a run that are out of date."""
    good = verdicts.DONE, verdicts.NO_SANITIZER
    done = {name: part["digest"] for name, part in before.items() if part["outcome"] in good}
    return [name for name in DEFAULT if name != "sweep" and done.get(name) != digest(PARTS[name])]


def stages(chosen: Sequence[str], untimed_last: bool) -> list[list[str]]:
    """The parts in their order; those of one list, which are not timed, run at the same time."""
    untimed = [name for name in PARTS if name in chosen and name in UNTIMED]
    timed = [[name] for name in PARTS if name in chosen and name not in UNTIMED]
    if untimed_last:  # and the timed ones from the shortest to the longest
        return [*sorted(timed, key=lambda names: PARTS[names[0]].seconds or 0), untimed]
    return [untimed, *timed]


def arguments_of(part: Part, result: Path, left: float, dry_run: bool) -> list[str]:
    """The command line after python -m."""
    file = shlex.quote(str(result))
    values = {
        "dry": "--dry-run" if dry_run else "",
        "json": file,
        "minutes": max(0.5, left / 60 - 0.5),
        "quick": "--benchmark-disable" if dry_run else f"--benchmark-max-time=0.4 --benchmark-json={file}",
        "workers": f"-n {min(12, os.cpu_count() or 1)}" if find_spec("xdist") else "",
    }
    return shlex.split(part.command.format(**values))


@contextmanager
def started(name: str, folder: Path, left: float, dry_run: bool) -> Iterator[Callable[[], str]]:
    """Start a part; yields a function that waits for its end and returns how it ended."""
    part = PARTS[name]
    limit = min(left, SLACK * (part.seconds or left)) if not dry_run else left
    result, log_file = folder / f"{name}.json", folder / f"{name}.log"
    if left < LEAST:
        yield lambda: "not started: out of time" + ("; its figures are of an earlier run" if result.exists() else "")
        return
    result.unlink(missing_ok=True)
    command, begin = [sys.executable, "-m", *arguments_of(part, result, left, dry_run)], time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def outcome() -> str:
        try:
            code = process.wait(begin + limit - time.monotonic())
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            return f"failed: takes more than {limit:.0f} s" if limit < left else "interrupted: out of time"
        if (name, code) == ("sanitizer", NOT_THERE):
            return verdicts.NO_SANITIZER
        if (name, code) == ("tests", 0) and not re.search(rb"\b[1-9]\d* passed\b.* in ", log_file.read_bytes()):
            return "skipped: no test passed"
        return f"failed: exit code {code}" if code else verdicts.DONE

    try:
        yield outcome
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left of it
        process.wait()


def wait(outcome: Callable[[], str], begin: float) -> dict[str, object]:
    """How a part ended, and how long it took."""
    return {"outcome": outcome(), "seconds": round(time.monotonic() - begin, 1)}


def run_before(folder: Path) -> dict[str, dict]:
    """How the parts of the run in the folder ended."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))["parts"]
    except OSError as error:
        raise UsageError(f"{folder / 'run.json'}: {error.strerror}; run without --changed first") from error


def main() -> int:
    parser = Parser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=rate, default=8.0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<GPU>-<date>")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--parts", nargs="+", choices=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    which.add_argument("--changed", action="store_true", help="parts of the run in DIR that are out of date")
    parser.add_argument("--dry-run", action="store_true", help="on a machine without a GPU")
    options, on_gpu = parser.parse_args(), torch.cuda.is_available()
    if on_gpu == options.dry_run:
        parser.error("there is a GPU here" if on_gpu else "there is no NVIDIA GPU here (--dry-run needs none)")
    architecture = ".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else ""
    if on_gpu and architecture not in {name.removesuffix("+PTX") for name in build_info()["cuda"]}:
        parser.error(f"the extension has no code for this GPU (TORCH_CUDA_ARCH_LIST={architecture} pip install .)")
    name = f"{torch.cuda.get_device_name() if on_gpu else 'dry run'} {date.today()}".lower().replace(" ", "-")
    folder, end = (options.out or report.RESULTS / name).resolve(), time.monotonic() + 60 * options.minutes
    os.environ["ESIM_FAST_DRY_RUN"] = str(int(options.dry_run))
    try:
        ended = run_before(folder) if options.changed else {}
        chosen = changed(ended) if options.changed else options.parts or DEFAULT
        folder.mkdir(parents=True, exist_ok=True)
        for together in stages(chosen, untimed_last=options.changed):
            begin, digests = time.monotonic(), {name: digest(PARTS[name]) for name in together}
            with ExitStack() as stack:
                waiting = stack.enter_context(ThreadPoolExecutor())  # left last, when all parts have ended
                how = folder, end - begin, options.dry_run
                outcomes = {name: stack.enter_context(started(name, *how)) for name in together}
                endings = {name: waiting.submit(wait, outcome, begin) for name, outcome in outcomes.items()}
                for name, ending in endings.items():
                    found = ending.result()
                    ended[name] = {**found, "digest": digests[name]}
                    print(f"{name}: {found['outcome']}, {found['seconds']} s", flush=True)
                    write_json(folder / "run.json", {**measure.machine(), "dry_run": options.dry_run, "parts": ended})
        print(verdicts.write(folder))
        files = [file for name in REPORTED if (file := folder / f"{name}.json").exists()]
        try:
            print(report.write(files, folder) if files else f"{folder}: no benchmark finished")
        except UsageError as error:
            print(f"there is no report: {error}")
    except (OSError, UsageError) as error:
        parser.error(str(error))
    return 1 if any(ended[name]["outcome"].startswith("failed") for name in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())

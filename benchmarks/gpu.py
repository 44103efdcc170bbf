"""Test and benchmark the library on an NVIDIA GPU, the most important parts first.

    python -m benchmarks.gpu [--minutes 30] [--out DIR] [--parts NAME ...] [--dry-run]

Each part runs in a process and writes its log and its JSON to DIR; run.json records how it ended. The exit code is 1 if
a part failed. --dry-run tries everything once, at a small size, without a GPU.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks import measure, report
from esim_fast import build_info
from esim_fast.cli.options import Parser, UsageError, rate
from esim_fast.files import write_json

ROOT = Path(__file__).resolve().parents[1]
LIMIT, LEAST, PATIENCE = 480.0, 15.0, 10.0  # seconds of a part: at most, at least, and to end after an interrupt
# The most important first. Each benchmark is a file and a -k, because pytest-benchmark writes its JSON at the end.
ORDER = """tests sanitizer bilstm masked_pool-bf16 local_inference-bf16 bilstm-bf16
training-32-bf16 training-512-bf16 inference-32-bf16 inference-512-bf16 end_to_end-bf16
bilstm-tf32 training-32-tf32 training-512-tf32 inference-32-tf32 inference-512-tf32
masked_pool-fp32 local_inference-fp32 bilstm-fp32 training-32-fp32 inference-32-fp32 inference-cross_encoders
training-1024-bf16 inference-1024-bf16 inference-1-bf16 sweep"""
PARTS = ORDER.split()


def arguments_of(part: str, dry_run: bool) -> str:
    """The command line after python -m."""
    dry, how = ("--dry-run", "disable") if dry_run else ("", "json={json}")
    workers = f"-n {min(12, os.cpu_count() or 1)}" if find_spec("xdist") else ""
    name, _, which = part.partition("-")
    others = {
        "tests": f"pytest -m gpu {workers} tests",
        "sanitizer": f"tools.sanitize_cuda {dry} --json {{json}}",
        "bilstm": f"benchmarks.bilstm_steps {dry} --json {{json}}",
        "sweep": f"benchmarks.sweep {dry} --minutes {{minutes}} --json {{json}}",
    }
    return others.get(part, f"pytest benchmarks/test_{name}.py -k {which} --benchmark-{how}")


def run(name: str, arguments: str, folder: Path, left: float) -> str:
    """Run a part and return how it ended."""
    limit = left if name == "sweep" else min(left, LIMIT)  # the sweep gets its limit as an option
    if left < LEAST:
        return "not started: out of time"
    (json := folder / f"{name}.json").unlink(missing_ok=True)  # from an earlier run
    values = {"json": json, "minutes": max(0.5, left // 60 - 1)}
    command = [sys.executable, "-m", *(argument.format(**values) for argument in arguments.split())]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            return f"failed: takes more than {limit:.0f} s" if limit < left else "interrupted: out of time"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its remaining children
            process.wait()
    outcome = f"failed: exit code {process.returncode}" if process.returncode else "done"
    return "skipped: no working compute-sanitizer" if (name, process.returncode) == ("sanitizer", 3) else outcome


def main() -> int:
    parser = Parser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=rate, default=30.0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<GPU>-<date>")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--dry-run", action="store_true", help="on a machine without a GPU")
    options, on_gpu = parser.parse_args(), torch.cuda.is_available()
    if on_gpu == options.dry_run:
        parser.error("there is a GPU here" if on_gpu else "there is no NVIDIA GPU here (--dry-run needs none)")
    architecture = ".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else ""
    if on_gpu and architecture not in {name.removesuffix("+PTX") for name in build_info()["cuda"]}:
        parser.error(f"the extension has no code for this GPU (TORCH_CUDA_ARCH_LIST={architecture} pip install .)")
    name = f"{torch.cuda.get_device_name() if on_gpu else 'dry run'} {date.today()}".lower().replace(" ", "-")
    folder, end, ended = (options.out or report.RESULTS / name).resolve(), time.monotonic() + 60 * options.minutes, {}
    os.environ["ESIM_FAST_DRY_RUN"] = str(int(options.dry_run))
    chosen = {name: arguments_of(name, options.dry_run) for name in PARTS if name in options.parts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, arguments in chosen.items():
            begin = time.monotonic()
            outcome = run(name, arguments, folder, end - begin)
            ended[name] = {"outcome": outcome, "seconds": round(time.monotonic() - begin, 1), "arguments": arguments}
            print(f"{name}: {outcome}, {ended[name]['seconds']} s", flush=True)
            write_json(folder / "run.json", {**measure.machine(), "dry_run": options.dry_run, "parts": ended})
        files = [file for file in sorted(folder.glob("*-*.json")) if file.stat().st_size]  # unfinished ones are empty
        print(report.write(files, folder) if files else f"{folder}: no benchmark finished")
    except (OSError, UsageError) as error:
        parser.error(str(error))
    return 1 if any(part["outcome"].startswith("failed") for part in ended.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

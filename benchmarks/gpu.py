"""Tests and measures all of the library on a GPU, in one command, what matters most first.

    python -m benchmarks.gpu [--minutes N] [--out DIR] [--parts NAME ...] [--dry-run]

run in the repository's root with the library and the test dependencies installed. If the installed extension has no
code for this GPU, one is built into DIR. Then come the tests that need a GPU, the kernels under compute-sanitizer, the
ceilings of the device, and what is held against them: ops, training steps, an epoch of SNLI's size, a step taken apart,
what it could be made of instead, the LSTM, inference, and the kernels' launch tables. When the time is up, the
running part is interrupted and the rest is left out. Every part writes its JSON and its log into DIR as it goes on;
runs into the same DIR add to each other. At the end DIR has report.md with plots, and summary.md, which is printed,
too: the aims, and what was reached. The exit code is 1 if a test or a part failed.

``--dry-run``, on a machine without a GPU, tries all of it on the CPU with small shapes: no figure means anything then.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import report, targets
from benchmarks.command import Parser, positive_number
from benchmarks.timing import environment, hardware, today

ROOT = Path(__file__).resolve().parents[1]
NOT_THERE = 3  # sanitize_cuda's exit code where there is no compute-sanitizer that works
PATIENCE = 10.0  # seconds that an interrupted part has to end
RESERVE = 20.0  # seconds for summary and report
RUN = "run.json"


class Part(NamedTuple):
    """A command of this repository: arguments for Python, where JSON stands for the file of its figures.

    Attributes:
        least: minutes that must be left for it to begin.
        most: minutes after which it is interrupted, so that a part that hangs does not take all the time.
    """

    name: str
    arguments: list[str]
    least: float = 0.25
    most: float = 10.0


JSON, MINUTES = "{json}", "{minutes}"


def parts(dry_run: bool) -> list[Part]:
    """What matters most first."""
    once = ["--once"] if dry_run else []
    workers = ["-n", str(min(12, os.cpu_count() or 1))] if find_spec("xdist") else []
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]

    def benchmark(name: str, files: str, *options: str, least: float = 0.25) -> Part:
        paths = [f"benchmarks/test_{file}.py" for file in files.split()]
        return Part(name, [*pytest, *paths, *options, *once, "--json", JSON], least)

    def epoch(batch_size: int, precision: str) -> Part:
        few = ["--pairs", "320"] if dry_run else []
        options = ["--batch-size", str(batch_size), "--precision", precision, *few]
        return Part(f"epoch-{batch_size}-{precision}", ["-m", "benchmarks.epoch", *options, "--json", JSON], 0.5)

    def step(batch_size: int, precision: str) -> Part:
        how = ["--precision", "fp32", "--tf32"] if precision == "tf32" else ["--precision", precision]
        few = ["--rounds", "1"] if dry_run else []
        options = ["--batch-size", str(batch_size), *how, *few]
        return Part(f"step-{batch_size}-{precision}", ["-m", "benchmarks.anatomy", *options, "--json", JSON])

    dry = ["--dry-run"] if dry_run else []
    training = ["-k", "SNLI-32" if dry_run else "SNLI-32 or SNLI-512"]
    return [
        Part("tests", [*pytest, "-m", "gpu", *workers, "tests"], most=6.0),
        benchmark("waits", "training", "-k", "does_not_wait"),
        Part("sanitizer", ["-m", "tools.sanitize_cuda", *dry, "--json", JSON], most=4.0),
        benchmark("ceilings", "ceilings"),
        benchmark("ops", "masked_pool local_inference", least=0.5),
        benchmark("training", "training", "--eager", *training, least=0.5),
        epoch(32, "bf16"),
        step(32, "bf16"),
        step(512, "bf16"),
        epoch(512, "bf16"),
        step(32, "tf32"),
        step(512, "tf32"),
        benchmark("choices", "choices"),
        benchmark("layers", "encoder projection", least=0.5),
        benchmark("inference", "inference", *(["-k", "SNLI-32"] if dry_run else []), least=0.5),
        epoch(32, "fp32"),
        # The same once more: a network that is compiled takes more than a minute before its first step.
        *([] if dry_run else [benchmark("training-compiled", "training", *training, least=2.0)]),
        Part("sweep", ["-m", "benchmarks.sweep", *dry, "--minutes", MINUTES, "--json", JSON], 2.0),
        *([] if dry_run else [benchmark("training-at-other-sizes", "training", "-k", "128 or 1024 or MultiNLI")]),
        benchmark("growth", "growth"),
    ]


class Run:
    """A run into a folder, part by part, until the time is up."""

    def __init__(self, folder: Path, minutes: float, dry_run: bool) -> None:
        self.folder, self.dry_run, self.failed = folder, dry_run, False
        self.end = time.monotonic() + 60 * minutes
        self.environment = dict(os.environ)
        if dry_run:
            self.environment["ESIM_FAST_DRY_RUN"] = "1"
        self.record: dict[str, Any] = {"environment": environment(), "hardware": hardware(), "parts": {}}
        if (folder / RUN).exists():
            self.record["parts"] = json.loads((folder / RUN).read_text(encoding="utf-8"))["parts"]
        self.record |= {"date": today(), "commit": _commit(), "dry_run": dry_run}

    @property
    def seconds_left(self) -> float:
        return self.end - RESERVE - time.monotonic()

    def build(self) -> bool:
        """If the installed extension has no code for this GPU, builds one into the folder, where all parts find it."""
        architecture = ".".join(map(str, torch.cuda.get_device_capability()))
        built = self.folder / "installed"
        code = "import esim_fast; print('built for', *esim_fast.build_info()['cuda'])"
        for path in ("", str(built)):
            self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))
            found = subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, env=self.environment, capture_output=True, text=True
            )
            if found.returncode == 0 and architecture in found.stdout.replace("+PTX", "").split():
                return True
        variables = {"TORCH_CUDA_ARCH_LIST": architecture, "ESIM_FAST_CUDA": "1"}
        options = ["--no-build-isolation", "--no-deps", "--upgrade", "--target", str(built)]
        command = [sys.executable, "-m", "pip", "install", "-q", *options, str(ROOT)]
        self._run("build", command, self.environment | variables, 300.0)
        return not self.failed

    def run(self, part: Part) -> None:
        if self.seconds_left < 60 * part.least:
            print(f"== {part.name}: not begun, the time is up", flush=True)
            if part.name not in self.record["parts"]:
                self._note(part.name, {"outcome": "not begun: the time was up"})
            return
        seconds, file = min(60 * part.most, self.seconds_left), self.folder / f"{part.name}.json"
        file.unlink(missing_ok=True)  # of a run before this one
        # A part that is told its minutes ends by itself a little earlier.
        values = {JSON: str(file), MINUTES: f"{max(0.5, seconds / 60 - 1):.1f}"}
        command = [sys.executable, *(values.get(argument, argument) for argument in part.arguments)]
        self._run(part.name, command, self.environment, seconds)

    def _run(self, name: str, command: list[str], environment: dict[str, str], seconds: float) -> None:
        print(f"== {name}: {' '.join(command[1:])} ({self.seconds_left:.0f} s left)", flush=True)
        begin = time.monotonic()
        with (self.folder / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            stopped = _wait(process, max(1.0, seconds))
        code = process.returncode
        if stopped:
            outcome = "interrupted: the time was up"
        elif code == NOT_THERE and name == "sanitizer":
            outcome = "left out: compute-sanitizer is not there or does not work"
        else:
            outcome = "done" if code == 0 else f"failed: exit code {code}"
        took = round(time.monotonic() - begin, 1)
        self.failed |= outcome.startswith("failed")
        self._note(name, {"outcome": outcome, "seconds": took, "command": command[1:]})
        print(f"   {outcome}, {took:.0f} s: {_last_line(self.folder / f'{name}.log')}", flush=True)

    def _note(self, name: str, part: dict[str, Any]) -> None:
        self.record["parts"][name] = part
        (self.folder / RUN).write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")


def _wait(process: subprocess.Popen, seconds: float) -> bool:
    """Waits, and interrupts a process that takes longer, leaving it time to write what it has; whether it did."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        pass
    finally:
        # On a KeyboardInterrupt, too.
        for sent in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sent)
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    continue
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:160] if lines else "nothing printed"


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def summary(folder: Path, record: dict[str, Any]) -> str:
    """What was aimed at and what was reached, and how each part ended, from all that the folder holds."""
    measured, epochs = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # cut off while it was written
            continue
        measured += found.get("measured", []) if file.name != "results.json" else []
        if file.name.startswith("epoch-"):
            epochs.append(found)
    lines = [f"# {record['hardware']}, {record['date']}", "", record["environment"], ""]
    if record["dry_run"]:
        lines += ["**A dry run on the CPU: no figure here means anything.**", ""]
    if any(
        name in ("tests", "waits", "sanitizer") and part["outcome"] != "done" for name, part in record["parts"].items()
    ):
        lines += ["**Correctness is not settled: see the first parts below.**", ""]
    lines += [
        *targets.table(targets.targets(measured, epochs)),
        "",
        "| part | outcome | seconds |",
        "| --- | --- | ---: |",
    ]
    for name, part in record["parts"].items():
        lines.append(f"| {name} | {part['outcome']} | {part.get('seconds', '')} |")
    for log in sorted([*folder.glob("epoch-*.log"), *folder.glob("step-*.log")]):
        lines += ["", f"## {log.stem}", "", "```", log.read_text(encoding="utf-8", errors="replace").strip(), "```"]
    return "\n".join(lines) + "\n"


def write_report(folder: Path) -> str | None:
    """Writes tables and plots of all comparisons; returns why, if it cannot."""
    try:
        runs = [
            report.read(file)
            for file in sorted(folder.glob("*.json"))
            if file.name != "results.json" and "measured" in json.loads(file.read_text(encoding="utf-8"))
        ]
        if runs:
            report.write(report.merged(runs), folder)
    except (report.ReportError, OSError, ValueError) as error:
        return str(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=positive_number, default=30.0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<GPU>-<date>")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="these alone, of those that it lists otherwise")
    parser.add_argument("--dry-run", action="store_true", help="on a machine without a GPU")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    if on_gpu == options.dry_run:
        parser.error(
            "--dry-run: there is a GPU here" if on_gpu else "there is no NVIDIA GPU here (--dry-run needs none)"
        )
    chosen = parts(options.dry_run)
    names = [part.name for part in chosen]
    if unknown := set(options.parts or ()) - set(names):
        parser.error(f"--parts: no part is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [part for part in chosen if not options.parts or part.name in options.parts]
    folder = (options.out or report.RESULTS / f"{report.slug(hardware())}-{today()}").resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(folder, options.minutes, options.dry_run)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--out {folder}: {error}")
    print(f"{run.record['environment']}\n{options.minutes:g} minutes, into {folder}", flush=True)
    if on_gpu and not run.build():
        print((folder / "build.log").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
        return 1
    try:
        for part in chosen:
            run.run(part)
    except KeyboardInterrupt:
        print("interrupted: the other parts are left")
    text = summary(folder, run.record)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    if problem := write_report(folder):
        print(f"no report: {problem}")
    print(f"\n{text}\n{folder}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())

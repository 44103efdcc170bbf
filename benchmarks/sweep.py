"""Times launch configurations of the Triton kernels on a GPU, and prints the best as lines for the launch tables.

    python -m benchmarks.sweep [--kernels forward ...] [--minutes 20] [--json FILE] [--dry-run]

run in the repository's root. Cases come in the order of their worth (candidates.py): SNLI's batches in bf16 first. Of
each, many configurations are compiled, in other processes; those that fit are put in order by what their machine code
predicts (predicted.py), and the first are held to the equations in fp64 and timed beside the present one, in turns
(measured.py). When the minutes are over, what has been measured is printed; the JSON is written after each case.

--dry-run needs no GPU: it compiles a few for an H100, tries some in Triton's interpreter, and times nothing.
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
import triton

from benchmarks import candidates
from benchmarks.candidates import H100, KERNELS, Case, Gpu
from benchmarks.command import Parser, add_json, positive_number, write_json
from benchmarks.measured import (
    Compiler,
    Examined,
    Measured,
    check_interpreted,
    measure,
    ordered,
    prediction,
    problem,
    winner,
)
from benchmarks.timing import copy_bandwidth, environment
from esim_fast.ops.triton.runtime import Config

DRY_CASES, DRY_COMPILED, DRY_CHECKED, DRY_SECONDS = 2, 4, 2, 60.0


def written(config: Config) -> str:
    """As the tables have it."""
    numbers = ", ".join(map(str, config[:4]))
    rest = [f"{name}={getattr(config, name)}" for name in ("tile", "max_registers") if getattr(config, name)]
    return f"Config({', '.join([numbers, *rest])})"


def lines(case: Case, measured: Measured) -> list[str]:
    """The winner's entry, with its microseconds, those of the present entry, and its share of the copy's rate."""
    best = winner(case, measured)

    def figures(by_batch: dict[str, dict[Config, float]], config: Config, scale: float) -> str:
        return " ".join(f"{scale * values[config]:.1f}" if config in values else "-" for values in by_batch.values())

    comment = "not measured"
    if any(best in values for values in measured.seconds.values()):
        was = "as before" if best == case.present else f"was {figures(measured.seconds, case.present, 1e6)}"
        share = figures(measured.shares, best, 100)
        comment = f"{figures(measured.seconds, best, 1e6)} µs ({was}), {share} % of a copy"
    batches = ", ".join(measured.seconds) or "no batch"
    return [f"    # {batches}: {comment}", f"    {_key(case.key)}: {written(best)},"]


def _key(key: tuple) -> str:
    return "(" + ", ".join(f'"{part}"' if isinstance(part, str) else str(part) for part in key) + ")"


def record(
    case: Case, found: dict[Config, Examined], measured: Measured | None, gpu: Gpu, **more: Any
) -> dict[str, Any]:
    """A case for the JSON: every candidate that was looked at, with its resources, predictions and figures."""

    def candidate(config: Config) -> dict[str, Any]:
        examined = found.get(config)
        entry: dict[str, Any] = {"config": config._asdict(), "problem": None, "resources": None, "predicted_us": None}
        if examined is not None:
            entry["problem"] = problem(examined, gpu)
        if isinstance(examined, list):
            entry["resources"] = [
                {"programs": n, **code._asdict(), "occupancy": code.occupancy} for n, code in examined
            ]
            entry["predicted_us"] = {name: 1e6 * limit for name, limit in prediction(examined, gpu).items()}
        timed = measured and any(config in values for values in measured.seconds.values())
        entry["refused"] = measured.refused.get(config) if measured else None
        entry["measured_us"] = _by_batch(measured.seconds, config, 1e6) if timed else None
        entry["share_of_copy"] = _by_batch(measured.shares, config, 1.0) if timed else None
        return entry

    return {
        **{"case": str(case), "kernel": case.kernel, "arithmetic": case.arithmetic, "tiles": case.tiles},
        "batches": case.batches,
        "present": case.present._asdict(),
        "candidates": [candidate(config) for config in candidates.configurations(case)],
        "lines": lines(case, measured) if measured else None,
        **more,
    }


def _by_batch(figures: dict[str, dict[Config, float]], config: Config, scale: float) -> dict[str, float]:
    return {batch: scale * values[config] for batch, values in figures.items() if config in values}


def describe(cases: list[Case]) -> None:
    print(f"{len(cases)} cases, in order of worth:")
    for case in cases:
        batches = ", ".join(f"{kind} at {pairs}" for kind, pairs in case.batches)
        print(f"  {case}: {len(candidates.configurations(case))} configurations; {batches}")


def sweep(parser: Parser, cases: list[Case], minutes: float, json: Any) -> list[str]:
    """Measures the cases until the time is over; returns the lines for the tables."""
    end = time.monotonic() + 60 * minutes
    gpu = Gpu.here()
    records, table = [], []

    def save() -> None:
        write_json(parser, json, {"dry_run": False, "minutes": minutes, "copy": copy_bandwidth(), "cases": records})

    save()  # a file that cannot be written fails now
    # Two cores are left to the process that times.
    compiler = Compiler(max(1, (os.cpu_count() or 1) - 2), gpu)
    try:
        for number, case in enumerate(cases):
            if time.monotonic() >= end:
                print(f"the {minutes:g} minutes are over: {len(cases) - number} cases are left")
                break
            found = compiler.get(case, candidates.configurations(case), case.batches[0], end)
            chosen = [config for config in ordered(found, gpu) if config != case.present]
            chosen = [case.present, *chosen[: candidates.TIMED]]
            for batch in case.batches[1:]:  # features are shared out in other ways there
                compiler.submit(case, chosen, batch)
            for following in cases[number + 1 : number + 2]:
                compiler.submit(following, candidates.configurations(following), following.batches[0])
            for batch in case.batches[1:]:
                compiler.get(case, chosen, batch, end)
            measured = measure(case, chosen, end)
            records.append(record(case, found, measured, gpu))
            table += lines(case, measured)
            print(f"{case}:", *lines(case, measured), sep="\n", flush=True)
            for config, reason in measured.refused.items():
                print(f"    refused: {written(config)} {reason}")
            save()
    finally:
        compiler.close()
    return table


def dry_run(parser: Parser, cases: list[Case], json: Any) -> None:
    """Everything but the timing, of a few candidates."""
    end = time.monotonic() + DRY_SECONDS
    write_json(parser, json, {"dry_run": True, "cases": []})
    tried = {case: candidates.configurations(case)[:DRY_COMPILED] for case in cases[:DRY_CASES]}
    checked = interpreted([(case, configs[:DRY_CHECKED]) for case, configs in tried.items()])
    compiler, records = Compiler(os.cpu_count() or 1, H100), []
    try:
        for case in cases:
            found = compiler.get(case, tried[case], case.batches[0], end) if case in tried else {}
            results = checked.get(case, {})
            show(case, found, results)
            of_results = [{"config": config._asdict(), "refused": reason} for config, reason in results.items()]
            records.append(record(case, found, None, H100, interpreted=of_results))
    finally:
        compiler.close()
    write_json(parser, json, {"dry_run": True, "cases": records})
    print("dry run: nothing was timed")


def interpreted(tasks: list[tuple[Case, list[Config]]]) -> dict[Case, dict[Config, str | None]]:
    """:func:`check_interpreted` in a process of its own: Triton is told of its interpreter before it is imported."""
    with (
        patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        futures = {case: pool.submit(check_interpreted, case, configs) for case, configs in tasks}
        return {case: future.result() for case, future in futures.items()}


def show(case: Case, found: dict[Config, Examined], checked: dict[Config, str | None]) -> None:
    """Candidates that were compiled, in the order in which they would be timed, and those that do not fit."""
    if found:
        print(case)
    for config in ordered(found, H100):
        code = max((code for _, code in found[config]), key=lambda code: code.registers)
        limits = ", ".join(f"{name} {1e6 * limit:.0f} µs" for name, limit in prediction(found[config], H100).items())
        print(
            f"  {written(config)}: {code.registers} registers, {code.shared} bytes shared, {code.occupancy} "
            f"programs at once; predicted: {limits}; {_said(checked, config)}"
        )
    for config, examined in found.items():
        if reason := problem(examined, H100):
            print(f"  {written(config)}: {reason}")


def _said(checked: dict[Config, str | None], config: Config) -> str:
    if config not in checked:
        return "not tried"
    return f"WRONG: {checked[config]}" if checked[config] else "right in the interpreter"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="default: all")
    parser.add_argument(
        "--minutes", type=positive_number, default=20.0, help="after which no more is begun; default: 20"
    )
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: compile and check a few, time nothing")
    add_json(parser)
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU here (--dry-run needs none)")
    if not options.dry_run and triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: the kernels would not run on the GPU")
    print(environment(), flush=True)
    cases = candidates.cases(options.kernels)
    describe(cases)
    if options.dry_run:
        dry_run(parser, cases, options.json)
        return 0
    table = sweep(parser, cases, options.minutes, options.json)
    # What is the fastest here may not fit elsewhere, and the tables are for all GPUs.
    print(
        "\nfor esim_fast/ops/triton/local_inference.py, if tools/kernel_resources.py then finds no problem:",
        *table,
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

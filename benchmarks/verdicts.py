"""Compare what ``python -m benchmarks.gpu`` measured with the targets: a table, also written to verdicts.md.

    python -m benchmarks.verdicts DIR

DIR holds the files of a run. The targets are in TARGETS, each with how to read its value from the JSON of the parts. A
target of which something is missing there does not count as met.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.baselines import EAGER
from benchmarks.captured_steps import CAPTURED, CAPTURED_CUDA, MODES
from esim_fast.cli.options import Parser
from esim_fast.errors import one_line

DONE, NO_SANITIZER = "done", "skipped: no working compute-sanitizer"  # outcomes of parts
PACKED = "esim_fast, packed rows"
# Pairs of a step, how many times as fast as eager it must be, and precisions.
STEPS, PRECISIONS = [(32, 4), (512, 3)], ("bf16", "tf32")
PARTS = {CAPTURED: "captured", CAPTURED_CUDA: "captured-cuda"}  # which measures these steps

Results = dict[str, Any]  # the JSON of each part, and of "run", by name


class Target(NamedTuple):
    """What is wanted of a run.

    Attributes:
        what: what is measured.
        wanted: the bound.
        read: returns the measured value, a number or a word; raises LookupError or ValueError if it was not measured. A
            plain LookupError says why.
        shown: the number format.
        at_most: whether the bound is an upper one.
    """

    what: str
    wanted: float | str
    read: Callable[[Results], float | str]
    shown: str = "{:.2f} x"
    at_most: bool = False


def outcome(part: str, results: Results) -> str:
    found = results["run"]["parts"][part]["outcome"]
    if not found.startswith((DONE, "failed")):
        raise LookupError(found)
    return found


def benchmarks(results: Results, part: str, group: str) -> dict[str, dict[str, Any]]:
    """The variants of a group, by name."""
    return {found["params"]["variant"]: found for found in results[part]["benchmarks"] if found["group"] == group}


def fastest(variants: dict[str, dict[str, Any]], begin: str) -> float:
    """The seconds of the fastest variant whose name begins like this."""
    return min(found["stats"]["median"] for name, found in variants.items() if name.startswith(begin))


def group_of(pairs: int, precision: str) -> str:
    return f"training, {pairs} pairs, {precision}"


def speedup(pairs: int, precision: str, over: Sequence[str], results: Results) -> float:
    """Of the fastest captured step that equals eager ones, over the fastest of other variants; all must be there.

    Each is taken relative to the eager step of its own part, because the GPU's clock may change between parts.
    """
    group, rates = group_of(pairs, precision), {}
    for name, part in PARTS.items():
        variants = benchmarks(results, part, group) if part in results else {}
        if EAGER in variants:
            rates |= {x: variants[EAGER]["stats"]["median"] / found["stats"]["median"] for x, found in variants.items()}
        if not results.get(part, {}).get("checks", {}).get(f"{group}, {name}", {}).get("equal"):
            rates.pop(name, None)
    for name in over:
        if rates and name not in rates:
            reason = results.get("captured", {}).get("not_timed", {}).get(f"{group}, {name}", "it did not run")
            raise LookupError(f"{name}: {reason}")
    return max(rates[name] for name in PARTS if name in rates) / max(rates[name] for name in over)


def failures(name: str, of_check: Callable[[dict[str, Any]], int], results: Results) -> list[int]:
    """What each check of these steps counted; raises LookupError if checks are missing and no other has failed."""
    found = results[PARTS[name]]["checks"]
    wanted = {f"{group_of(pairs, precision)}, {name}" for pairs, _ in STEPS for precision in PRECISIONS}
    failed, missing = [of_check(check) for check in found.values()], wanted - found.keys()
    if missing and not any(failed):
        raise LookupError(f"{len(missing)} of {len(wanted)} checks are missing")
    return failed


def equal_steps(name: str, results: Results) -> str:
    failed = failures(name, lambda check: not check["equal"], results)
    return f"{sum(failed)} of {len(failed)} differ" if any(failed) else "equal"


def repeated_steps(name: str, results: Results) -> str:
    failed = failures(name, lambda check: check["different_repetitions"], results)
    return f"{sum(failed)} differ" if any(failed) else "same bits"


def seconds_of_epoch(results: Results) -> float:
    """Of the fastest way to train that replays most steps."""
    found = [results["epoch"]["epochs"][name] for name in PARTS if name in results["epoch"]["epochs"]]
    if found and not any(epoch["replayed"] > 0.5 for epoch in found):
        raise LookupError("most steps were not replayed")
    return min(epoch["seconds"] for epoch in found if epoch["replayed"] > 0.5)


def share_of_copy(part: str, group: str, results: Results) -> float:
    """Of the variant of esim_fast that comes closest to a copy's bandwidth."""
    variants = benchmarks(results, part, group)
    wanted = PACKED if part == "local_inference" else "esim_fast"
    return 100 * max(x["extra_info"]["share_of_copy"] for name, x in variants.items() if name.startswith(wanted))


def least_speedup(results: Results) -> float:
    """Of local inference over torch.compile, in the group where it is smallest."""
    groups = {found["group"] for found in results["local_inference"]["benchmarks"]}
    found = [benchmarks(results, "local_inference", group) for group in groups]
    return min(fastest(variants, "torch.compile") / fastest(variants, PACKED) for variants in found)


PERCENT = "{:.0f} %"
LOCAL = "local inference, SNLI, 1024 pairs, bf16, {}, on the device"
POOLING = "masked pool, (1024, 64, 600), {}, forward, on the device"
TARGETS = [
    Target("GPU tests", DONE, partial(outcome, "tests")),
    Target("compute-sanitizer on small cases", DONE, partial(outcome, "sanitizer")),
    *(
        target
        for name in PARTS
        for target in (
            Target(f"50 steps ({name}) with poisoned memory, against eager ones", "equal", partial(equal_steps, name)),
            Target(f"100 repetitions of a step ({name})", "same bits", partial(repeated_steps, name)),
        )
    ),
    *(
        Target(
            f"step of {pairs} pairs, {precision}, against {over[0]}", wanted, partial(speedup, pairs, precision, over)
        )
        for pairs, of_eager in STEPS
        for precision in PRECISIONS
        for over, wanted in (((EAGER,), of_eager), (tuple(MODES), 2))
    ),
    # benchmarks/epoch.py extrapolates an epoch that takes too long.
    Target("epoch of SNLI's size, 32 pairs, bf16 (or extrapolated)", 50, seconds_of_epoch, "{:.1f} s", at_most=True),
    *(
        Target(
            f"local inference, 1,024 pairs, bf16, {which}, of a copy's bandwidth",
            wanted,
            partial(share_of_copy, "local_inference", LOCAL.format(which)),
            PERCENT,
        )
        for which, wanted in (("forward", 70), ("forward + backward", 55))
    ),
    Target("local inference against torch.compile, in the worst of all shapes", 1, least_speedup),
    *(
        Target(
            f"pooling (1024, 64, 600), {precision}, of a copy's bandwidth",
            85,
            partial(share_of_copy, "masked_pool", POOLING.format(precision)),
            PERCENT,
        )
        for precision in ("bf16", "fp32")
    ),
]


def line(target: Target, results: Results) -> str:
    """A row of the table."""
    is_number = not isinstance(target.wanted, str)
    bound = ("at most " if target.at_most else "at least ") + target.shown if is_number else "{}"
    try:
        value = target.read(results)
    except (LookupError, ValueError) as error:  # a part is missing, or has no such variant
        reason = ": " + one_line(error).replace("|", "/") if type(error) is LookupError else ""
        return f"| {target.what} | {bound.format(target.wanted)} | | not measured{reason} |"
    if is_number:
        met = value <= target.wanted if target.at_most else value >= target.wanted
    else:
        met = value == target.wanted
    said = target.shown.format(value) if is_number else value
    verdict = "a dry run" if results["run"]["dry_run"] else "met" if met else "**not met**"
    return f"| {target.what} | {bound.format(target.wanted)} | {said} | {verdict} |"


def write(folder: Path) -> str:
    """Write verdicts.md and return it."""
    results, broken = {}, []
    for file in sorted(folder.glob("*.json")):
        try:
            results[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # the part was interrupted while it wrote
            broken.append(f"- {file.name} is left out, because it is not JSON")
    run = results["run"]
    head = "A dry run: these figures say nothing." if run["dry_run"] else f"On {run['gpu']}, torch {run['torch']}."
    rows = [line(target, results) for target in TARGETS]
    ended = [f"- {name}: {part['outcome']}" for name, part in run["parts"].items() if part["outcome"] != DONE]
    lines = [
        head,
        *ended,
        *broken,
        "",
        "| target | wanted | measured | verdict |",
        "| --- | ---: | ---: | --- |",
        *rows,
    ]
    page = "\n".join(lines) + "\n"
    (folder / "verdicts.md").write_text(page, encoding="utf-8")
    return page


def main() -> None:
    parser = Parser(prog="python -m benchmarks.verdicts", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="of a run of python -m benchmarks.gpu")
    folder = parser.parse_args().folder
    try:
        print(write(folder))
    except (OSError, LookupError, ValueError) as error:
        parser.error(f"{folder}: expected the files of a run of python -m benchmarks.gpu ({error!r})")


if __name__ == "__main__":
    main()

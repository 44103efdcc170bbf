"""Compare what ``python -m benchmarks.gpu`` measured with the targets: a table, also written to verdicts.md.

    python -m benchmarks.verdicts DIR

DIR holds the files of a run. The targets are in TARGETS, each with how to read its value from the JSON of the parts.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.baselines import EAGER
from benchmarks.models import COMPILED
from esim_fast.cli.options import Parser

DONE, NO_SANITIZER = "done", "skipped: no working compute-sanitizer"  # outcomes of parts
CAPTURED, PACKED = "esim_fast, captured", "esim_fast, packed rows"

Results = dict[str, Any]  # the JSON of each part, and of "run", by name


class Target(NamedTuple):
    """What is wanted of a run.

    Attributes:
        what: what is measured.
        wanted: the bound.
        read: returns the measured value, a number or a word; raises LookupError or ValueError if it was not measured.
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


def speedup(pairs: int, precision: str, over: str, results: Results) -> float:
    """Of the fastest captured step that equals eager ones, over the fastest variant of another kind."""
    group = f"training, {pairs} pairs, {precision}"
    variants = benchmarks(results, "captured", group)
    right = {name for name in variants if results["captured"]["checks"].get(f"{group}, {name}", {}).get("equal")}
    return fastest(variants, over) / fastest({name: variants[name] for name in right}, CAPTURED)


def checks(results: Results, key: str) -> list[Any]:
    """What each check of captured steps found."""
    found = [check[key] for check in results["captured"]["checks"].values()]
    if not found:
        raise LookupError("no check has ended")
    return found


def equal_steps(results: Results) -> str:
    equal = checks(results, "equal")
    return "equal" if all(equal) else f"{equal.count(False)} of {len(equal)} differ"


def repeated_steps(results: Results) -> str:
    different = sum(checks(results, "different_repetitions"))
    return f"{different} differ" if different else "same bits"


def seconds_of_epoch(results: Results) -> float:
    return min(found["seconds"] for name, found in results["epoch"]["epochs"].items() if name.startswith(CAPTURED))


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


STEPS = [(32, 4), (512, 3)]  # pairs, and how many times as fast as eager
PERCENT = "{:.0f} %"
LOCAL = "local inference, SNLI, 1024 pairs, bf16, {}, on the device"
POOLING = "masked pool, (1024, 64, 600), {}, forward, on the device"
TARGETS = [
    Target("GPU tests", DONE, partial(outcome, "tests")),
    Target("compute-sanitizer on small cases", DONE, partial(outcome, "sanitizer")),
    Target("50 captured steps with poisoned memory, against eager ones", "equal", equal_steps),
    Target("100 repetitions of a captured step", "same bits", repeated_steps),
    *(
        Target(f"step of {pairs} pairs, {precision}, against {over}", wanted, partial(speedup, pairs, precision, over))
        for pairs, of_eager in STEPS
        for precision in ("bf16", "tf32")
        for over, wanted in ((EAGER, of_eager), (COMPILED[0], 2))
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
    except (LookupError, ValueError):  # a part is missing, or has no such variant
        return f"| {target.what} | {bound.format(target.wanted)} | | not measured |"
    if is_number:
        met = value <= target.wanted if target.at_most else value >= target.wanted
    else:
        met = value == target.wanted
    said = target.shown.format(value) if is_number else value
    verdict = "a dry run" if results["run"]["dry_run"] else "met" if met else "**not met**"
    return f"| {target.what} | {bound.format(target.wanted)} | {said} | {verdict} |"


def write(folder: Path) -> str:
    """Write verdicts.md and return it."""
    results = {}
    for file in folder.glob("*.json"):
        with file.open(encoding="utf-8") as opened:
            if text := opened.read():  # pytest-benchmark leaves an empty file if it is interrupted
                results[file.stem] = json.loads(text)
    run = results["run"]
    head = "A dry run: these figures say nothing." if run["dry_run"] else f"On {run['gpu']}, torch {run['torch']}."
    rows = [line(target, results) for target in TARGETS]
    lines = [head, "", "| target | wanted | measured | verdict |", "| --- | ---: | ---: | --- |", *rows]
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

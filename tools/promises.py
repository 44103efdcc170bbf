"""``python -m tools.promises``: runs the tests and writes tests/README.md, what is promised and what holds it.

A promise is the text of ``@pytest.mark.promise``. Cases are tests, or what a test tries within: hypothesis's examples,
or what it records as ``cases``. Arguments are pytest's; where they choose tests, nothing is written, but with ``--json
FILE`` the figures of these, as for the nightly run of the properties. What other commands found is read from
tests/records.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import tests.conftest  # noqa: F401 (before esim_fast is imported: it says whether Triton's kernels are interpreted)
from benchmarks.command import Parser, add_json, write_json
from benchmarks.timing import environment

TESTS = Path(__file__).resolve().parents[1] / "tests"
RECORDS = TESTS / "records"


@dataclass
class Promise:
    """What was found of one promise."""

    tests: Counter[str] = field(default_factory=Counter)  # by class, or function outside of one
    outcomes: Counter[str] = field(default_factory=Counter)
    cases: int = 0
    reasons: set[str] = field(default_factory=set)  # for which tests were skipped

    def held_by(self) -> str:
        files: dict[str, list[str]] = {}
        for test in self.tests:
            file, _, name = test.partition("::")
            files.setdefault(file, []).append(name)
        shown = [file if len(names) > 3 else f"{file} ({', '.join(names)})" for file, names in files.items()]
        return "; ".join(shown)

    def result(self) -> str:
        parts = [f"{count} {name}" for name, count in sorted(self.outcomes.items()) if name != "passed"]
        reasons = f": {', '.join(sorted(self.reasons))}" if self.reasons else ""
        state = "fails" if self.outcomes["failed"] else "holds" if self.outcomes["passed"] else "not tried"
        return f"{state} ({', '.join(parts)}{reasons})" if parts else state


class Ledger:
    """A plugin of pytest that keeps account of promises, in the order in which tests come."""

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        # Nothing is said of what happens after a test, unless it goes wrong.
        if "promise" not in properties or (report.when != "call" and report.passed):
            return
        promise = self.promises.setdefault(str(properties["promise"]), Promise())
        file, *names = re.sub(r"\[.*", "", report.nodeid).split("::")
        promise.tests[f"{Path(file).name}::{names[0]}"] += 1
        promise.outcomes[report.outcome] += 1
        if report.passed:
            promise.cases += int(str(properties.get("cases", 1)))
        elif report.skipped:
            promise.reasons.add(str(report.longrepr[2]).removeprefix("Skipped: "))


def table(headings: list[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headings, ["---:" if heading in ("cases", "figure") else "---" for heading in headings], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def nightly(record: dict[str, Any]) -> str:
    return f"{sum(row['cases'] for row in record['promises']):,} examples, {record['failed']} failures"


def soak(record: dict[str, Any]) -> str:
    memory = record["resident"]
    halves = f"{memory['first half, MiB']} MiB at most in the first half, {memory['second half, MiB']} in the second"
    return f"{record['steps']:,} training steps, {halves}"


def sanitizers(record: dict[str, Any]) -> str:
    passed = sum(run["passed"] for run in record["runs"].values())
    planted = len(record["planted_and_found"])
    return f"{passed:,} tests of the ops, {record['findings']} findings; {planted} of {planted} planted errors found"


def fuzzing(record: dict[str, Any]) -> str:
    return f"{record['runs']:,} inputs to {len(record['targets'])} readers, {record['crashes']} crashes"


def mutation(record: dict[str, Any]) -> str:
    drawn = f"{record['tried']} of {record['population']:,} possible defects in the ops put in"
    return f"{drawn}, {record['caught']} caught ({record['share']:.0%})"


# What commands that take longer leave in tests/records, and how it is told.
RUNS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "properties": (
        "python -m tools.promises --json tests/records/properties.json tests/test_properties.py "
        "--hypothesis-profile nightly",
        nightly,
    ),
    "mutation": ("python -m tools.mutate --sample 200 --json tests/records/mutation.json", mutation),
    "sanitizers": ("python -m tools.sanitize --json tests/records/sanitizers.json", sanitizers),
    "fuzzing": ("python -m tools.fuzz --total 100000 --json tests/records/fuzzing.json", fuzzing),
    "soak": ("python -m tools.soak --json tests/records/soak.json", soak),
}


def read(name: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def longer_runs() -> Iterator[list[object]]:
    for name, (command, told) in RUNS.items():
        if record := read(name):
            yield [f"`{command}`", told(record), record["environment"]]


def survivors() -> Iterator[list[object]]:
    for of in (read("mutation") or {"survivors": []})["survivors"]:
        before, after = (f"`{code}`" for code in of["change"].split(" -> ", 1))
        yield [of["place"], before, after, of["reason"]]


def render(promises: dict[str, Promise]) -> str:
    rows = sorted(
        [text[0].upper() + text[1:], of.held_by(), f"{of.cases:,}", of.result()] for text, of in promises.items()
    )
    cases = sum(of.cases for of in promises.values())
    return "\n".join(
        [
            "# What is promised, and what holds it",
            "",
            f"{len(promises)} promises, {cases:,} cases. Written by `python -m tools.promises`: {environment()}.",
            "",
            table(["promise", "held by", "cases", "result"], rows),
            "",
            "## Longer runs",
            "",
            table(["command", "found", "on"], list(longer_runs())),
            "",
            "## Defects that no test noticed",
            "",
            table(["place", "instead of", "put in", "why that is harmless"], list(survivors())),
            "",
        ]
    )


def main() -> None:
    parser = Parser(prog="python -m tools.promises", description=__doc__)
    add_json(parser)
    options, arguments = parser.parse_known_args()
    ledger = Ledger()
    some = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    code = pytest.main(arguments if some else [*arguments, str(TESTS)], plugins=[ledger])
    rows = [
        {"promise": text, "held by": of.held_by(), "cases": of.cases, "result": of.result()}
        for text, of in ledger.promises.items()
    ]
    failed = sum(of.outcomes["failed"] for of in ledger.promises.values())
    write_json(parser, options.json, {"promises": rows, "failed": failed})
    if not some and code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        (TESTS / "README.md").write_text(render(ledger.promises), encoding="utf-8")
    parser.exit(int(code))


if __name__ == "__main__":
    main()

"""Prints what the benchmarks measured, at the end of the run, whatever pytest captures, and writes it as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from timing import Comparison, environment

_COMPARISONS = pytest.StashKey[list[Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", type=Path, metavar="FILE", help="write what the benchmarks measured to FILE")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[Comparison], None]:
    return request.config.stash.setdefault(_COMPARISONS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    comparisons = config.stash.get(_COMPARISONS, [])
    if comparisons:
        terminalreporter.section("speed")
        terminalreporter.write_line(environment())
        for comparison in comparisons:
            terminalreporter.write_line(f"\n{comparison}")
        if file := config.getoption("--json"):
            measured = [asdict(comparison) for comparison in comparisons]
            file.write_text(json.dumps({"environment": environment(), "measured": measured}, indent=1) + "\n")

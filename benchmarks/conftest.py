"""Prints what the benchmarks measured, at the end of the run, whatever pytest captures, and writes it as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import timing
from timing import FULL_SIZE, ON_GPU, Comparison, environment, hardware, today

from esim_fast.files import replace_file

_COMPARISONS = pytest.StashKey[list[Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", type=Path, metavar="FILE", help="write what the benchmarks measured to FILE")
    parser.addoption("--once", action="store_true", help="only see whether all variants run and are equal")
    parser.addoption("--eager", action="store_true", help="on a GPU too: without torch.compile of whole models")
    parser.addoption("--full", action="store_true", help="on a CPU too: larger batches, torch.compile of whole models")


def pytest_configure(config: pytest.Config) -> None:
    timing.once = config.getoption("--once")
    file = config.getoption("--json")
    if file and not file.parent.is_dir():
        raise pytest.UsageError(f"--json {file}: there is no folder {file.parent}")
    config.addinivalue_line("markers", "full: takes long on a CPU; runs on a GPU, or with --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {
        "gpu": None if ON_GPU else "no NVIDIA GPU here",
        "full": None if FULL_SIZE or config.getoption("--full") else "takes long on a CPU: --full runs it",
    }
    for item in items:
        for marker, reason in left_out.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether there is a GPU or time enough for everything."""
    option = request.config.getoption
    return (FULL_SIZE and not option("--eager")) or option("--full")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[Comparison], None]:
    config = request.config

    def add(comparison: Comparison) -> None:
        comparisons = config.stash.setdefault(_COMPARISONS, [])
        comparisons.append(comparison)
        if file := config.getoption("--json"):  # each time, so that nothing is lost where a run is cut off
            circumstances = {"environment": environment(), "hardware": hardware(), "date": today()}
            measured = [asdict(comparison) for comparison in comparisons]
            text = json.dumps({**circumstances, "measured": measured}, indent=1) + "\n"
            replace_file(file, lambda beside: beside.write_text(text, encoding="utf-8"))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    comparisons = config.stash.get(_COMPARISONS, [])
    if comparisons:
        terminalreporter.section("speed")
        terminalreporter.write_line(environment())
        for comparison in comparisons:
            terminalreporter.write_line(f"\n{comparison}")

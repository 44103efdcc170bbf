"""Prints what the benchmarks measured, at the end of the run, whatever pytest captures."""

from collections.abc import Callable

import pytest
from timing import Comparison, environment

_COMPARISONS = pytest.StashKey[list[Comparison]]()


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

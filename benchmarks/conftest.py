"""Make pytest-benchmark fair on a shared machine.

pytest-benchmark times one test after another while the machine's speed drifts. Here the first test of a group checks
all variants of the group and times them in turns (measure.py). Each test then passes the rounds of its variant to
``benchmark.pedantic``, through a timer that replays them.
"""

import os
from collections import deque
from collections.abc import Callable
from statistics import median

import pytest

from benchmarks import measure
from benchmarks.measure import Variant
from benchmarks.report import Row, table

# These options change how pytest-benchmark times each call, and here it only replays rounds.
REFUSED = tuple(
    f"--benchmark-{option}"  # also as a prefix, as in --benchmark-warmup-iterations
    for option in ("min-time", "precision", "confidence", "timer", "calibration", "warmup", "cprofile", "disable-gc")
)
_GROUP = pytest.StashKey["Group"]()
_ROWS = pytest.StashKey[dict[str, list[Row]]]()
_tape: deque[float] = deque()


class Group:
    """The variants of a group, with their rounds or the reasons why they are not timed; the first is the reference."""

    def __init__(self, name: str, variants: dict[str, Variant | str], wanted: set[str], on_device: bool) -> None:
        self.name, self.variants, self.on_device = name, variants, on_device
        self.outcomes: dict[str, BaseException] = {}
        self.calls: dict[str, measure.Call] = {}
        self.samples: dict[str, list[float]] = {}
        for variant, found in variants.items():
            if variant not in wanted:
                continue
            try:
                if isinstance(found, str):
                    pytest.skip(found)
                found.check()
                self.calls[variant] = measure.recorded(found.call) if on_device else found.call
            except (pytest.skip.Exception, AssertionError) as outcome:
                self.outcomes[variant] = outcome
            except Exception as error:
                reason = (str(error.__context__ or error).strip() or repr(error)).splitlines()[0][:160]
                ours = variant.startswith("esim_fast")
                self.outcomes[variant] = error if ours else pytest.skip.Exception(f"does not run here: {reason}")

    def information(self, variant: str) -> dict[str, object]:
        """What the report shows beside a variant's seconds."""
        found, seconds, yardstick = self.variants[variant], median(self.samples[variant]), next(iter(self.variants))
        info: dict[str, object] = {}
        if yardstick in self.samples:
            info |= {"compared_with": yardstick, "times_as_fast": median(self.samples[yardstick]) / seconds}
        if found.moves:
            rate, copy = found.moves / seconds, measure.copy_bandwidth(found.moves, self.on_device)
            info |= {"bytes_per_second": rate, "share_of_copy": rate / copy}
        if found.multiplies:
            operations, precision = found.multiplies
            rate = operations / seconds
            info |= {"operations_per_second": rate, "share_of_product": rate / measure.product_rate(precision)}
        if measure.DEVICE.type == "cuda":
            info["peak_bytes"] = measure.peak_bytes(found.call)
        elif found.saves:
            info["saved_bytes"] = found.saves()
        if found.file_bytes:
            info["file_bytes"] = found.file_bytes()
        return info


def pytest_addoption(parser: pytest.Parser) -> None:
    text = f"""add larger batches, and torch.compile of whole models everywhere. In all benchmarks, variants take turns:
    at least --benchmark-min-rounds times, until their medians are known well or for --benchmark-max-time seconds each
    (on a busy machine, up to four times as long). Options with these prefixes are not supported, because
    pytest-benchmark itself times no call: {", ".join(REFUSED)}"""
    parser.getgroup("esim_fast").addoption("--full", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: slow; runs with --full or on a GPU")
    config.addinivalue_line("markers", "gpu: takes minutes per round on a CPU; runs on a GPU")
    for argument in (*config.invocation_params.args, *os.environ.get("PYTEST_ADDOPTS", "").split()):
        if argument.startswith(REFUSED):
            raise pytest.UsageError(f"{argument}: variants are timed in turns, which this option cannot change")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=_tape.popleft))
        if item.get_closest_marker("full") and not _full(config):
            item.add_marker(pytest.mark.skip(reason="slow: run with --full"))
        if item.get_closest_marker("gpu") and not measure.FULL_SIZE:
            item.add_marker(pytest.mark.skip(reason="takes minutes per round on a CPU"))


def group_of(item: pytest.Item) -> str:
    """The group's name, from the function and all parameters except the variant: "training, 32 pairs, fp32"."""
    others = {name: value for name, value in item.callspec.params.items() if name != "variant"}
    values = [f"{value} {name}" if isinstance(value, int) else str(value) for name, value in others.items()]
    return ", ".join([item.originalname.removeprefix("test_").replace("_", " "), *values])


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return _full(request.config)


def _full(config: pytest.Config) -> bool:
    """Whether to run everything."""
    return measure.FULL_SIZE or config.getoption("full")


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark) -> Callable:
    """``race(variant, variants)`` times ``variant`` in turns with all others of ``variants()``.

    Each value is a Variant or the reason why it cannot run. With ``on_device``, each call is recorded as a CUDA graph
    and its replays are timed.
    """
    stash, options, name = request.config.stash, request.config.option, group_of(request.node)

    def run(variant: str, variants: Callable[[], dict[str, Variant | str]], *, on_device: bool = False) -> None:
        group = stash.get(_GROUP, None)
        if group is None or group.name != name:
            group = stash[_GROUP] = None  # free the previous group before creating the next
            wanted = {item.callspec.params["variant"] for item in request.session.items if group_of(item) == name}
            group = stash[_GROUP] = Group(name, variants(), wanted, on_device)
        if variant in group.outcomes:
            raise group.outcomes.pop(variant)
        benchmark.group = name
        if benchmark.disabled:
            benchmark.pedantic(group.calls[variant])
            return
        if not group.samples:
            seconds, rounds = float(options.benchmark_max_time), options.benchmark_min_rounds
            group.samples = measure.in_turns(group.calls, seconds, rounds, on_device)
        taken = group.samples[variant]
        _tape.extend(moment for seconds in taken for moment in (0.0, seconds))
        benchmark.extra_info |= (info := group.information(variant))
        benchmark.pedantic(lambda: None, rounds=len(taken))
        stash.setdefault(_ROWS, {}).setdefault(name, []).append(Row(variant, median(taken), len(taken), info))

    return run


def pytest_benchmark_update_machine_info(machine_info: dict[str, object]) -> None:
    machine_info |= measure.machine()


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own table
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    groups = config.stash.get(_ROWS, {})
    if groups:
        terminalreporter.section("speed relative to the first variant of each group, by medians")
    for name, rows in groups.items():
        terminalreporter.write_line(f"\n{name}", bold=True)
        for line in table(rows):
            terminalreporter.write_line(line)

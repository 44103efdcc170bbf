"""Fair timing on a machine that others use too: variants take turns, and medians of one run are compared.

That is why pytest-benchmark does not do it: it times one variant after the other, and the machine drifts between them.
All that the benchmarks ask of a GPU is in this file. With ESIM_FAST_DRY_RUN=1, on a machine without one, what is
measured on a GPU alone runs on the CPU, on small shapes: every branch can be tried before there is a GPU to try it on.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from statistics import median

import torch

import esim_fast

DRY_RUN = os.environ.get("ESIM_FAST_DRY_RUN") == "1" and not torch.cuda.is_available()
ON_GPU = torch.cuda.is_available() or DRY_RUN
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FULL_SIZE = ON_GPU and not DRY_RUN

Moment = torch.cuda.Event | float

CALLS_PER_TURN = 5
REPLAYS = 5  # one behind the other, so that the GPU does not wait for the launch of all but the first
once = False  # set by pytest --once: everything runs and is checked, and is hardly timed
LONG_CALL = 0.1  # seconds; beside it what another variant left in the caches is nothing, so one call is a turn
# What a unit is printed in.
_SCALES = {"s": (1e6, "µs"), "bytes": (1e-6, "MB"), "s/token": (1e9, "ns a token")}


@dataclass(frozen=True)
class Comparison:
    """What each variant takes, median seconds or bytes; the first is what the others are compared with.

    Attributes:
        group: what was measured, such as "training"; comparisons of a group make one section of a report.
        parameters: under which circumstances, such as {"batch": 32, "pass": "forward"}.
        floor: seconds that no variant can be faster than here, by floors.py and the device's ceilings; None: not known.
    """

    title: str
    values: dict[str, float]
    rounds: int
    notes: tuple[str, ...] = ()
    unit: str = "s"
    group: str = ""
    parameters: dict[str, str | int] = field(default_factory=dict)
    floor: float | None = None

    def of(self, group: str, **parameters: str | int) -> "Comparison":
        """The same comparison, filed under ``group`` and ``parameters``."""
        return replace(self, group=group, parameters=parameters)

    def ratio(self, variant: str) -> float:
        """The first variant's value over this one's."""
        return self.values[next(iter(self.values))] / max(self.values[variant], 1e-12)

    def __str__(self) -> str:
        how = "" if self.unit == "bytes" else f" (medians of {self.rounds} interleaved rounds)"
        scale, unit = _SCALES[self.unit]
        lines = [
            f"  {variant:<36} {scale * value:>12,.1f} {unit} {self.ratio(variant):>8.2f} x"
            + (f" {self.floor / value:>6.0%} of the floor's speed" if self.floor else "")
            for variant, value in self.values.items()
        ]
        return "\n".join([f"{self.title}{how}", *lines, *(f"  {note}" for note in self.notes)])


def interleaved(
    title: str, variants: dict[str, Callable[[], object]], *, seconds: float = 1.0 if FULL_SIZE else 5.0
) -> Comparison:
    """Calls the variants in turn for about ``seconds``, after a warm-up that also compiles and chooses algorithms.

    A turn is several calls: the first ones pay for what another variant left in the caches, and medians forget them.
    Calls that are long take one.
    """
    least, seconds = (1, 0.0) if once else (5, seconds)
    _settle_allocator()

    def timed(call: Callable[[], object]) -> float:
        synchronize()
        begin = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - begin

    long_calls = False
    for call in variants.values():
        timed(call)
        if timed(call) > LONG_CALL:
            long_calls = True
        else:
            timed(call)
    turn = 1 if long_calls or once else CALLS_PER_TURN
    samples: dict[str, list[float]] = {variant: [] for variant in variants}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for variant, call in variants.items():
            samples[variant] += [timed(call) for _ in range(turn)]
        rounds += 1
    return Comparison(title, {variant: median(values) for variant, values in samples.items()}, rounds)


def device_times(title: str, variants: dict[str, Callable[[], object]], *, rounds: int = 30) -> Comparison:
    """Seconds on the GPU without what Python and launches take: each variant is recorded as a CUDA graph and replayed.

    A variant that cannot be recorded is left out, and noted.
    """
    replays, notes = {}, []
    for name, call in variants.items():
        try:
            replays[name] = recorded(call)
        except RuntimeError as error:
            cause = error.__context__ or error  # the recording's end says only that something went wrong before
            notes.append(f"{name}: cannot be recorded ({str(cause).strip().splitlines()[0][:80]})")
    samples: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(1 if once else rounds):
        for name, replay in replays.items():
            begin = now()
            for _ in range(REPLAYS):
                replay()
            samples[name].append(seconds_between(begin, now()) / REPLAYS)
    if replays and next(iter(replays)) != next(iter(variants)):
        notes.append(f"ratios are to {next(iter(replays))}")
    return Comparison(title, {name: median(values) for name, values in samples.items()}, rounds, tuple(notes))


def peak_memory(title: str, variants: dict[str, Callable[[], object]]) -> Comparison:
    """Bytes that each variant allocates on the GPU at most, above what was there before."""
    peaks = {}
    for name, call in variants.items():
        call()
        peaks[name] = peak_bytes(call)
    return Comparison(title, peaks, 1, unit="bytes")


def saved_memory(
    title: str, variants: dict[str, Callable[[], object]], parameters: Iterable[torch.Tensor]
) -> Comparison:
    """Bytes that the forward pass of each variant keeps for the backward pass, ``parameters`` left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}
    for name, call in variants.items():
        storages: dict[int, torch.UntypedStorage] = {}  # alive until they are counted, so that no address recurs

        def keep(tensor: torch.Tensor, storages=storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = call()
        kept[name] = float(sum(storage.nbytes() for at, storage in storages.items() if at not in own))
        del result
    return Comparison(title, kept, 1, unit="bytes")


class Stopwatch:
    """Divides time among parts that follow one another.

    On a GPU the ends are events in the stream, so that nothing waits for them; the stream may be waiting for launches.
    """

    def __init__(self) -> None:
        self._ends = [("", now())]

    def end(self, what: str) -> None:
        """The time since the end before this one was spent on ``what``."""
        self._ends.append((what, now()))

    def seconds(self) -> dict[str, float]:
        """The total of each part."""
        totals: dict[str, float] = {}
        for (_, begin), (what, end) in pairwise(self._ends):
            totals[what] = totals.get(what, 0.0) + seconds_between(begin, end)
        return totals


@cache
def copy_bandwidth(sizes: tuple[int, ...] = (2**27, 2**29) if FULL_SIZE else (2**24,)) -> float:
    """Bytes per second, read and written, of a copy on the GPU that is too large for its cache: the best of some."""
    rates = []
    for size in sizes:
        source = torch.ones(size // 4, device=DEVICE)
        copy = torch.empty_like(source)
        rates.append(2 * size / device_times("copy", {"copy": lambda s=source, c=copy: c.copy_(s)}).values["copy"])
    return max(rates)


@cache
def product_rate(precision: str, size: int = 8192 if FULL_SIZE else 256) -> float:
    """Operations per second of a large product of matrices on the GPU, in "fp32", "tf32" or "bf16".

    The matrices are random, because zeros are multiplied faster than anything that occurs.
    """
    generator = torch.Generator(DEVICE).manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, generator=generator, device=DEVICE).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        seconds = device_times("product", {"product": lambda: torch.mm(a, b)}, rounds=10).values["product"]
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds


def hardware() -> str:
    """What computes: the GPU, or the processor and how many cores of it."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def environment() -> str:
    """The hardware and versions that a figure belongs to."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {esim_fast.build_info()['compiler']}"
    if DEVICE.type == "cuda":
        versions += f", Triton {version('triton')}, CUDA {torch.version.cuda}"
    return f"{hardware()}; {versions}; {today()}"


def _settle_allocator() -> None:
    """Brings glibc's malloc to where a training process has it, which has freed large tensors before.

    Until then it hands the memory of each gradient back to the system and gets it anew page by page, by chance of what
    was freed just before, and that can take longer than what is measured here.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8).fill_(0)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def now() -> Moment:
    """On a GPU, when its stream gets here, which is not waited for."""
    if DEVICE.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begin: Moment, end: Moment) -> float:
    """Waits for the end."""
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    return end - begin


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """The call's launches as a CUDA graph, to be replayed: without what Python and launches take.

    Raises:
        RuntimeError: it does something that cannot be recorded.
    """
    if DEVICE.type != "cuda":
        return call
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):  # a recording wants everything chosen and compiled before, on its own stream
        for _ in range(3):
            call()
    here.wait_stream(side)
    synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # Backward passes run in a thread of autograd's, whose allocations would spoil a recording that is "global".
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            call()
    except RuntimeError:
        torch.cuda.set_stream(here)
        synchronize()
        torch.cuda.empty_cache()
        raise
    return graph.replay


def peak_bytes(call: Callable[[], object]) -> float:
    """What the call allocates on the GPU at most, above what was there before."""
    if DEVICE.type != "cuda":
        call()
        return 1.0
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def cache_bytes() -> int:
    """The size of the cache that all the GPU's multiprocessors share."""
    return torch.cuda.get_device_properties(DEVICE).L2_cache_size if DEVICE.type == "cuda" else 1

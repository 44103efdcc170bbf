"""Fair timing on a machine that others use too: variants take turns, and medians of one run are compared."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import median

import torch

import esim_fast

CALLS_PER_TURN = 5


@dataclass(frozen=True)
class Comparison:
    """Median seconds of each variant; the first variant is what the others are compared with."""

    title: str
    seconds: dict[str, float]
    rounds: int
    notes: tuple[str, ...] = ()

    def ratio(self, variant: str) -> float:
        """How many times as fast as the first variant."""
        return self.seconds[next(iter(self.seconds))] / self.seconds[variant]

    def __str__(self) -> str:
        lines = [f"{self.title} (medians of {self.rounds} interleaved rounds)"]
        lines += [
            f"  {variant:<36} {1e6 * value:>12,.1f} µs {self.ratio(variant):>8.2f} x"
            for variant, value in self.seconds.items()
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def interleaved(
    title: str, variants: dict[str, Callable[[], object]], *, device: torch.device, seconds: float = 5.0
) -> Comparison:
    """Calls the variants in turn for about ``seconds``, after a warm-up that also compiles and chooses algorithms.

    A turn is several calls: the first ones pay for what another variant left in the caches, and medians forget them.
    """
    _settle_allocator()

    def timed(call: Callable[[], object]) -> float:
        _wait_for(device)
        begin = time.perf_counter()
        call()
        _wait_for(device)
        return time.perf_counter() - begin

    for call in variants.values():
        for _ in range(3):
            timed(call)
    samples: dict[str, list[float]] = {variant: [] for variant in variants}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for variant, call in variants.items():
            samples[variant] += [timed(call) for _ in range(CALLS_PER_TURN)]
        rounds += 1
    return Comparison(title, {variant: median(values) for variant, values in samples.items()}, rounds)


def environment() -> str:
    """The hardware and versions that a figure belongs to."""
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {esim_fast.build_info()['compiler']}"
    return f"{hardware}; {versions}; {datetime.now(timezone.utc).date().isoformat()}"


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


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

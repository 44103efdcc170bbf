"""How benchmarks measure. ESIM_FAST_DRY_RUN=1 tries the GPU benchmarks on a CPU, at a small size."""

import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from esim_fast import build_info
from esim_fast.cli.options import Parser

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DRY_RUN = os.environ.get("ESIM_FAST_DRY_RUN") == "1" and DEVICE.type == "cpu"
ON_GPU = DEVICE.type == "cuda" or DRY_RUN
FULL_SIZE = ON_GPU and not DRY_RUN

PRECISIONS = ("fp32", "tf32", "bf16") if ON_GPU else ("fp32",)
# A round is the fastest of several calls in a row, because slower ones were interrupted or had to refill the caches
# after another variant. It has as many calls as fit into LONG_CALL seconds, at least 5 and at most 50. A call longer
# than LONG_CALL is a round of its own.
LONG_CALL = 0.05
KNOWN = 0.02  # how precisely a median must be known, relative to it
REPLAYS = 5  # back to back, so that the GPU waits only for the first launch

Call = Callable[[], object]


class Variant(NamedTuple):
    """One way to compute a result.

    Attributes:
        call: the timed call.
        check: raises AssertionError if results are wrong, and other errors if the variant does not run here.
        moves: bytes that a call must at least read and write.
        multiplies: operations of a call's matrix products, and their precision.
        saves: returns the bytes saved for the backward pass; used on a CPU. On a GPU, peak memory is measured.
        file_bytes: returns the size of the model's file.
    """

    call: Call
    check: Callable[[], None]
    moves: int | None = None
    multiplies: tuple[int, str] | None = None
    saves: Callable[[], int] | None = None
    file_bytes: Callable[[], int] | None = None


def gpu_options(parser: Parser) -> Namespace:
    """Parse the command line of a GPU benchmark, which also has --json and --dry-run.

    Ends with exit code 2 if there is no GPU and this is no dry run.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if DEVICE.type == "cpu" and not options.dry_run:
        parser.error("there is no NVIDIA GPU here (--dry-run needs none)")
    return options


def in_turns(calls: dict[str, Call], seconds: float, least: int, on_device: bool = False) -> dict[str, list[float]]:
    """Times calls in turns, each turn beginning with another call; returns the seconds of each round.

    Stops when all medians are known to KNOWN, but not before ``least`` rounds and a third of ``seconds`` per call. It
    stops in any case after ``seconds`` per call, or four times that if short calls vary too much on a busy machine.
    """
    if not calls:
        return {}
    # Freeing a large tensor makes glibc's malloc reuse memory, as in a training process. Otherwise it returns memory
    # to the system and gets it back page by page, which can take longer than the call itself.
    torch.empty(30 * 2**20, dtype=torch.uint8).fill_(0)
    clock = seconds_of_replays if on_device else seconds_of
    firsts = {name: clock(call) for name, call in calls.items()}  # compiles, and chooses algorithms
    longest = max(first if first > 10 else min(clock(calls[name]) for _ in range(2)) for name, first in firsts.items())
    each = 1 if longest > LONG_CALL else min(max(5, int(LONG_CALL / longest / (REPLAYS if on_device else 1))), 50)
    names, samples = list(calls), {name: [] for name in calls}
    begin = time.perf_counter()
    while True:
        for name in names:
            samples[name].append(min(clock(calls[name]) for _ in range(each)))
        names.append(names.pop(0))
        passed = (time.perf_counter() - begin) / len(calls)
        if len(samples[names[0]]) < least or passed < seconds / 3:
            continue
        worst = max(map(spread, samples.values()))
        if worst < KNOWN or passed >= seconds * (4 if each > 1 and worst > 2 * KNOWN else 1):
            return samples


def spread(samples: list[float]) -> float:
    """Half the median's 95 % confidence interval, from order statistics, relative to the median."""
    ordered, half = sorted(samples), 0.98 * len(samples) ** 0.5
    low, high = max(0, int(len(samples) / 2 - half)), min(len(samples) - 1, int(len(samples) / 2 + half))
    return (ordered[high] - ordered[low]) / 2 / median(samples)


def seconds_of(call: Call) -> float:
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else int
    wait()
    begin = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begin


def seconds_of_replays(replay: Call) -> float:
    """Seconds on the device per replay, without Python and launches."""
    if DEVICE.type != "cuda":
        return seconds_of(replay)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / REPLAYS


def recorded(call: Call) -> Call:
    """Record the call's launches as a CUDA graph and return its replay; RuntimeError if that is impossible."""
    if DEVICE.type != "cuda":
        return call
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):  # algorithms must be chosen before the recording, on its stream
        for _ in range(3):
            call()
    here.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # Autograd runs backward passes in its own thread, whose allocations would invalidate a "global" capture.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            call()
    except RuntimeError:
        torch.cuda.set_stream(here)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        raise
    return graph.replay


def peak_bytes(call: Call) -> int:
    """Peak GPU memory of the call, above what was allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def saved_bytes(forward: Call, parameters: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that a forward pass saves for the backward pass, without ``parameters``."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive until counted, so that no address is reused

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # keeps the graph alive
        kept = sum(storage.nbytes() for address, storage in storages.items() if address not in own)
    del result
    return kept


@cache
def copy_bandwidth(moved: int, on_device: bool) -> float:
    """Bytes per second, read and written, of a copy of the same size, which no kernel can beat by much."""
    source, copy = (torch.ones(max(1, moved // 2), dtype=torch.uint8, device=DEVICE) for _ in range(2))
    call = partial(copy.copy_, source)
    return moved / median(in_turns({"": recorded(call) if on_device else call}, 0.3, 10, on_device)[""])


@cache
def product_rate(precision: str, size: int = 8192 if FULL_SIZE else 1024) -> float:
    """Operations per second of a large matrix product in "fp32", "tf32" or "bf16"."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=DEVICE).to(dtype)
    with precision_set(precision):
        return 2 * size**3 / median(in_turns({"": recorded(partial(torch.mm, a, b))}, 0.3, 10, on_device=True)[""])


@contextmanager
def precision_set(precision: str) -> Iterator[None]:
    """Set whether fp32 products and LSTMs use TF32: both for precision "tf32", only LSTMs for "bf16"."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision in ("tf32", "bf16")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def machine() -> dict[str, object]:
    """Hardware and versions, besides those that pytest-benchmark records."""
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "compiler": build_info()["compiler"]}
    for name in ("esim_fast", "triton", "onnxruntime", "transformers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if DEVICE.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found

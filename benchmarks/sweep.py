"""Times launch configurations of local inference's Triton kernels on a GPU and prints entries for their launch tables.

    python -m benchmarks.sweep [--minutes 20] [--json FILE] [--dry-run]

The candidates for an entry of the tables in esim_fast/ops/triton/local_inference.py are the entry, its neighbors and
those that CANDIDATES there lists. If one tile has no entry yet, they are compared with many tiles.
Worker processes compile candidates while others are timed. --dry-run needs no GPU: it compiles some candidates for two
entries for an H100, runs two in Triton's interpreter, and times none.
"""

import os
import re
import signal
import sys
import time
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean, median
from unittest.mock import Mock, patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks import measure
from esim_fast import pack_pairs
from esim_fast.cli.options import Parser, rate
from esim_fast.files import write_json
from esim_fast.ops import reference
from esim_fast.ops.triton import local_inference, runtime
from esim_fast.ops.triton.local_inference import CANDIDATES, MANY_TILES, ON_CHIP, ONE_TILE
from esim_fast.ops.triton.runtime import Config

Batch = tuple[int, int, int]  # pairs, length of the longest premise, length of the longest hypothesis
# By case: kernel, arithmetic and, for one tile, its sides. None: many tiles compute what one tile might.
PRESENT: dict[tuple, Config | None] = dict.fromkeys(CANDIDATES) | ONE_TILE | ON_CHIP | MANY_TILES
KERNELS = tuple(dict.fromkeys(kernel for kernel, _ in MANY_TILES))
WIDTH = 600  # of ESIM's BiLSTM
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
TILES = ((16, 16), (32, 16), (64, 32), (64, 16), (32, 32), (64, 64))  # first those with most of SNLI's words
BLOCKS = 16, 32, 64, 128, 256
AXES = {"block_k": BLOCKS, "block_d": BLOCKS, "tile": BLOCKS[:3], "num_warps": (1, 2, 4, 8), "num_stages": (1, 2, 3, 4)}
AXES["max_registers"] = None, 224, 168, 128
H100 = (GPUTarget("cuda", 90, 32), 132, 227 * 1024)  # target, multiprocessors, bytes of shared memory of a program
COMPILING = 60  # seconds after which a compiler is taken to hang
SECONDS, ROUNDS = 0.6, 5  # most seconds and fewest rounds of a candidate on a batch
GAIN = 0.02  # smaller gains may be noise
TRIED = 3  # candidates of an entry in a dry run
TOKENS = 2**16  # in all copies of a batch, hundreds of MB, which exceed a GPU's cache


def cases() -> list[tuple]:
    """The cases, the most important first: one tile, in bf16."""
    order = (*product(DTYPES, TILES, KERNELS), *product(DTYPES, [()], KERNELS))
    found = [case for arithmetic, tile, kernel in order if (case := (kernel, arithmetic, *tile)) in PRESENT]
    return found[:2] if runtime.INTERPRETED else found


def batches(case: tuple) -> list[Batch]:
    found = [(pairs, *case[2:]) for pairs in (1024, 256, 32)] if case[2:] else [(64, 128, 128), (16, 512, 512)]
    return [(2, *found[0][1:])] if runtime.INTERPRETED else found


def candidates(case: tuple) -> list[Config | None]:
    """The present entry, those listed, and all that are one step away from the present one."""
    present, found = PRESENT[case], []
    for name, values in AXES.items() if present else ():
        if (value := getattr(present, name)) in values:  # other values mean that the kernel does not use it
            at = values.index(value)
            found += [present._replace(**{name: other}) for other in values[max(0, at - 1) : at + 2]]
    return list(dict.fromkeys([present, *CANDIDATES.get(case, ()), *found]))[: TRIED if runtime.INTERPRETED else None]


def entry(case: tuple, config: Config | None) -> str:
    """A line of the tables."""
    if config is None:
        return f"# {case}: many tiles,".replace("'", '"')
    named = "".join(f", {name}={value}" for name, value in list(config._asdict().items())[4:] if value)
    return f"{case}: Config({', '.join(map(str, config[:4]))}{named}),".replace("'", '"')


class Inputs:
    """Packed rows, m's gradient for backward kernels, and memory for the result; on "meta" for compiling."""

    def __init__(self, case: tuple, batch: Batch, device: str | torch.device) -> None:
        torch.manual_seed(0)
        (pairs, *longest), like = batch, {"dtype": DTYPES[case[1]], "device": device}
        ids = [torch.ones(pairs, most, dtype=torch.int64) for most in longest]
        packed = pack_pairs(*ids, *(torch.randint(most // 2 + 1, most + 1, (pairs,)) for most in longest)).to(device)
        # This scale gives scores of about ten, like a trained encoder's.
        x, m = (torch.randn(len(packed.tokens), width, **like).div(2) for width in (WIDTH, 4 * WIDTH))
        self.grad_m, self.result = (None, m) if case[0] in ("scores", "forward") else (m, torch.empty_like(x))
        self.case, self.x, (a, b, _) = case, x, packed.rows(WIDTH)
        where = (a.start, a.step, a.lengths, None, b.start, b.step, b.lengths, None, a.max_length, b.max_length, True)
        self.rows, self.sides = (a, b), local_inference.sides_of(x, x, where)

    def plan(self, config: Config | None) -> list[runtime.Launch]:
        """The launches of a user's call if the table had this entry."""
        torch.backends.cuda.matmul.fp32_precision = "tf32" if self.case[1] == "tf32" else "ieee"
        on_chip = config if config and self.case[2:] and not config.block_k else None
        table = ONE_TILE if self.case[2:] else MANY_TILES
        with patch.dict(ON_CHIP, {self.case: on_chip}), patch.dict(table, {self.case: config}):
            if self.grad_m is None:
                return local_inference.plan_forward(*self.sides, self.result, self.result)
            return local_inference.plan_backward(*self.sides, self.grad_m, self.grad_m, self.result, self.result)

    def computed(self, config: Config | None) -> torch.Tensor:
        """The result; what the kernels fail to write is NaN."""
        launches = self.plan(config)
        for tensor in chain(*(launch.arguments for launch in launches)):
            if isinstance(tensor, torch.Tensor) and tensor is not self.grad_m:
                tensor.fill_(float("nan"))
        for launch in launches:
            launch.start()
        return self.result.clone()

    def exact(self) -> torch.Tensor:
        """The result from the equations in fp64."""
        m = reference.local_inference_packed(x := self.x.double().requires_grad_(), *self.rows)
        return m.detach() if self.grad_m is None else torch.autograd.grad(m, x, self.grad_m.double())[0]


def refusal(case: tuple, config: Config | None, batch: Batch, gpu: tuple[GPUTarget, int, int]) -> str | None:
    """Compile a candidate into Triton's cache, without using a GPU; return why it is unusable, or None."""
    signal.alarm(COMPILING)  # ends the process
    triton.runtime.driver.set_active(Mock(get_current_target=lambda: gpu[0], get_current_device=lambda: 0))
    runtime.multiprocessors = lambda _: gpu[1]
    try:
        for launch in Inputs(case, batch, "meta").plan(config):
            if case[2:] or launch.kernel.__name__ == case[0]:
                code = launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.constants, **launch.options)
                if code.metadata.shared > gpu[2]:
                    return f"takes {code.metadata.shared} bytes of shared memory"
                if config != PRESENT[case] and re.search(r"\b(LDL|STL)\b", code.asm["sass"]):
                    return "keeps registers in memory"
    except Exception as error:  # the compiler raises many kinds, and some cannot be pickled
        return f"does not compile: {error!r:.120}"
    finally:
        signal.alarm(0)
    return None


def measured(case: tuple, batch: Batch, refused: dict[Config | None, str]) -> dict[Config | None, float]:
    """Microseconds of the candidates that are as exact as the present entry; adds the others to ``refused``."""
    copies, some = (1, 2) if runtime.INTERPRETED else (1 + TOKENS // (batch[0] * sum(batch[1:])), None)
    inputs = [Inputs(case, batch, measure.DEVICE) for _ in range(copies)]
    exact, allowed, calls = inputs[0].exact(), float("inf"), {}
    for config in (c for c in candidates(case)[:some] if not refused.keys() & {c, PRESENT[case]}):
        try:
            result, again = inputs[0].computed(config), inputs[0].computed(config)
            error = float(((result.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())  # of the worst token
            if not torch.equal(result, again) or not error <= allowed:
                raise ValueError(f"is not reproducible, or is off by {error:.1e}, allowed {allowed:.1e}")
            allowed = allowed if calls else 2 * error + torch.finfo(result.dtype).eps
            launches = list(chain(*(one.plan(config) for one in inputs)))
            for launch in launches:  # the timed kernel may read what other kernels write
                launch.start()
            own = [launch for launch in launches if case[2:] or launch.kernel.__name__ == case[0]]
            calls[config] = measure.recorded(lambda own=own: [launch.start() for launch in own])
        except Exception as error:  # Triton and the driver may raise anything
            refused[config] = f"{error!r:.120}"
    taken = {} if runtime.INTERPRETED else measure.in_turns(calls, SECONDS, ROUNDS, on_device=True)
    return {config: 1e6 * median(seconds) / copies for config, seconds in taken.items()}


def tried(case: tuple, compiling: dict, end: float) -> dict[str, object]:
    """Print and return the best candidate and, for each one, microseconds by batch or why it is unusable."""
    present, refused, limit = PRESENT[case], {}, min(end, time.monotonic() + 3 * COMPILING)
    for batch, config in product(batches(case), candidates(case)):
        result = compiling[case, config, batch]
        result.wait(max(0.0, limit - time.monotonic()))  # never ready if its process died
        if reason := result.get() if result.ready() else "did not compile in time":
            refused[config] = reason
    times = [measured(case, batch, refused) if time.monotonic() < end else {} for batch in batches(case)]
    ratios = {c: geometric_mean([t[c] / t[present] for t in times]) for c in set.intersection(*map(set, times))}
    best = entry(case, min(ratios, key=lambda config: ratios[config] + GAIN * (config != present), default=present))
    timed = {config: [round(taken[config], 2) for taken in times if config in taken] for config in candidates(case)}
    found = {entry(case, config): refused.get(config, figures) for config, figures in timed.items()}
    print(f"{best}  # the best; microseconds at {batches(case)}:")
    print(*(f"    {name}  # {found[name] or 'fits'}" for name in found), sep="\n", flush=True)
    return {"best": best, "batches": batches(case), "candidates": found}


def main() -> None:
    parser = Parser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=rate, default=20.0, help="start no batch after this time; default: 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU")
    options = parser.parse_args()
    if options.dry_run and not runtime.INTERPRETED:  # Triton reads the variable on import
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.sweep", *sys.argv[1:]])
    end, gpu, chosen, records = time.monotonic() + 60 * options.minutes, H100, cases(), []
    if not options.dry_run:
        if runtime.INTERPRETED or measure.DEVICE.type != "cuda":
            parser.error("there is no NVIDIA GPU here, or TRITON_INTERPRET is set (--dry-run needs none)")
        p = torch.cuda.get_device_properties(measure.DEVICE)
        gpu = (GPUTarget("cuda", 10 * p.major + p.minor, 32), p.multi_processor_count, p.shared_memory_per_block_optin)
    with patch.dict(os.environ, TRITON_INTERPRET="0", OMP_NUM_THREADS="1"):
        pool = get_context("spawn").Pool(max(1, min(16, (os.cpu_count() or 1) - 2)))  # two cores stay free for timing
    with pool:
        tasks = [(case, config, batch) for case in chosen for batch in batches(case) for config in candidates(case)]
        compiling = {task: pool.apply_async(refusal, (*task, gpu)) for task in tasks}
        for case in chosen:
            records += [tried(case, compiling, end)] if time.monotonic() < end else []
            if options.json:
                write_json(options.json, {**measure.machine(), "cases": records})


if __name__ == "__main__":
    main()

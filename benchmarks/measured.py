"""Compiles candidates for the kernels' launches, checks them against the equations and times them: see sweep.py."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import candidates
from benchmarks.candidates import Case, Gpu, Inputs, compile_candidate, one_line
from benchmarks.equality import relative_error
from benchmarks.predicted import Code
from benchmarks.timing import copy_bandwidth, device_times
from esim_fast import Rows
from esim_fast.ops import reference
from esim_fast.ops.triton.runtime import Config

DEVICE = torch.device("cuda")
ROUNDS = 20
GAIN = 0.02  # a smaller one may be luck
COPIES = 64  # of a case's batches, at most: together they should exceed the cache
Examined = list[tuple[int, Code]] | str  # what candidates.compile_candidate returns


class Compiler:
    """Compiles candidates in other processes, while others are timed."""

    def __init__(self, jobs: int, gpu: Gpu) -> None:
        self.gpu = gpu
        self._environment = patch.dict(os.environ, {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"})
        self._environment.start()  # for the processes to come, which import Triton anew
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
        self._futures: dict[tuple, Future] = {}

    def submit(self, case: Case, configs: Sequence[Config], batch: tuple[str, int]) -> dict[Future, Config]:
        keys = {(case, config, batch): config for config in configs}
        for key in keys:
            if key not in self._futures:
                self._futures[key] = self._pool.submit(compile_candidate, *key, self.gpu)
        return {self._futures[key]: config for key, config in keys.items()}

    def get(self, case: Case, configs: Sequence[Config], batch: tuple[str, int], end: float) -> dict[Config, Examined]:
        """Those that are compiled in time."""
        futures = self.submit(case, configs, batch)
        done = wait(futures, max(0.0, end - time.monotonic())).done
        return {config: future.result() for future, config in futures.items() if future in done}

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._environment.stop()


def problem(examined: Examined, gpu: Gpu) -> str | None:
    """Why a candidate cannot be launched, or is not worth it."""
    if isinstance(examined, str):
        return f"does not compile: {examined}"
    if (most := max(code.shared for _, code in examined)) > gpu.shared:
        return f"{most} bytes of shared memory"
    if any(code.spills for _, code in examined):
        return "registers go to memory"
    return None


def prediction(examined: list[tuple[int, Code]], gpu: Gpu) -> dict[str, float]:
    """Predicted seconds of all launches together, by limit."""
    limits = [code.limits(programs, gpu.multiprocessors) for programs, code in examined]
    return {name: sum(each[name] for each in limits) for name in limits[0]}


def ordered(found: dict[Config, Examined], gpu: Gpu) -> list[Config]:
    """Those that fit, those predicted to be the fastest first."""

    def seconds(config: Config) -> tuple[float, float]:
        limits = prediction(found[config], gpu).values()
        return max(limits), sum(limits)

    return sorted((config for config in found if problem(found[config], gpu) is None), key=seconds)


def exact(inputs: Inputs) -> torch.Tensor:
    """What the kernels should make of the inputs, by the equations in fp64."""
    *addresses, a_longest, b_longest, _ = inputs.addresses
    a_rows, b_rows = Rows(*addresses[:3], a_longest), Rows(*addresses[4:7], b_longest)
    x = inputs.x.double().requires_grad_(inputs.grad_m is not None)
    m = reference.local_inference_packed(x, a_rows, b_rows)
    return m if inputs.grad_m is None else torch.autograd.grad(m, x, inputs.grad_m.double())[0]


def errors_of(case: Case, config: Config, inputs: Inputs, expected: torch.Tensor) -> tuple[float, float] | str:
    """A candidate's error, by norm and at its worst element, or why its result is wrong at any tolerance."""
    results = []
    try:
        with candidates.in_place(case, config):
            planned = inputs.plan(case)
        for _ in range(2):
            inputs.result.fill_(float("nan"))  # shows what nobody writes
            for launch in planned:
                launch.start()
            results.append(inputs.result.clone())
    except Exception as error:  # whatever Triton or the driver raises
        return f"does not run: {one_line(error)}"
    if not results[0].isfinite().all():
        return "leaves results out, or makes them no numbers"
    if not torch.equal(*results):
        return "does not repeat itself"
    off = (results[0].double() - expected).abs().max()
    return relative_error(results[0], expected), float(off / expected.abs().max())


def wrong(case: Case, errors: tuple[float, float] | str, present: tuple[float, float] | str) -> str | None:
    """Why a result is refused. One as exact as the present entry's, which sums in another order, is exact enough."""
    if isinstance(errors, str):
        return errors
    if isinstance(present, str):
        return f"the present entry, which it is judged by, {present}"
    rounding = torch.finfo(candidates.DTYPES[case.arithmetic]).eps
    if not all(error <= 2 * allowed + rounding for error, allowed in zip(errors, present, strict=True)):
        return f"is off by {errors[0]:.1e}, at most {errors[1]:.1e}; the present entry by {present[0]:.1e}"
    return None


def check_interpreted(case: Case, configs: list[Config]) -> dict[Config, str | None]:
    """Why each candidate is refused, if it is, on two pairs in Triton's interpreter. Needs TRITON_INTERPRET=1."""
    lengths = candidates.batches_of(*case.batches[-1], case.tiles)[0]
    inputs = Inputs.draw(case, lengths[np.argmax(lengths, 0)], torch.device("cpu"))
    expected = exact(inputs)
    present = errors_of(case, case.present, inputs, expected)
    return {config: wrong(case, errors_of(case, config, inputs, expected), present) for config in configs}


def rotated(case: Case, batch: tuple[str, int], cache: int) -> list[Inputs]:
    """Batches that together are a few times the GPU's cache, each with memory of its own."""
    lengths = candidates.batches_of(*batch, case.tiles)
    inputs, moved = [], 0
    while len(inputs) < len(lengths) or (len(inputs) < COPIES and moved < 3 * cache):
        inputs.append(Inputs.draw(case, lengths[len(inputs) % len(lengths)], DEVICE, len(inputs)))
        moved += inputs[-1].moved(case)
    return inputs


class Measured(NamedTuple):
    """Why candidates were refused; the others' seconds for a batch and shares of the copy's rate, by kind of batch."""

    refused: dict[Config, str]
    seconds: dict[str, dict[Config, float]]
    shares: dict[str, dict[Config, float]]


def measure(case: Case, configs: Sequence[Config], end: float) -> Measured:
    """Checks and times the candidates, the present entry first, on all batches of the case, as far as time goes."""
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    measured = Measured({}, {}, {})
    for kind, pairs in case.batches:
        if time.monotonic() >= end:
            break
        name, inputs = f"{kind} at {pairs}", rotated(case, (kind, pairs), cache)
        calls = _right(case, configs, inputs, measured.refused, end)
        by_name = device_times(name, {str(config): call for config, call in calls.items()}, rounds=ROUNDS).values
        seconds = {config: by_name[str(config)] for config in calls if str(config) in by_name}
        moved = sum(batch.moved(case) for batch in inputs)
        measured.seconds[name] = {config: total / len(inputs) for config, total in seconds.items()}
        measured.shares[name] = {config: moved / total / copy_bandwidth() for config, total in seconds.items()}
    return measured


def _right(
    case: Case, configs: Sequence[Config], inputs: list[Inputs], refused: dict[Config, str], end: float
) -> dict[Config, Callable]:
    """The candidates whose results are right, as calls on all inputs; notes why the others are refused."""
    expected = exact(inputs[0])
    present = errors_of(case, case.present, inputs[0], expected)
    calls: dict[Config, Callable] = {}
    for config in configs:
        if config in refused or (calls and time.monotonic() >= end):
            continue
        if reason := wrong(case, errors_of(case, config, inputs[0], expected), present):
            refused[config] = reason
            continue
        launches = []
        with candidates.in_place(case, config):
            for batch in inputs:
                planned = batch.plan(case)
                for launch in planned:  # the case's kernels may read what the others write
                    launch.start()
                launches += case.own(planned)
        calls[config] = lambda launches=launches: [launch.start() for launch in launches]
    return calls


def winner(case: Case, measured: Measured) -> Config:
    """The fastest, batches alike, of the right ones that were timed on all; the present entry, if none beats it."""
    rounds = [seconds for seconds in measured.seconds.values() if case.present in seconds]

    def ratio(config: Config) -> float:
        return float(np.exp(np.mean([np.log(seconds[config] / seconds[case.present]) for seconds in rounds])))

    complete = [config for config in (rounds[0] if rounds else ()) if all(config in seconds for seconds in rounds)]
    best = min((config for config in complete if config not in measured.refused), key=ratio, default=case.present)
    return best if best == case.present or ratio(best) <= 1 - GAIN else case.present

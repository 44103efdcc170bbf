"""Training steps as CUDA graphs against eager steps, torch.compile and cuDNN, and whether they train the same.

    python -m benchmarks.captured_steps [--precisions NAME ...] [--backend cuda] [--json FILE] [--dry-run]

A step is forward, cross entropy, backward and fused Adam; esim_fast's steps also clip the gradient. A captured step
takes its batch from the CPU's memory, pads it and copies it, while all others have theirs on the GPU. Captured steps
must train like eager ones while all memory that they must not read is NaN, and they must repeat themselves to the bit.
They are timed in any case, but the exit code is 1 if they do not. --backend cuda measures only captured steps with the
CUDA BiLSTM, beside the eager steps that all are compared with; without it, everything else is measured. --dry-run tries
everything at a small size without a GPU, where a graph is the captured function.
"""

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from itertools import cycle, islice, product
from multiprocessing import get_context
from statistics import mean, median
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.baselines import EAGER, NotebookESIM
from benchmarks.conftest import Group
from benchmarks.corpus import draw_pairs, make_batches
from benchmarks.measure import DEVICE, FULL_SIZE, Call, Variant, precision_set
from benchmarks.models import COMPILED, SIZES, Check, Model, timed
from benchmarks.report import Row, table
from esim_fast import ESIM, graphs
from esim_fast.cli.options import Parser
from esim_fast.data import Batch, batches
from esim_fast.errors import one_line
from esim_fast.files import write_json
from esim_fast.graphs import EAGER_USES
from esim_fast.layers import keyed_dropout
from esim_fast.training import CapturedStep, Recipe, plan_capacities, step_sizes, training_step
from esim_fast.training.capacities import Size
from tests.training.training_tasks import GraphsOnCPU

OURS, CUDNN, CAPTURED, CAPTURED_CUDA = (f"esim_fast, {how}" for how in ("eager", "cudnn", "captured", "captured, cuda"))
BACKENDS = {OURS: None, CUDNN: "cudnn", CAPTURED: None, CAPTURED_CUDA: "cuda"}  # of the BiLSTMs
MODES = {COMPILED[0]: "default", f"{COMPILED[0]}, reduce-overhead": "reduce-overhead"}
# By --backend. The CUDA BiLSTM has never run on a GPU: if it crashes, it must not take the others with it.
CHOSEN = {None: (EAGER, *MODES, OURS, CUDNN, CAPTURED), "cuda": (EAGER, CAPTURED_CUDA)}
PRECISIONS = ("bf16", "tf32", "fp32")
DEFAULT = PRECISIONS[:2] if FULL_SIZE else PRECISIONS[:1]
PAIRS, BATCHES = ((32, 512), 5) if FULL_SIZE else ((32,), 2)
PLANNED = 100 if FULL_SIZE else 3  # batches of an epoch that capacities are planned for
STEPS, REPETITIONS = (50, 100) if FULL_SIZE else (6, 2)
SECONDS, ROUNDS = (0.5, 7) if FULL_SIZE else (0.1, 1)  # most seconds of a variant, and fewest rounds
# Most that weights may differ, relative to how far they moved. The same kernels give the same bits, but cuBLAS may
# choose others in a graph, and Adam takes large steps even along small gradients.
ALLOWED = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 1e-2}
# Most that a parameter's gradient, averaged over a few steps, may differ if other kernels compute it without padding.
ALLOWED_UNPADDED = {"fp32": 1e-2, "tf32": 5e-2, "bf16": 1e-1}


class WatchedGraphs(graphs.CUDAGraphs if DEVICE.type == "cuda" else GraphsOnCPU):
    """Graphs that note how long a capture takes and what was replayed last.

    Attributes:
        poisons: whether to fill all unused memory of the graphs with NaN before each replay.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.poisons, self.capture_seconds, self.last = False, [], None
        self._unused: list[Tensor] | None = None

    def capture(self, work):
        begin, self._unused = time.perf_counter(), None
        replay = super().capture(work)
        self.capture_seconds.append(time.perf_counter() - begin)

        def watched() -> None:
            if self.poisons:
                for memory in self.unused():
                    memory.fill_(0xFF)  # NaN in every floating-point format
            self.last = replay
            replay()

        return watched

    def segments(self) -> list[dict]:
        """The memory that the graphs share."""
        found = torch.cuda.memory_snapshot() if DEVICE.type == "cuda" else []
        return [segment for segment in found if tuple(segment["segment_pool_id"]) == tuple(self._pool)]

    def unused(self) -> list[Tensor]:
        """The parts of it that no tensor holds outside of replays, as bytes."""
        if self._unused is None:
            blocks = [block for segment in self.segments() for block in segment["blocks"]]
            self._unused = [bytes_at(x["address"], x["size"]) for x in blocks if x["state"] == "inactive"]
        return self._unused


def bytes_at(address: int, size: int) -> Tensor:
    """A tensor of the GPU's memory at an address."""
    memory = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=memory), device=DEVICE)


@contextmanager
def watched_graphs() -> Iterator[None]:
    """Within this context, new captured steps use WatchedGraphs."""
    with patch.object(graphs, "CUDAGraphs", WatchedGraphs):
        yield


class Training:
    """A network of esim_fast, what trains it, and its eager and captured steps."""

    def __init__(self, precision: str, capacities: Sequence[Size], backend: str | None) -> None:
        torch.manual_seed(0)
        self.net = ESIM(*SIZES, variant="notebook", bilstm_backend=backend).to(DEVICE).train()
        recipe = Recipe(precision="bf16" if precision == "bf16" else "fp32")
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=recipe.learning_rate, fused=True)
        more = optimizer, torch.amp.GradScaler(DEVICE.type, enabled=False), recipe
        net, self.optimizer = self.net, optimizer
        self.eager = lambda batch: training_step(net, [batch], *more)
        with watched_graphs():
            self.captured = CapturedStep(self.net, *more, capacities)
        self.graphs: WatchedGraphs = self.captured._graphs

    def weights(self) -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in self.net.parameters()])

    def gradients(self) -> list[Tensor]:
        """Adam's averages of the gradients so far."""
        return [self.optimizer.state[weight]["exp_avg"] for weight in self.net.parameters()]

    def state(self) -> list[Tensor]:
        """All that a step changes."""
        of_optimizer = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*(weight.detach() for weight in self.net.parameters()), *of_optimizer]


@cache
def peers() -> dict[str, Model]:
    """The notebook's model, eager and compiled; they share a network, and compile once for all numbers of pairs."""
    net = NotebookESIM(*SIZES, packed=False).to(DEVICE)
    # Compiling for a CPU would take minutes.
    compiled = {
        name: torch.compile(net, dynamic=True, **({"mode": mode} if FULL_SIZE else {"backend": "eager"}))
        for name, mode in MODES.items()
    }
    return {
        name: Model(net, lambda x, run=run: run(x.p, x.h), padded=True)
        for name, run in {EAGER: net, **compiled}.items()
    }


class Contest:
    """The ways to run a step that are chosen, on the same batches.

    Attributes:
        variants: each way, or the reason why it cannot run.
        trainings: of those that are captured.
        checks: what was found about them.
    """

    def __init__(self, pairs: int, precision: str, backend: str | None = None) -> None:
        found = make_batches(pairs, BATCHES)
        self.name, self.precision = f"training, {pairs} pairs, {precision}", precision
        self.batches = [Batch(x.pairs, x.labels, torch.arange(pairs), pairs) for x in found]
        epoch = batches(draw_pairs(PLANNED * pairs, np.random.default_rng(0)), pairs, shuffle=True)
        own = [Size(pairs, len(batch.pairs.tokens), *batch.pairs.longest) for batch in self.batches]
        self.capacities = plan_capacities([*step_sizes(epoch), *own])
        self.variants: dict[str, Variant | str] = {}
        self.trainings: dict[str, Training] = {}
        self.checks: dict[str, dict[str, object]] = {}
        padded = [x.to(DEVICE) for x in found]
        self.check = Check(padded[-1], precision, gradients=False)
        for name in CHOSEN[backend]:
            if model := peers().get(name):
                call = timed(model, padded, precision, training=True)
                # Those that are compiled must run; test_training.py checks their results.
                self.variants[name] = Variant(call, partial(self.check, model) if name == EAGER else call)
            else:
                here = DEVICE.type == "cuda" or not BACKENDS[name]
                self.variants[name] = self.of_ours(name) if here else "needs an NVIDIA GPU"

    def of_ours(self, name: str) -> Variant:
        training = Training(self.precision, self.capacities, BACKENDS[name])
        if name not in (CAPTURED, CAPTURED_CUDA):
            moved = [batch.to(DEVICE) for batch in self.batches]
            model = Model(training.net, lambda x: training.net(x.pairs))
            return Variant(self.all_of(training.eager, moved), partial(self.check, model))
        self.trainings[name] = training
        return Variant(self.all_of(lambda batch: training.captured([batch]), self.batches), partial(self.compare, name))

    def all_of(self, step, given: list[Batch]) -> Call:
        @precision_set(self.precision)
        def call() -> None:
            for batch in given:
                step(batch)

        return call

    def compare(self, name: str) -> None:
        """Compare captured steps with eager ones and with themselves; then capture those that are timed."""
        (weights, losses, begin, replayed), (others, other_losses, *_) = (
            self.trained(name, uses) for uses in (EAGER_USES, 10**9)
        )
        off = float((weights - others).norm() / (others - begin).norm())
        unpadded, different = self.off_unpadded(name), self.different(name)
        self.checks[f"{self.name}, {name}"] = {
            "steps": STEPS,
            "replayed": replayed,
            "same_bits": torch.equal(weights, others) and torch.equal(losses, other_losses),
            "difference": off,
            "allowed": ALLOWED[self.precision],
            "unpadded_difference": unpadded,
            "unpadded_allowed": ALLOWED_UNPADDED[self.precision],
            # False if a difference is NaN.
            "equal": replayed > 0 and off <= ALLOWED[self.precision] and unpadded <= ALLOWED_UNPADDED[self.precision],
            "repetitions": REPETITIONS,
            "different_repetitions": different,
        }
        if not replayed:
            raise AssertionError("no step was captured")
        for _ in range(EAGER_USES + 1):
            self.variants[name].call()

    def trained(self, name: str, eager_uses: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """The weights, losses and number of replays after some steps, and the weights before them."""
        training = Training(self.precision, self.capacities, BACKENDS[name])
        begin, training.graphs.poisons = training.weights(), True
        with patch.object(graphs, "EAGER_USES", eager_uses), precision_set(self.precision):
            losses = [training.captured([batch]).loss_sum for batch in islice(cycle(self.batches), STEPS)]
        return training.weights(), torch.stack(losses), begin, training.captured.statistics.replayed

    def off_unpadded(self, name: str) -> float:
        """How far the gradients of ``training_step`` on the batches as they are differ, in the worst parameter."""
        training, other = (Training(self.precision, self.capacities, BACKENDS[name]) for _ in range(2))
        with precision_set(self.precision):
            for number, batch in enumerate(self.batches, start=1):
                training.captured([batch])
                with keyed_dropout(torch.tensor([0, number], device=DEVICE)):  # the recipe's seed, and the step
                    other.eager(batch.to(DEVICE))
        found = zip(training.gradients(), other.gradients(), strict=True)
        return float(torch.stack([(gradient - wanted).norm() / wanted.norm() for gradient, wanted in found]).max())

    def different(self, name: str) -> int:
        """How many repetitions of a replayed step give other bits than the first."""
        training = Training(self.precision, self.capacities, BACKENDS[name])
        training.graphs.poisons = True
        different, first = 0, None
        with precision_set(self.precision):
            for _ in range(EAGER_USES):
                training.captured(self.batches[:1])
            before = [value.clone() for value in training.state()]
            for _ in range(REPETITIONS):
                torch._foreach_copy_(training.state(), before)
                training.captured.steps = 0  # draws the same masks of dropout
                training.captured(self.batches[:1])
                first = first or [value.clone() for value in training.state()]
                different += not all(map(torch.equal, training.state(), first))
        return different

    def measured(self) -> tuple[list[Row], dict[str, BaseException]]:
        """Time the variants; return their rows, with seconds per step, and why others were not timed."""
        group = Group(self.name, self.variants, set(self.variants), on_device=False)
        group.samples = measure.in_turns(group.calls, SECONDS, ROUNDS)
        rows = []
        for name, taken in group.samples.items():
            info = group.information(name)
            if name in self.trainings:
                info |= self.information(self.trainings[name])
            rows.append(Row(name, median(taken) / BATCHES, len(taken), info))
        return rows, group.outcomes

    def information(self, training: Training) -> dict[str, float]:
        """What the report shows beside a captured step's seconds."""
        on_device, on_host = [], []
        with precision_set(self.precision):
            for batch in self.batches:
                for _ in range(5):
                    if DEVICE.type == "cuda":
                        torch.cuda.synchronize()
                    begin = time.perf_counter()
                    training.captured([batch])
                    on_host.append(time.perf_counter() - begin)
                samples = measure.in_turns({"": training.graphs.last}, 0.05, 3, on_device=True)[""]
                on_device.append(median(samples))
        segments = training.graphs.segments()
        return {
            "replay_seconds": mean(on_device),
            "host_seconds": median(on_host),
            "capture_seconds": median(training.graphs.capture_seconds),
            "graph_bytes": sum(segment["total_size"] for segment in segments),
        }


def compile_everything(pairs: int, precision: str, backend: str | None) -> None:
    """Run every variant once, which leaves what it compiles in the caches of Triton and Inductor on the disk."""
    for variant in Contest(pairs, precision, backend).variants.values():
        with suppress(Exception):  # timing will meet it again and report it
            variant.call()


def about_this_machine() -> dict[str, object]:
    """What pytest-benchmark writes, for benchmarks/report.py."""
    from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info

    machine = {**pytest_benchmark_generate_machine_info(), **measure.machine()}
    return {"machine_info": machine, "datetime": datetime.now().isoformat()}


def main() -> int:
    parser = Parser(prog="python -m benchmarks.captured_steps", description=__doc__.splitlines()[0])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=DEFAULT, metavar="NAME")
    parser.add_argument("--backend", choices=["cuda"], help="only captured steps with this BiLSTM, and eager ones")
    options = measure.gpu_options(parser)
    cases = list(product(options.precisions, PAIRS))
    if DEVICE.type == "cuda":
        with ProcessPoolExecutor(len(cases), mp_context=get_context("spawn")) as pool:
            compiling = {case: pool.submit(compile_everything, *case[::-1], options.backend) for case in cases}
        for (precision, pairs), future in compiling.items():
            if error := future.exception():
                print(f"compiling for {pairs} pairs, {precision}: {error!r}", flush=True)
    found, checks, not_timed, failed = [], {}, {}, False
    for precision, pairs in cases:
        contest = Contest(pairs, precision, options.backend)
        rows, outcomes = contest.measured()
        checks |= contest.checks
        not_timed |= {f"{contest.name}, {name}": one_line(outcome) for name, outcome in outcomes.items()}
        failed |= any(isinstance(outcome, Exception) for outcome in outcomes.values())
        failed |= any(not check["equal"] or check["different_repetitions"] for check in contest.checks.values())
        print(f"\n{contest.name}", *table(rows), sep="\n")
        print(*(f"{name}: {outcome}" for name, outcome in outcomes.items()), sep="\n")
        print(*(f"{name}: {facts}" for name, facts in contest.checks.items()), sep="\n", flush=True)
        found += [
            {
                "group": contest.name,
                "params": {"variant": row.variant},
                "stats": {"median": row.seconds, "rounds": row.rounds},
                "extra_info": row.info,
            }
            for row in rows
        ]
        del contest
        gc.collect()  # frees its graphs
        if options.json:
            facts = {"benchmarks": found, "checks": checks, "not_timed": not_timed}
            write_json(options.json, {**about_this_machine(), **facts})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

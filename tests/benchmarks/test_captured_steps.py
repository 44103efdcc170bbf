"""The benchmark of captured steps: what it measures, and that its check finds what is wrong."""

import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import captured_steps, measure, models
from benchmarks.baselines import EAGER
from benchmarks.captured_steps import CAPTURED, CAPTURED_CUDA, CUDNN, MODES, OURS, Contest
from benchmarks.corpus import VOCABULARY
from esim_fast.training import capture, training_step


@pytest.fixture
def contest(monkeypatch):
    """A small one."""
    for module in (captured_steps, models):
        monkeypatch.setattr(module, "SIZES", (8, 8, VOCABULARY, 3))
    for name, value in {"BATCHES": 2, "PLANNED": 3, "STEPS": 8, "REPETITIONS": 3}.items():
        monkeypatch.setattr(captured_steps, name, value)
    captured_steps.peers.cache_clear()
    yield Contest(4, "fp32")
    captured_steps.peers.cache_clear()


def test_what_is_measured_apart(contest):
    assert list(contest.variants) == [EAGER, *MODES, OURS, CUDNN, CAPTURED]
    assert list(Contest(4, "fp32", "cuda").variants) == [EAGER, CAPTURED_CUDA]


def test_a_step_that_does_not_compile(contest, monkeypatch):
    """It costs only its own figure."""

    def broken(*_):
        raise RuntimeError("no compiler")

    name = next(iter(MODES))
    captured_steps.peers.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda net, **_: broken)
    monkeypatch.setattr(captured_steps, "CHOSEN", {None: (name, OURS)})
    rows, outcomes = Contest(4, "fp32").measured()
    assert [row.variant for row in rows] == [OURS]
    assert str(outcomes[name]) == "does not run here: no compiler"


def test_right_ones(contest):
    contest.compare(CAPTURED)
    (found,) = contest.checks.values()
    assert (found["equal"], found["same_bits"], found["different_repetitions"]) == (True, True, 0)
    assert 0 < found["unpadded_difference"] < 1e-5
    assert 0 < found["replayed"] < found["steps"]


def test_compiling_fails(monkeypatch, capsys):
    """It is printed, and the steps are timed all the same."""

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, mp_context):
            super().__init__(workers)

    def crash(pairs, precision, backend):
        raise BrokenProcessPool(f"a process ended: {backend}")

    def contest(pairs, precision, backend):
        return SimpleNamespace(name=f"{pairs}, {precision}", measured=lambda: ([], {}), checks={})

    for name, value in {"ProcessPoolExecutor": Pool, "compile_everything": crash, "Contest": contest}.items():
        monkeypatch.setattr(captured_steps, name, value)
    for module in (captured_steps, measure):
        monkeypatch.setattr(module, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(sys, "argv", ["captured_steps", "--precisions", "tf32", "--backend", "cuda"])
    assert captured_steps.main() == 0
    printed = capsys.readouterr().out
    pairs = captured_steps.PAIRS[0]
    assert f"compiling for {pairs} pairs, tf32: BrokenProcessPool('a process ended: cuda')" in printed
    assert f"\n{pairs}, tf32\n" in printed


@pytest.mark.parametrize("mistake", ["smoothing", "nan"])
def test_other_steps_than_without_capture(contest, monkeypatch, mistake):
    """Replayed steps equal those that are not replayed yet, but both are wrong."""

    def other(net, parts, optimizer, scaler, recipe, *more, **options):
        if mistake == "nan":
            net.linear.mlp[3].bias.data.fill_(torch.nan)
        else:
            recipe = replace(recipe, label_smoothing=0.5)
        return training_step(net, parts, optimizer, scaler, recipe, *more, **options)

    monkeypatch.setattr(capture, "training_step", other)
    contest.compare(CAPTURED)
    (found,) = contest.checks.values()
    assert not found["equal"]
    assert found["replayed"] > 0


def test_only_unused_memory_of_the_graphs_is_filled(monkeypatch):
    """Not that of other pools, and also what the next capture leaves unused. Memory is replaced by tensors here."""
    states = {"active_allocated": 10, "inactive": 20, "active_awaiting_free": 30}
    blocks = [{"address": address, "size": 8, "state": state} for state, address in states.items()]
    segments = [{"segment_pool_id": (0, pool), "total_size": 24, "blocks": blocks} for pool in (0, 1, 2)]
    bytes_at = {20: torch.zeros(8, dtype=torch.uint8)}
    monkeypatch.setattr(captured_steps, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(captured_steps, "bytes_at", lambda address, size: bytes_at[address][:size])
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    graphs, seen = captured_steps.WatchedGraphs(torch.device("cpu")), []
    graphs._pool = (0, 1)
    replays = [graphs.capture(lambda: seen.append(bytes_at[20].view(torch.float32).isnan().all().item()))]
    replays[0]()
    graphs.poisons = True
    replays[0]()
    bytes_at[40] = torch.zeros(8, dtype=torch.uint8)
    segments[1]["blocks"] = [*blocks, {"address": 40, "size": 8, "state": "inactive"}]
    replays.append(graphs.capture(lambda: None))
    replays[1]()
    assert seen == [False, True]
    assert bytes_at[40].view(torch.bfloat16).isnan().all()
    assert sum(segment["total_size"] for segment in graphs.segments()) == 24


@pytest.mark.filterwarnings("ignore:training steps run eagerly")
@pytest.mark.parametrize("mistake", ["nothing", "noise", "no graph"])
def test_wrong_ones(contest, monkeypatch, mistake):
    """A graph does nothing, does not repeat itself, or cannot be captured."""
    biases, numbers, make = [], iter(range(100)), captured_steps.Training

    def made(*arguments):
        training = make(*arguments)
        biases.append(training.net.linear.mlp[3].bias.data)
        return training

    class Broken(captured_steps.WatchedGraphs):
        def capture(self, work):
            return super().capture(lambda: mistake == "noise" and [work(), biases[-1].add_(1e-6 * next(numbers))])

        def obstacle(self, net):
            return "a reason" if mistake == "no graph" else None

    monkeypatch.setattr(captured_steps, "WatchedGraphs", Broken)
    monkeypatch.setattr(captured_steps, "Training", made)
    with pytest.raises(AssertionError, match="no step was") if mistake == "no graph" else nullcontext():
        contest.compare(CAPTURED)
    (found,) = contest.checks.values()
    assert found["equal"] == (mistake == "noise")
    assert (found["different_repetitions"] > 0) == (mistake == "noise")

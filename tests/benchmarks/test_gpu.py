"""The run on a GPU: its parts, its verdicts, what a second run repeats, and the check of captured steps."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from benchmarks import captured_steps, gpu, models, verdicts
from benchmarks.baselines import EAGER
from benchmarks.captured_steps import CAPTURED, CAPTURED_CUDA, Contest
from benchmarks.corpus import VOCABULARY
from benchmarks.gpu import Part
from benchmarks.models import COMPILED
from esim_fast.cli.options import UsageError
from esim_fast.training import capture, training_step
from tests.benchmarks.test_benchmarks import ROOT, python

PARTS = """
import sys
from benchmarks import gpu
from benchmarks.gpu import Part
gpu.LEAST, gpu.PARTS = 0, {
    "tests": Part(9, "no_such_module", ""),
    "sanitizer": Part(9, "timeit -n 1 1", ""),
    "ceilings": Part(9, "timeit -n 1 2", ""),
    "sweep": Part(None, "http.server 0", ""),
}
gpu.DEFAULT = list(gpu.PARTS)
sys.exit(gpu.main())
"""


def test_parts_that_fail_or_run_out_of_time(tmp_path):
    done = python("-c", PARTS, "--dry-run", "--minutes", "0.15", "--out", str(tmp_path))
    assert done.returncode == 1
    parts = json.loads((tmp_path / "run.json").read_text())["parts"].values()
    outcomes = ["failed: exit code 1", "done", "done", "interrupted: out of time"]
    assert [part["outcome"] for part in parts] == outcomes
    assert "No module named no_such_module" in (tmp_path / "tests.log").read_text()
    assert "| GPU tests | done | failed: exit code 1 | a dry run |" in done.stdout
    assert done.stdout.count("| not measured |") == len(verdicts.TARGETS) - 2
    assert (tmp_path / "verdicts.md").read_text() in done.stdout


def test_order():
    everything = gpu.stages(gpu.DEFAULT, untimed_last=False)
    assert everything[0] == ["tests", "sanitizer"]
    assert [names for (*names,) in everything[1:]] == [[name] for name in gpu.DEFAULT[2:]]
    again = gpu.stages(["sanitizer", "captured", "masked_pool"], untimed_last=True)
    assert again == [["masked_pool"], ["captured"], ["sanitizer"]]


def test_the_parts_fit_into_eight_minutes():
    stages = gpu.stages(gpu.DEFAULT, untimed_last=False)
    assert sum(max(gpu.PARTS[name].seconds or 60 for name in names) for names in stages) < 480


@pytest.mark.parametrize("name", gpu.PARTS)
def test_a_part_and_its_files(name, tmp_path):
    """Each pattern matches a file. The command line has no placeholders left, and its path is not split."""
    part, result = gpu.PARTS[name], tmp_path / "a b.json"
    assert all(list(ROOT.glob(pattern)) for pattern in part.sources.split())
    found = gpu.arguments_of(part, result, 100.0, dry_run=False)
    assert name == "tests" or any(str(result) in argument for argument in found)
    assert "{" not in "".join(found)
    assert ("--dry-run" in gpu.arguments_of(part, result, 100.0, dry_run=True)) == (found[0] != "pytest")


def test_only_what_changed_runs_again(tmp_path, monkeypatch):
    parts = {name: Part(9, name, f"{name}.py") for name in ("tests", "captured", "masked_pool", "sweep")}
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "DEFAULT", list(parts))
    for name in parts:
        (tmp_path / f"{name}.py").write_text(name)
    before = {name: {"outcome": "done", "digest": gpu.digest(part)} for name, part in parts.items()}
    assert gpu.changed(before) == []
    (tmp_path / "captured.py").write_text("changed")
    (tmp_path / "sweep.py").write_text("changed")
    assert gpu.changed(before) == ["captured"]
    before["masked_pool"]["outcome"] = "failed: exit code 1"
    assert gpu.changed(before) == ["captured", "masked_pool"]
    before["captured"]["digest"] = gpu.digest(parts["captured"])
    parts["tests"] = parts["tests"]._replace(command="tests -x")
    assert gpu.changed(before) == ["tests", "masked_pool"]
    del before["captured"]
    assert gpu.changed(before) == ["tests", "captured", "masked_pool"]


def test_there_is_no_run_yet(tmp_path):
    with pytest.raises(UsageError, match=r"run\.json: No such file or directory; run without --changed first"):
        gpu.run_before(tmp_path)


def benchmark(group, variant, seconds, **info):
    return {"group": group, "params": {"variant": variant}, "stats": {"median": seconds}, "extra_info": info}


def written(folder, outcome="done", dry_run=False, **parts):
    """The verdicts on a run with these files: measured value and verdict of each target."""
    run = {
        "dry_run": dry_run,
        "gpu": "A GPU",
        "torch": "2",
        "parts": {name: {"outcome": outcome} for name in gpu.PARTS},
    }
    for name, content in {"run": run, **parts}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "empty.json").touch()
    lines = verdicts.write(folder).splitlines()[4:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {what: (measured, verdict) for what, _, measured, verdict in cells}


class TestVerdicts:
    def test_steps(self, tmp_path):
        """Speedups are those of the fastest correct captured step over the fastest compiled variant."""
        taken = {
            EAGER: 8.0,
            COMPILED[0]: 6.0,
            f"{COMPILED[0]}, reduce-overhead": 3.0,
            CAPTURED: 4.0,
            CAPTURED_CUDA: 2.0,
        }
        group = "training, 32 pairs, bf16"
        found = [benchmark(group, name, seconds) for name, seconds in taken.items()]
        right, wrong = {"equal": True, "different_repetitions": 0}, {"equal": False, "different_repetitions": 7}
        checks = {f"{group}, {name}": right for name in (CAPTURED, CAPTURED_CUDA)}
        said = written(tmp_path, captured={"benchmarks": found, "checks": checks})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("4.00 x", "met")
        assert said[f"step of 32 pairs, bf16, against {COMPILED[0]}"] == ("1.50 x", "**not met**")
        assert said[f"step of 512 pairs, bf16, against {EAGER}"] == ("", "not measured")
        assert said["50 captured steps with poisoned memory, against eager ones"] == ("equal", "met")
        assert said["100 repetitions of a captured step"] == ("same bits", "met")
        checks[f"{group}, {CAPTURED_CUDA}"] = wrong
        said = written(tmp_path, captured={"benchmarks": found, "checks": checks})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("2.00 x", "**not met**")
        assert said["50 captured steps with poisoned memory, against eager ones"] == ("1 of 2 differ", "**not met**")
        assert said["100 repetitions of a captured step"] == ("7 differ", "**not met**")
        said = written(tmp_path, captured={"benchmarks": found[:3], "checks": checks})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("", "not measured")
        said = written(tmp_path, captured={"benchmarks": [], "checks": {}})
        assert said["100 repetitions of a captured step"] == ("", "not measured")

    def test_ops(self, tmp_path):
        groups = [f"local inference, SNLI, {pairs} pairs, bf16, forward, on the device" for pairs in (32, 1024)]
        found = [
            *(benchmark(group, "esim_fast, packed rows", 2.0, share_of_copy=0.7) for group in groups),
            benchmark(groups[0], "torch.compile of it", 1.9),
            benchmark(groups[1], "torch.compile of it", 9.0),
        ]
        shape = "masked pool, (1024, 64, 600), fp32, forward, on the device"
        pooled = [
            benchmark(shape, f"esim_fast, {name}", 1.0, share_of_copy=share) for name, share in [("a", 0.8), ("b", 0.9)]
        ]
        said = written(tmp_path, local_inference={"benchmarks": found}, masked_pool={"benchmarks": pooled})
        assert said["local inference, 1,024 pairs, bf16, forward, of a copy's bandwidth"] == ("70 %", "met")
        assert said["local inference against torch.compile, in the worst of all shapes"] == ("0.95 x", "**not met**")
        assert said["pooling (1024, 64, 600), fp32, of a copy's bandwidth"] == ("90 %", "met")
        assert said["pooling (1024, 64, 600), bf16, of a copy's bandwidth"] == ("", "not measured")

    @pytest.mark.parametrize(
        ("outcome", "verdict"),
        [
            ("done", ("done", "met")),
            ("failed: exit code 1", ("failed: exit code 1", "**not met**")),
            ("interrupted: out of time", ("", "not measured")),
            (verdicts.NO_SANITIZER, ("", "not measured")),
        ],
    )
    def test_tests(self, tmp_path, outcome, verdict):
        said = written(tmp_path, outcome)
        assert said["GPU tests"] == said["compute-sanitizer on small cases"] == verdict

    @pytest.mark.parametrize(("seconds", "verdict"), [(50.0, "met"), (50.1, "**not met**")])
    def test_epoch(self, tmp_path, seconds, verdict):
        epochs = {"esim_fast, eager": 1.0, CAPTURED: seconds, CAPTURED_CUDA: 70.0}
        said = written(tmp_path, epoch={"epochs": {name: {"seconds": taken} for name, taken in epochs.items()}})
        assert said["epoch of SNLI's size, 32 pairs, bf16 (or extrapolated)"] == (f"{seconds} s", verdict)

    def test_a_dry_run(self, tmp_path):
        assert written(tmp_path, dry_run=True)["GPU tests"] == ("done", "a dry run")
        assert (tmp_path / "verdicts.md").read_text().startswith("A dry run: these figures say nothing.")

    def test_names_of_groups(self, tmp_path):
        """The groups that targets read are those of the benchmarks, apart from sizes that only GPUs run."""
        file, expression = tmp_path / "run.json", "notebook and bf16 and device and 32"
        files = [f"benchmarks/test_{name}.py" for name in ("masked_pool", "local_inference")]
        options = [
            "-k",
            expression,
            "--benchmark-max-time=0.01",
            "--benchmark-min-rounds=1",
            f"--benchmark-json={file}",
        ]
        done = python("-m", "pytest", "-q", *files, *options, ESIM_FAST_DRY_RUN="1")
        assert done.returncode == 0, done.stdout
        groups = {found["group"] for found in json.loads(file.read_text())["benchmarks"]}
        wanted = {verdicts.LOCAL.format(which).replace("1024", "32") for which in ("forward", "forward + backward")}
        assert groups == {*wanted, "masked pool, (32, 36, 600), bf16, forward, on the device"}
        assert "masked pool, (1024, 64, 600), bf16, forward, on the device" in map(verdicts.POOLING.format, ["bf16"])


class TestCapturedSteps:
    @pytest.fixture
    def contest(self, monkeypatch):
        """A small one."""
        for module in (captured_steps, models):
            monkeypatch.setattr(module, "SIZES", (8, 8, VOCABULARY, 3))
        for name, value in {"BATCHES": 2, "PLANNED": 3, "STEPS": 8, "REPETITIONS": 3}.items():
            monkeypatch.setattr(captured_steps, name, value)
        captured_steps.peers.cache_clear()
        yield Contest(4, "fp32")
        captured_steps.peers.cache_clear()

    def test_right_ones(self, contest):
        contest.compare(CAPTURED)
        (found,) = contest.checks.values()
        assert (found["equal"], found["same_bits"], found["different_repetitions"]) == (True, True, 0)
        assert 0 < found["unpadded_difference"] < 1e-5
        assert 0 < found["replayed"] < found["steps"]

    @pytest.mark.parametrize("mistake", ["smoothing", "nan"])
    def test_other_steps_than_without_capture(self, contest, monkeypatch, mistake):
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

    def test_only_unused_memory_of_the_graphs_is_filled(self, monkeypatch):
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
    def test_wrong_ones(self, contest, monkeypatch, mistake):
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

"""The run on a GPU: its parts, its verdicts, what a second run repeats, and the check of captured steps."""

import ast
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import captured_steps, epoch, gpu, models, report, verdicts
from benchmarks.baselines import EAGER
from benchmarks.captured_steps import CAPTURED, CAPTURED_CUDA, CUDNN, MODES, OURS, Contest
from benchmarks.corpus import VOCABULARY
from benchmarks.gpu import Part
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
    assert done.stdout.count("| | not measured") == len(verdicts.TARGETS) - 2
    assert (tmp_path / "verdicts.md").read_text() in done.stdout


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs these parts, each a command, without a GPU; returns the exit code, how they ended and what was printed."""

    def outcome(*arguments, before=None, **commands):
        parts = {name: Part(9, command, "pyproject.toml") for name, command in commands.items()}
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "DEFAULT", list(parts))
        monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--out", str(tmp_path), *arguments])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("ESIM_FAST_DRY_RUN", "1")
        if before is not None:
            (tmp_path / "run.json").write_text(json.dumps({"parts": before}))
        code = gpu.main()
        return code, json.loads((tmp_path / "run.json").read_text())["parts"], capsys.readouterr().out

    return outcome


def test_the_seconds_of_parts_that_run_together(run):
    waits = "timeit -n 1 -r 1 'import time; time.sleep({})'".format
    _, parts, _ = run(tests=waits(2), sanitizer=waits(0))
    assert parts["sanitizer"]["seconds"] + 1 < parts["tests"]["seconds"]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [("pass", "done"), ("pytest.skip('9 passed')", "skipped: no test passed"), ("1 / 0", "failed: exit code 1")],
)
def test_tests_that_are_all_skipped(run, tmp_path, body, outcome):
    file = tmp_path / "test_it.py"
    file.write_text(f"import pytest\n\ndef test_it():\n    {body}\n")
    code, parts, printed = run(tests=f"pytest -c /dev/null -ra -p no:cacheprovider {file}")
    assert (parts["tests"]["outcome"], code) == (outcome, int(outcome.startswith("failed")))
    assert ("not measured: skipped: no test passed" in printed) == outcome.startswith("skipped")


def test_figures_of_parts_that_are_not_started(run, tmp_path, monkeypatch):
    """They are kept, as is what a later version ran."""
    (tmp_path / "captured.json").write_text("{}")
    before = {"captured": {"outcome": "done", "digest": ""}, "of a later version": {"outcome": "done", "digest": ""}}
    monkeypatch.setattr(gpu, "LEAST", 1000.0)
    _, parts, _ = run("--changed", before=before, captured="timeit 1", masked_pool="timeit 1")
    assert parts["captured"]["outcome"] == "not started: out of time; its figures are of an earlier run"
    assert parts["masked_pool"]["outcome"] == "not started: out of time"
    assert parts["of a later version"] == before["of a later version"]
    assert (tmp_path / "captured.json").exists()
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    run("--changed", captured="timeit -n 1 1")
    assert not (tmp_path / "captured.json").exists()


def test_broken_files(run, tmp_path):
    """A file that is empty or half-written costs neither the others nor the exit code."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the report's figures")
    found = {**benchmark("bilstm", "eager", 1.0), "stats": {"median": 1.0, "rounds": 1}}
    machine = {"machine_info": {"gpu": "A GPU"}, "datetime": "2026-11-24T00:00"}
    (tmp_path / "captured.json").write_text(json.dumps({**machine, "benchmarks": [found]}))
    (tmp_path / "masked_pool.json").write_text('{"benchmarks": [')
    (tmp_path / "local_inference.json").touch()
    code, _, printed = run(ceilings="timeit -n 1 1")
    assert code == 0
    for name in ("masked_pool", "local_inference"):
        assert f"{name}.json is left out, because it is not JSON." in printed
    assert printed.splitlines()[-1] == str(tmp_path)
    assert "| eager   | 1,000.000 |" in (tmp_path / "report.md").read_text()
    (tmp_path / "captured.json").unlink()
    code, _, printed = run(ceilings="timeit -n 1 1")
    assert code == 0
    assert "there is no report: " in printed


def test_a_report_without_its_broken_files(tmp_path, capsys):
    (tmp_path / "whole.json").write_text(json.dumps({"machine_info": {"gpu": "A GPU"}, "benchmarks": []}))
    half = {"machine_info": {"gpu": "A GPU"}, "benchmarks": [{**benchmark("bilstm", "eager", 1.0)}]}
    half["benchmarks"][0]["stats"]["rounds"] = 1
    half["benchmarks"].append({})
    (tmp_path / "half.json").write_text(json.dumps(half))
    _, groups = report.read([tmp_path / "half.json", tmp_path / "whole.json"])
    assert groups == {}
    assert capsys.readouterr().err.startswith(f"left out: {tmp_path}/half.json: expected what pytest")


@pytest.mark.parametrize("broken", [CAPTURED, captured_steps.OURS])
def test_an_epoch_that_fails(tmp_path, monkeypatch, capsys, broken):
    def epoch_of(name, *_):
        if name == broken:
            raise RuntimeError("an illegal memory access was encountered")
        return {"seconds": 1.0}

    monkeypatch.setattr(epoch, "epoch_of", epoch_of)
    monkeypatch.setattr(epoch, "draw_pairs", lambda *_: None)
    monkeypatch.setattr(epoch, "LIMITS", {name: 1.0 for name in epoch.LIMITS if name != CAPTURED_CUDA})
    monkeypatch.setattr(sys, "argv", ["epoch", "--dry-run", "--json", str(tmp_path / "epoch.json")])
    assert epoch.main() == 1
    assert "an illegal memory access was encountered" in capsys.readouterr().out
    (measured,) = json.loads((tmp_path / "epoch.json").read_text())["epochs"]
    assert {measured, broken} == {CAPTURED, captured_steps.OURS}


def test_the_cuda_bilstm_comes_late():
    assert list(epoch.LIMITS) == [CAPTURED, OURS, CAPTURED_CUDA]
    assert gpu.DEFAULT[-3:] == ["epoch", "captured-cuda", "sweep"]


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


def test_files_of_local_inference():
    """They are those that its kernels import."""
    folder, todo, found = ROOT / "esim_fast/ops/triton", ["local_inference"], set()
    while todo:
        found.add(name := todo.pop())
        nodes = [x for x in ast.walk(ast.parse((folder / f"{name}.py").read_text())) if isinstance(x, ast.ImportFrom)]
        near = [x for x in nodes if x.level == 1]
        named = [[x.module] if x.module else [alias.name for alias in x.names] for x in near]
        todo += {name for names in named for name in names} - found
    wanted = {f"esim_fast/ops/triton/{name}.py" for name in found}
    assert set(gpu.LOCAL_INFERENCE.split()) == {"esim_fast/ops/local_inference.py", *wanted}


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
    before["of a later version"] = before["tests"]
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
    lines = [line for line in verdicts.write(folder).splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {what: (measured, verdict) for what, _, measured, verdict in cells}


class TestVerdicts:
    POISONED = "50 steps ({}) with poisoned memory, against eager ones"
    REPEATED = "100 repetitions of a step ({})"
    RIGHT, WRONG = {"equal": True, "different_repetitions": 0}, {"equal": False, "different_repetitions": 7}

    def test_steps(self, tmp_path):
        """Speedups are those of the fastest correct captured step over the fastest compiled variant."""
        group, (compiled, overheads) = "training, 32 pairs, bf16", MODES
        taken = {EAGER: 8.0, compiled: 6.0, overheads: 3.0, CAPTURED: 4.0}
        found = [benchmark(group, name, seconds) for name, seconds in taken.items()]
        # The GPU has become half as fast.
        others = [benchmark(group, name, seconds) for name, seconds in {EAGER: 16.0, CAPTURED_CUDA: 4.0}.items()]
        triton = {"benchmarks": found, "checks": {f"{group}, {CAPTURED}": self.RIGHT}}
        cuda = {"benchmarks": others, "checks": {f"{group}, {CAPTURED_CUDA}": self.RIGHT}}
        said = written(tmp_path, **{"captured": triton, "captured-cuda": cuda})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("4.00 x", "met")
        assert said[f"step of 32 pairs, bf16, against {compiled}"] == ("1.50 x", "**not met**")
        assert said[f"step of 512 pairs, bf16, against {EAGER}"] == ("", "not measured")
        cuda["checks"] = {f"{group}, {CAPTURED_CUDA}": self.WRONG}
        said = written(tmp_path, **{"captured": triton, "captured-cuda": cuda})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("2.00 x", "**not met**")
        said = written(tmp_path, captured=triton | {"benchmarks": found[:3]})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("", "not measured")
        (tmp_path / "captured.json").unlink()
        cuda["checks"] = {f"{group}, {CAPTURED_CUDA}": self.RIGHT}
        said = written(tmp_path, **{"captured-cuda": cuda})
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("4.00 x", "met")
        assert said[f"step of 32 pairs, bf16, against {compiled}"] == ("", f"not measured: {compiled}: it did not run")

    @pytest.mark.parametrize("missing", MODES)
    def test_a_mode_of_torch_compile_that_did_not_run(self, tmp_path, missing):
        group = "training, 32 pairs, bf16"
        found = [benchmark(group, name, 8.0) for name in (EAGER, *MODES) if name != missing]
        captured = {
            "benchmarks": [*found, benchmark(group, CAPTURED, 1.0)],
            "checks": {f"{group}, {CAPTURED}": self.RIGHT},
            "not_timed": {f"{group}, {missing}": "does not run here: a | b"},
        }
        said = written(tmp_path, captured=captured)
        reason = f"not measured: {missing}: does not run here: a / b"
        assert said[f"step of 32 pairs, bf16, against {next(iter(MODES))}"] == ("", reason)
        assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("8.00 x", "met")

    @pytest.mark.parametrize(("part", "name"), [("captured", CAPTURED), ("captured-cuda", CAPTURED_CUDA)])
    def test_checks(self, tmp_path, part, name):
        """All must have ended, but one that has failed is enough."""
        poisoned, repeated = self.POISONED.format(name), self.REPEATED.format(name)
        groups = [f"training, {pairs} pairs, {precision}" for precision in ("bf16", "tf32") for pairs in (32, 512)]
        right = {f"{group}, {name}": self.RIGHT for group in groups}
        first, *others = right

        def said(checks):
            found = written(tmp_path, **{part: {"benchmarks": [], "checks": checks}})
            return found[poisoned], found[repeated]

        assert said(right) == (("equal", "met"), ("same bits", "met"))
        missing = "", "not measured: 1 of 4 checks are missing"
        assert said(dict.fromkeys(others, self.RIGHT)) == (missing, missing)
        assert said({})[0] == ("", "not measured: 4 of 4 checks are missing")
        failed = ("1 of 4 differ", "**not met**"), ("7 differ", "**not met**")
        assert said(right | {first: self.WRONG}) == failed
        assert said({first: self.WRONG}) == (("1 of 1 differ", "**not met**"), failed[1])
        assert said({first: self.WRONG | {"different_repetitions": 0}}) == (
            ("1 of 1 differ", "**not met**"),
            ("", "not measured: 3 of 4 checks are missing"),
        )

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
            ("interrupted: out of time", ("", "not measured: interrupted: out of time")),
            (verdicts.NO_SANITIZER, ("", f"not measured: {verdicts.NO_SANITIZER}")),
        ],
    )
    def test_tests(self, tmp_path, outcome, verdict):
        said = written(tmp_path, outcome)
        assert said["GPU tests"] == said["compute-sanitizer on small cases"] == verdict

    @pytest.mark.parametrize(
        ("seconds", "replayed", "measured"),
        [
            (50.0, 0.6, ("50.0 s", "met")),
            (50.1, 1.0, ("50.1 s", "**not met**")),
            (50.0, 0.4, ("70.0 s", "**not met**")),
        ],
    )
    def test_epoch(self, tmp_path, seconds, replayed, measured):
        """Most steps must have been replayed."""
        epochs = {
            OURS: {"seconds": 1.0, "replayed": 0.0},
            CAPTURED: {"seconds": seconds, "replayed": replayed},
            CAPTURED_CUDA: {"seconds": 70.0, "replayed": 1.0},
        }
        said = written(tmp_path, epoch={"epochs": epochs})
        assert said["epoch of SNLI's size, 32 pairs, bf16 (or extrapolated)"] == measured

    def test_an_epoch_of_eager_steps(self, tmp_path):
        for epochs, reason in [
            ({CAPTURED: {"seconds": 1.0, "replayed": 0.5}}, ": most steps were not replayed"),
            ({OURS: {"seconds": 1.0, "replayed": 0.0}}, ""),
        ]:
            said = written(tmp_path, epoch={"epochs": epochs})
            assert said["epoch of SNLI's size, 32 pairs, bf16 (or extrapolated)"] == ("", f"not measured{reason}")

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

    def test_what_is_measured_apart(self, contest):
        assert list(contest.variants) == [EAGER, *MODES, OURS, CUDNN, CAPTURED]
        assert list(Contest(4, "fp32", "cuda").variants) == [EAGER, CAPTURED_CUDA]

    def test_a_step_that_does_not_compile(self, contest, monkeypatch):
        """It costs only its own figure."""

        def broken(*_):
            raise RuntimeError("no compiler")

        name = next(iter(MODES))
        captured_steps.peers.cache_clear()
        monkeypatch.setattr(torch, "compile", lambda net, **_: broken)
        monkeypatch.setattr(
            captured_steps, "peers", lambda: {EAGER: captured_steps.Model(model.net, None), name: model}
        )
        monkeypatch.setattr(captured_steps, "CHOSEN", {None: (name, OURS)})
        rows, outcomes = Contest(4, "fp32").measured()
        assert [row.variant for row in rows] == [OURS]
        assert str(outcomes[name]) == "does not run here: no compiler"

    def test_right_ones(self, contest):
        contest.compare(CAPTURED)
        (found,) = contest.checks.values()
        assert (found["equal"], found["same_bits"], found["different_repetitions"]) == (True, True, 0)
        assert 0 < found["unpadded_difference"] < 1e-5
        assert 0 < found["replayed"] < found["steps"]

    def test_compiling_fails(self, monkeypatch, capsys):
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
        monkeypatch.setattr(captured_steps, "DEVICE", torch.device("cuda"))
        monkeypatch.setattr(sys, "argv", ["captured_steps", "--precisions", "tf32", "--backend", "cuda"])
        assert captured_steps.main() == 0
        printed = capsys.readouterr().out
        pairs = captured_steps.PAIRS[0]
        assert f"compiling for {pairs} pairs, tf32: BrokenProcessPool('a process ended: cuda')" in printed
        assert f"\n{pairs}, tf32\n" in printed

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

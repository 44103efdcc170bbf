"""The run on a GPU: its parts, how they end, what a second run repeats, and its report."""

import ast
import json
import sys

import pytest
import torch

from benchmarks import epoch, gpu, report, verdicts
from benchmarks.captured_steps import CAPTURED, CAPTURED_CUDA, OURS
from benchmarks.gpu import Part
from esim_fast.cli.options import UsageError
from tests.benchmarks.test_benchmarks import ROOT, python
from tests.benchmarks.test_verdicts import benchmark

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
    _, parts, printed = run("--changed", before=before, captured="timeit 1", masked_pool="timeit 1")
    assert parts["captured"]["outcome"] == "not started: out of time; its figures are of an earlier run"
    assert f"\n- captured: {parts['captured']['outcome']}\n" in printed
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
        assert f"{name}.json is left out, because it is not JSON\n" in printed
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


@pytest.mark.parametrize("broken", [CAPTURED, OURS])
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
    assert {measured, broken} == {CAPTURED, OURS}


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

"""The verdicts on a run on a GPU, from made-up figures."""

import json

import pytest

from benchmarks import gpu, verdicts
from benchmarks.baselines import EAGER
from benchmarks.captured_steps import CAPTURED, CAPTURED_CUDA, MODES, OURS
from tests.benchmarks.test_benchmarks import python


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


POISONED = "50 steps ({}) with poisoned memory, against eager ones"
REPEATED = "100 repetitions of a step ({})"
RIGHT, WRONG = {"equal": True, "different_repetitions": 0}, {"equal": False, "different_repetitions": 7}


def test_steps(tmp_path):
    """Speedups are those of the fastest correct captured step over the fastest compiled variant."""
    group, (compiled, overheads) = "training, 32 pairs, bf16", MODES
    taken = {EAGER: 8.0, compiled: 6.0, overheads: 3.0, CAPTURED: 4.0}
    found = [benchmark(group, name, seconds) for name, seconds in taken.items()]
    # The GPU has become half as fast.
    others = [benchmark(group, name, seconds) for name, seconds in {EAGER: 16.0, CAPTURED_CUDA: 4.0}.items()]
    triton = {"benchmarks": found, "checks": {f"{group}, {CAPTURED}": RIGHT}}
    cuda = {"benchmarks": others, "checks": {f"{group}, {CAPTURED_CUDA}": RIGHT}}
    said = written(tmp_path, **{"captured": triton, "captured-cuda": cuda})
    assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("4.00 x", "met")
    assert said[f"step of 32 pairs, bf16, against {compiled}"] == ("1.50 x", "**not met**")
    assert said[f"step of 512 pairs, bf16, against {EAGER}"] == ("", "not measured")
    cuda["checks"] = {f"{group}, {CAPTURED_CUDA}": WRONG}
    said = written(tmp_path, **{"captured": triton, "captured-cuda": cuda})
    assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("2.00 x", "**not met**")
    said = written(tmp_path, captured=triton | {"benchmarks": found[:3]})
    assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("", "not measured")
    (tmp_path / "captured.json").unlink()
    cuda["checks"] = {f"{group}, {CAPTURED_CUDA}": RIGHT}
    said = written(tmp_path, **{"captured-cuda": cuda})
    assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("4.00 x", "met")
    assert said[f"step of 32 pairs, bf16, against {compiled}"] == ("", f"not measured: {compiled}: it did not run")


@pytest.mark.parametrize("missing", MODES)
def test_a_mode_of_torch_compile_that_did_not_run(tmp_path, missing):
    group = "training, 32 pairs, bf16"
    found = [benchmark(group, name, 8.0) for name in (EAGER, *MODES) if name != missing]
    captured = {
        "benchmarks": [*found, benchmark(group, CAPTURED, 1.0)],
        "checks": {f"{group}, {CAPTURED}": RIGHT},
        "not_timed": {f"{group}, {missing}": "does not run here: a | b"},
    }
    said = written(tmp_path, captured=captured)
    reason = f"not measured: {missing}: does not run here: a / b"
    assert said[f"step of 32 pairs, bf16, against {next(iter(MODES))}"] == ("", reason)
    assert said[f"step of 32 pairs, bf16, against {EAGER}"] == ("8.00 x", "met")


@pytest.mark.parametrize(("part", "name"), [("captured", CAPTURED), ("captured-cuda", CAPTURED_CUDA)])
def test_checks(tmp_path, part, name):
    """All must have ended, but one that has failed is enough."""
    poisoned, repeated = POISONED.format(name), REPEATED.format(name)
    groups = [f"training, {pairs} pairs, {precision}" for precision in ("bf16", "tf32") for pairs in (32, 512)]
    right = {f"{group}, {name}": RIGHT for group in groups}
    first, *others = right

    def said(checks):
        found = written(tmp_path, **{part: {"benchmarks": [], "checks": checks}})
        return found[poisoned], found[repeated]

    assert said(right) == (("equal", "met"), ("same bits", "met"))
    missing = "", "not measured: 1 of 4 checks are missing"
    assert said(dict.fromkeys(others, RIGHT)) == (missing, missing)
    assert said({})[0] == ("", "not measured: 4 of 4 checks are missing")
    failed = ("1 of 4 differ", "**not met**"), ("7 differ", "**not met**")
    assert said(right | {first: WRONG}) == failed
    assert said({first: WRONG}) == (("1 of 1 differ", "**not met**"), failed[1])
    assert said({first: WRONG | {"different_repetitions": 0}}) == (
        ("1 of 1 differ", "**not met**"),
        ("", "not measured: 3 of 4 checks are missing"),
    )


def test_ops(tmp_path):
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
def test_tests(tmp_path, outcome, verdict):
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
def test_epoch(tmp_path, seconds, replayed, measured):
    """Most steps must have been replayed."""
    epochs = {
        OURS: {"seconds": 1.0, "replayed": 0.0},
        CAPTURED: {"seconds": seconds, "replayed": replayed},
        CAPTURED_CUDA: {"seconds": 70.0, "replayed": 1.0},
    }
    said = written(tmp_path, epoch={"epochs": epochs})
    assert said["epoch of SNLI's size, 32 pairs, bf16 (or extrapolated)"] == measured


def test_an_epoch_of_eager_steps(tmp_path):
    for epochs, reason in [
        ({CAPTURED: {"seconds": 1.0, "replayed": 0.5}}, ": most steps were not replayed"),
        ({OURS: {"seconds": 1.0, "replayed": 0.0}}, ""),
    ]:
        said = written(tmp_path, epoch={"epochs": epochs})
        assert said["epoch of SNLI's size, 32 pairs, bf16 (or extrapolated)"] == ("", f"not measured{reason}")


def test_a_dry_run(tmp_path):
    assert written(tmp_path, dry_run=True)["GPU tests"] == ("done", "a dry run")
    assert (tmp_path / "verdicts.md").read_text().startswith("A dry run: these figures say nothing.")


def test_names_of_groups(tmp_path):
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

"""The sweep over launch configurations, as far as it goes without a GPU: what is tried, what wins, and when it ends."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from benchmarks import candidates, measured, predicted, sweep
from benchmarks.candidates import H100, Case, Inputs, cases, configurations
from benchmarks.command import Parser
from benchmarks.measured import Measured, winner
from esim_fast.ops.triton import local_inference as kernels
from esim_fast.ops.triton import runtime
from esim_fast.ops.triton.runtime import Config

ROOT = Path(__file__).resolve().parents[2]
DRY_CASES = 1
CASES = cases()
ONE = CASES[0]
PRESENT, *OTHERS = configurations(ONE)
SOON, NEVER = 0.0, 1e18  # ends


def code(**changes) -> list[tuple[int, predicted.Code]]:
    usual = predicted.Code(4, 64, 16384, 0, 1000.0, 10.0, 10.0, 10.0)
    return [(1024, usual._replace(**changes))]


def of_times(*times: dict[Config, float], refused=()) -> Measured:
    """Measured seconds, a batch each."""
    named = {f"batch {i}": seconds for i, seconds in enumerate(times)}
    shares = {name: dict.fromkeys(seconds, 0.5) for name, seconds in named.items()}
    return Measured(dict.fromkeys(refused, "wrong"), named, shares)


class TestCandidates:
    def test_every_entry_is_tried_once_and_snli_in_bf16_first(self):
        keys = [case.key for case in CASES]
        assert len(keys) == len(set(keys))
        assert set(keys) == set(kernels.ONE_TILE) | set(kernels.MANY_TILES)
        assert [str(case) for case in CASES[:3]] == ["forward, half, 16x16", "backward, half, 16x16", str(CASES[2])]
        places = [(not case.tiles, list(candidates.DTYPES).index(case.arithmetic)) for case in CASES]
        assert places == sorted(places)
        assert all(case.batches for case in CASES)
        assert ("SNLI", 1024) in ONE.batches

    def test_only_some_kernels(self):
        assert {case.kernel for case in cases(["forward"])} == {"forward"}

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_bounds(self, case):
        configs = configurations(case)
        assert configs[0] == case.present
        assert 20 <= len(set(configs)) == len(configs) <= 1 + candidates.COMPILED
        for config in configs:
            assert bool(config.tile) == (not case.tiles)
            assert bool(config.block_k) == bool(case.tiles or case.kernel in ("scores", "products"))
            assert bool(config.block_d) == (case.kernel in ("forward", "backward_enhance", "backward"))
            assert max(config.num_warps, config.num_stages) <= 8
        # Those that change one thing come first.
        changes = [sum(a != b for a, b in zip(case.present, config, strict=True)) for config in configs[1:]]
        assert changes[0] == 1
        assert all(changes.index(few) < changes.index(more) for few, more in pairwise(sorted(set(changes))))

    def test_tables_are_as_before_afterwards(self):
        before = dict(kernels.ONE_TILE)

        def fail():
            with candidates.in_place(ONE, OTHERS[0]):
                assert kernels.ONE_TILE[ONE.key] == OTHERS[0]
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert before == kernels.ONE_TILE

    def test_batches_take_the_tiles(self):
        for case in CASES:
            for kind, pairs in case.batches:
                for lengths in candidates.batches_of(kind, pairs, case.tiles):
                    assert lengths.shape == (pairs, 2)
                    inputs = Inputs.draw(case, lengths, torch.device("meta"))
                    sides = kernels.sides_of(inputs.x, inputs.x, inputs.addresses)
                    if case.tiles:
                        assert sorted((side.tile for side in sides), reverse=True) == list(case.tiles)

    def test_unfit_ones_are_left_out_and_the_rest_is_in_order(self):
        found = dict(
            zip(
                OTHERS,
                [code(instructions=9e3, waits=100.0), code(), code(shared=300_000), code(spills=1), "CompilationError"],
                strict=False,
            )
        )
        assert measured.ordered(found, H100) == [OTHERS[1], OTHERS[0]]


class TestPrediction:
    PTX = "$L__BB0_1:", "mma.sync x", "@%p1 bra $L__BB0_1;", "$L__BB0_3:", "mma.sync y", "@%p2 bra $L__BB0_3;"
    LAUNCH = SimpleNamespace(
        constants={"D": 600, "BLOCK_K": 128, "BLOCK_D": 64, "SPLITS": 1},
        options={"num_warps": 4, "num_stages": 2},
        kernel=SimpleNamespace(__name__="forward"),
    )

    def code_of(self, *lines: str) -> predicted.Code:
        return predicted.code_of("\n".join(lines), "\n".join(self.PTX), 1024, self.LAUNCH)

    def test_loops_turn_as_often_as_the_source_s(self):
        place = "        /*0010*/  "
        k = [".L_x_0:", place + "HMMA R8", place + "BAR.SYNC", place + "@P1 BRA `(.L_x_0)"]
        d = [".L_x_1:", place + "HMMA R9", place + "DEPBAR.LE SB0", place + "BRA `(.L_x_1)", place + "EXIT"]
        found = self.code_of(*k, *d, place + "NOP")
        assert (found.products, found.barriers, found.waits) == (5 + 10, 5, 10 / 2)
        assert found.instructions == 3 * 5 + 3 * 10 + 1
        assert found.registers == 10

    def test_unrolled_loops(self):
        place = "        /*0010*/  "
        twice = [".L_x_1:", place + "HMMA R9", place + "HMMA R9", place + "BRA `(.L_x_1)"]
        found = self.code_of(*[place + "HMMA R8"] * 5, *twice)
        assert found.products == 5 + 10
        assert found.instructions == 5 + 3 * 5

    def test_few_registers_and_little_shared_memory_let_more_run_at_once(self):
        (_, usual), *_ = code()
        assert usual.occupancy == 8
        assert usual._replace(registers=255).occupancy == 2
        assert usual._replace(shared=100_000).occupancy == 2
        assert usual.limits(1024)["issue"] < usual._replace(instructions=2000.0).limits(1024)["issue"]
        assert usual.limits(1024)["latency"] < usual._replace(registers=255).limits(1024)["latency"]


class TestWinner:
    def test_the_fastest_over_all_batches_wins(self):
        first, second, *_ = OTHERS
        times = {PRESENT: 10.0, first: 5.0, second: 9.0}, {PRESENT: 1.0, first: 2.1, second: 0.9}
        assert winner(ONE, of_times(*times)) == second

    def test_a_wrong_one_never_wins(self):
        times = {PRESENT: 10.0, OTHERS[0]: 1.0, OTHERS[1]: 9.0}
        assert winner(ONE, of_times(times, refused=[OTHERS[0]])) == OTHERS[1]

    def test_one_that_was_not_timed_throughout_does_not_win(self):
        times = {PRESENT: 10.0, OTHERS[0]: 1.0}, {PRESENT: 10.0}
        assert winner(ONE, of_times(*times)) == PRESENT

    def test_luck_does_not_win(self):
        assert winner(ONE, of_times({PRESENT: 1.0, OTHERS[0]: 0.99})) == PRESENT
        assert winner(ONE, of_times()) == PRESENT

    @pytest.mark.parametrize("case", [ONE, CASES[-1], *(c for c in CASES if c.present.max_registers)], ids=str)
    def test_lines_are_the_table_s(self, case):
        best = configurations(case)[3]
        found = of_times({case.present: 3e-5, best: 2e-5}, {case.present: 4e-6, best: 3e-6})
        written = sweep.lines(case, found)
        assert eval("{" + "\n".join(written) + "}", {"Config": Config}) == {case.key: best}
        assert "20.0 3.0 µs (was 30.0 4.0), 50.0 50.0 % of a copy" in written[0]
        assert max(map(len, written)) <= 120
        kept = sweep.lines(case, of_times({case.present: 3e-5}))
        assert eval("{" + "\n".join(kept) + "}", {"Config": Config}) == {case.key: case.present}


@pytest.fixture
def small(monkeypatch):
    """A case of two pairs, on tensors of the CPU."""
    if torch.cuda.is_available() or not runtime.INTERPRETED:
        pytest.skip("the interpreter is off")
    monkeypatch.setattr(measured, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(candidates, "WIDTH", 40)
    monkeypatch.setattr(candidates, "batches_of", lambda *_: [np.array([[16, 3], [5, 9]]), np.array([[2, 2]])])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=0))
    monkeypatch.setattr(measured, "copy_bandwidth", lambda: 1e9)


def fake_times(title, variants, *, rounds):
    """The later, the faster."""
    for call in variants.values():
        call()
    return SimpleNamespace(values={name: 1.0 / (i + 1) for i, name in enumerate(variants)})


@pytest.mark.interpreter
class TestMeasuring:
    KINDS = (
        Case("forward", "half", (16, 16), (("SNLI", 2),)),
        Case("backward", "ieee", (16, 16), (("SNLI", 2),)),
        Case("backward_softmax", "half", (), (("3 tokens", 2),)),
    )

    @pytest.mark.parametrize("case", KINDS[:2], ids=str)
    def test_right_ones_are_timed_on_all_inputs(self, case, small, monkeypatch):
        monkeypatch.setattr(measured, "device_times", fake_times)
        some = configurations(case)[:3]
        found = measured.measure(case, some, NEVER)
        assert found.refused == {}
        seconds = {config: 1.0 / (i + 1) / 2 for i, config in enumerate(some)}  # of one of two batches
        assert found.seconds == {"SNLI at 2": seconds}
        (words, width), times = (33, 40), 5 if case.arithmetic == "half" else 6
        words += 4
        moved = words * width * times * (2 if case.arithmetic == "half" else 4)
        assert found.shares["SNLI at 2"] == {
            config: pytest.approx(moved / 2 / s / 1e9) for config, s in seconds.items()
        }
        assert winner(case, found) == some[2]

    def test_a_case_s_kernels_alone_are_timed(self, small):
        case = self.KINDS[2]
        inputs = Inputs.draw(case, np.array([[70, 3]]), torch.device("cpu"))
        planned = inputs.plan(case)
        assert len(planned) == 7
        assert [launched.kernel.__name__ for launched in case.own(planned)] == ["backward_softmax"] * 2

    @pytest.mark.parametrize(
        ("defect", "reason"),
        [
            ("nothing written", "leaves results out"),
            ("a word off", "is off by"),
            ("other bits", "does not repeat itself"),
            ("an error", "does not run: no"),
        ],
    )
    def test_wrong_ones_are_refused(self, defect, reason, small, monkeypatch):
        monkeypatch.setattr(measured, "device_times", fake_times)
        case, runs = self.KINDS[0], []
        some = configurations(case)[:2]
        plan = Inputs.plan

        def spoilt(inputs, case):
            planned = plan(inputs, case)
            if case.table[case.key] == case.present:
                return planned
            if defect == "nothing written":
                return []

            def spoil():
                runs.append(None)
                if defect == "an error":
                    raise RuntimeError("no\nmore")
                inputs.result[3, 7] += 0.5 if defect == "a word off" else len(runs) * 1e-2

            return [*planned, SimpleNamespace(start=spoil, kernel=planned[0].kernel)]

        present = case.present
        monkeypatch.setattr(Case, "present", property(lambda _: present))
        monkeypatch.setattr(Inputs, "plan", spoilt)
        found = measured.measure(case, some, NEVER)
        assert reason in found.refused[some[1]]
        assert list(found.seconds["SNLI at 2"]) == [present]
        assert winner(case, found) == present

    def test_when_time_is_over(self, small, monkeypatch):
        monkeypatch.setattr(measured, "device_times", fake_times)
        assert measured.measure(self.KINDS[0], configurations(self.KINDS[0])[:2], SOON).seconds == {}


class NoCompiler:
    """Everything is compiled, and takes as long as everything else."""

    def __init__(self, *_):
        self.closed = False

    def submit(self, *_):
        pass

    def get(self, case, configs, batch, end):
        return dict.fromkeys(configs, code())

    def close(self):
        self.closed = True


def test_the_sweep_stops_in_time_and_keeps_what_it_has(monkeypatch, tmp_path, capsys):
    now = [0.0]
    tried = []

    def measure(case, configs, end):
        now[0] += 25.0  # seconds
        tried.append(configs)
        return of_times({config: 1.0 / (i + 1) for i, config in enumerate(configs)})

    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sweep, "Compiler", NoCompiler)
    monkeypatch.setattr(sweep, "measure", measure)
    monkeypatch.setattr(sweep, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(sweep.Gpu, "here", lambda: H100)
    file = tmp_path / "sweep.json"
    table = sweep.sweep(Parser(), CASES, 1, file)
    assert [len(configs) for configs in tried] == [1 + candidates.TIMED] * 3
    assert [configs[0] for configs in tried] == [case.present for case in CASES[:3]]
    entries = eval("{" + "\n".join(table) + "}", {"Config": Config})
    assert list(entries) == [case.key for case in CASES[:3]]
    assert f"the 1 minutes are over: {len(CASES) - 3} cases are left" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["dry_run"] is False
    assert [entry["case"] for entry in written["cases"]] == [str(case) for case in CASES[:3]]
    assert written["cases"][0]["candidates"][0]["measured_us"] == {"batch 0": 1e6}


@pytest.mark.interpreter
def test_dry_run(tmp_path):
    file = tmp_path / "sweep.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"from benchmarks import sweep; sweep.DRY_CASES = {DRY_CASES}; sweep.main()"
    command = [sys.executable, "-c", code, "--dry-run", "--kernels", "forward", "--json", str(file)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "dry run: nothing was timed"
    assert "WRONG" not in done.stdout
    written = json.loads(file.read_text())
    assert written["dry_run"] is True
    assert [entry["case"] for entry in written["cases"]] == [str(case) for case in cases(["forward"])]
    checked = [check["refused"] for case in written["cases"] for check in case["interpreted"]]
    assert checked == [None] * DRY_CASES * sweep.DRY_CHECKED
    looked_at = [candidate for case in written["cases"] for candidate in case["candidates"]]
    assert all(candidate["measured_us"] is None and candidate["share_of_copy"] is None for candidate in looked_at)
    compiled = [candidate for candidate in looked_at if candidate["resources"]]
    assert 0 < len(compiled) <= DRY_CASES * sweep.DRY_COMPILED  # as many as a minute allows
    assert all(candidate["predicted_us"]["issue"] > 0 for candidate in compiled)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "there is no NVIDIA GPU here"),
        (("--minutes", "0"), "expected a positive number"),
        (("--dry-run", "--json", "/no/such/folder/file"), "No such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main([*arguments])
    (message,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert reason in message


# A call as the process that times makes it, but for the launch, after another process has compiled.
CALL = """
import sys
import numpy as np, torch, triton
from benchmarks import candidates
from benchmarks.candidates import H100
from esim_fast.ops.triton import runtime

case, batch = candidates.cases()[int(sys.argv[1])], ("SNLI", 256)
config = candidates.configurations(case)[1]
if sys.argv[2] == "compile":
    assert not isinstance(candidates.compile_candidate(case, config, batch, H100), str)
else:
    hits = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    triton.runtime.driver.set_active(candidates._NoGPU(90))
    runtime.multiprocessors = lambda _: H100.multiprocessors
    inputs = candidates.Inputs.draw(case, candidates.batches_of(*batch, case.tiles)[0], torch.device("cpu"))
    with candidates.in_place(case, config):
        for of in inputs.plan(case):
            of.kernel.warmup(*of.arguments, grid=(of.programs,), **of.constants, **of.options)
    assert hits and all(hits), hits
"""


def test_what_is_compiled_ahead_is_what_a_call_takes(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    for what in ("compile", "call"):
        command = [sys.executable, "-c", CALL, "1", what]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

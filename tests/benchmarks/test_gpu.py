"""What is to be measured on a GPU, tried without one: parts that end, fail or take too long, and what comes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from floors import Floor, bilstm, local_inference, masked_pool
from targets import COMPILED, EAGER, LAYOUTS, STEP, Target, table, targets

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "environment": "a GPU",
    "hardware": "a GPU",
    "date": "2026-01-31",
    "measured": [
        {
            "title": "a title",
            "values": {"x": 1.0, "y": 0.5},
            "rounds": 1,
            "notes": [],
            "unit": "s",
            "group": "training",
            "parameters": {"batch": 32},
            "floor": None,
        }
    ],
}


def writing(figures=FIGURES):
    return f"open(sys.argv[1], 'w').write({json.dumps(json.dumps(figures))})"


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch, capsys):
        """Runs parts in place of the real ones: what they write and how they end."""
        monkeypatch.setattr(gpu, "PATIENCE", 2.0)
        monkeypatch.setattr(gpu, "RESERVE", 0.0)

        def run(parts, *options):
            chosen = [
                gpu.Part(name, ["-c", f"import json, sys, time; {code}", gpu.JSON], *least or [0.0])
                for name, code, *least in parts
            ]
            monkeypatch.setattr(gpu, "parts", lambda dry_run: chosen)
            return gpu.main([*map(str, options)]), capsys.readouterr().out

        return run

    def test_all_is_kept_when_a_part_fails(self, run, tmp_path):
        code, printed = run(
            [("tests", "sys.exit('one failed')"), ("ops", writing()), ("step-32", "print('taken apart')")],
            *("--dry-run", "--out", tmp_path),
        )
        assert code == 1
        record = json.loads((tmp_path / "run.json").read_text())
        outcomes = {name: part["outcome"] for name, part in record["parts"].items()}
        assert outcomes == {"tests": "failed: exit code 1", "ops": "done", "step-32": "done"}
        assert json.loads((tmp_path / "ops.json").read_text()) == FIGURES
        summary = (tmp_path / "summary.md").read_text()
        assert "no figure here means anything" in summary
        assert "Correctness is not settled" in summary
        assert "taken apart" in summary
        assert "| y | 500.000 | 2.00 x |" in (tmp_path / "report.md").read_text()
        assert summary in printed

    def test_when_the_time_is_up(self, run, tmp_path):
        slow = f"{writing()}; time.sleep(60)"
        code, _ = run([("ops", slow), ("growth", "", 0.1)], "--dry-run", "--minutes", "0.1", "--out", tmp_path)
        assert code == 0
        parts = json.loads((tmp_path / "run.json").read_text())["parts"]
        assert parts["ops"]["outcome"] == "interrupted: the time was up"
        assert parts["ops"]["seconds"] < 20
        assert parts["growth"]["outcome"] == "not begun: the time was up"
        assert (tmp_path / "report.md").exists()

    def test_runs_into_one_folder_add_to_each_other(self, run, tmp_path):
        for name in ("ops", "training"):
            assert run([(name, writing())], "--dry-run", "--out", tmp_path)[0] == 0
        assert list(json.loads((tmp_path / "run.json").read_text())["parts"]) == ["ops", "training"]
        assert len(json.loads((tmp_path / "results.json").read_text())["measured"]) == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "there is no NVIDIA GPU here (--dry-run needs none)"),
            (["--dry-run", "--parts", "opps"], "no part is called opps; there are tests, "),
            (["--dry-run", "--minutes", "0"], "expected a positive number, got '0'"),
            (["--dry-run", "--out", __file__], "File exists"),
        ],
    )
    def test_mistakes(self, options, message, capsys):
        try:
            code = gpu.main(options)
        except SystemExit as exit:  # argparse's way out
            code = exit.code
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert message in said.err
        assert len(said.err.splitlines()) == 1


def comparison(group, values, floor=None, **parameters):
    return {"group": group, "values": values, "parameters": parameters, "floor": floor}


class TestTargets:
    def test_nothing_measured(self):
        found = targets([], [])
        assert {target.outcome for target in found} == {"not measured"}
        assert len(table(found)) == len(found) + 2

    def test_the_slower_layout_counts(self):
        values = {EAGER: 6.0, COMPILED: 1.5, LAYOUTS[0]: 1.0, LAYOUTS[1]: 0.5}
        at_256 = comparison(
            "local_inference", values, batch=256, lengths="SNLI", precision="bf16", **{"pass": "forward"}
        )
        outcomes = {target.what: target for target in targets([at_256], [])}
        eager = outcomes["local_inference, SNLI at batch 256, bf16, forward: eager"]
        compiled = outcomes["local_inference, SNLI at batch 256, bf16, forward: torch.compile"]
        assert (eager.measured, eager.outcome) == (6.0, "met")
        assert (compiled.measured, compiled.outcome) == (1.5, "missed")
        assert outcomes["local_inference against torch.compile at every shape, the worst"].measured == 1.5

    def test_shares_memory_and_epochs(self):
        measured = [
            comparison("masked_pool against a copy", {"esim_fast": 1.0}, 0.85, batch=1024, precision="fp32"),
            comparison("memory", {EAGER: 10.0, STEP: 5.0}, batch=512, lengths="SNLI", precision="tf32"),
        ]
        shared = {"batch_size": 512, "precision": "bf16"}
        epochs = [{**shared, "seconds": 3.0, "pairs": 320}, {**shared, "seconds": 25.0, "pairs": 549_367}]
        found = [target for target in targets(measured, epochs) if target.measured is not None]
        assert [(target.measured, target.outcome) for target in found] == [
            (0.85, "met"),
            (0.5, "met"),
            (25.0, "missed"),
        ]

    def test_a_row(self):
        assert Target("memory", 0.6, 0.5, "%", at_most=True).row() == "| memory | ≤ 60% | 50% | met |"
        assert Target("speed", 5, None).row() == "| speed | ≥ 5.00 x |  | not measured |"


class TestFloors:
    """Counted by hand for one pair of 3 and 2 words."""

    def test_local_inference(self):
        lengths, width = np.array([[3, 2]]), 4
        assert local_inference(lengths, width, 2) == Floor(3 * 2 * 3 * 2 * 4, (5 * 4 + 5 * 16) * 2)
        assert local_inference(lengths, width, 2, backward=True) == Floor(9 * 48, (5 * 4 + 5 * 16 + 5 * 4) * 2)

    def test_masked_pool(self):
        lengths = np.array([3, 2])
        # Five tokens, two sentences' averages and maxima, and where those were.
        assert masked_pool(lengths, 4, 2) == Floor(0, 5 * 4 * 2 + 2 * 8 * 2 + 2 * 4 * 4)

    def test_bilstm(self):
        lengths = np.array([3, 2])
        x, state = 2 * 8 * 5 * 6, 2 * 8 * 2 * 3  # products of a direction: five words' inputs, three of their states
        weights = 2 * 8 * (6 + 2 + 2)
        floor = bilstm(lengths, 6, 2, 4, training=False)
        assert floor == Floor(2 * 2 * (x // 2 + state // 2), 4 * (5 * 6 + 5 * 4 + weights))
        assert bilstm(lengths, 6, 2, 4).bytes - floor.bytes == 4 * 5 * 2 * 5 * 2

    def test_the_slower_of_the_two(self):
        assert Floor(100, 10).seconds(bandwidth=1.0, rate=100.0) == 10.0
        assert Floor(100, 10).seconds(bandwidth=100.0, rate=1.0) == 100.0

"""tools/sanitize_cuda.py: its cases, and what it returns. What compute-sanitizer says is made up here."""

import json

import pytest
import torch

from tools import sanitize_cuda


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Returns the exit code and the file, for the number of errors that each tool finds in each case."""

    def outcome(found, code=0, installed="compute-sanitizer"):
        def under(tool, case):
            errors = found.get((tool, case), 0)
            return code or (86 if errors else 0), errors, f"{tool} {case}"

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(sanitize_cuda, "under", under)
        monkeypatch.setattr(sanitize_cuda, "sanitizer", lambda: installed)
        file = tmp_path / "found.json"
        done = sanitize_cuda.main(["--json", str(file)])
        return done, json.loads(file.read_text())["tools"] if file.exists() else None

    return outcome


def test_outcomes(run):
    planted = {("memcheck", "planted"): 1}
    clean = {"exit_code": 0, "errors": 0}
    assert run(planted) == (0, {"memcheck": clean, "racecheck": clean})
    hazards = {"exit_code": 86, "errors": 2}
    assert run(planted | {("racecheck", "all"): 2}) == (1, {"memcheck": clean, "racecheck": hazards})


def test_without_a_working_tool(run):
    assert run({}) == (sanitize_cuda.NOT_THERE, None)
    assert run({("memcheck", "planted"): 1}, installed=None) == (sanitize_cuda.NOT_THERE, None)


def test_wrong_results(run):
    assert run({("memcheck", "planted"): 1}, code=1) == (1, None)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", ["bilstm", "loss"])
def test_cases(kind, monkeypatch):
    """Right results pass, and wrong ones do not."""
    for other in {"local_inference", "masked_pool", "bilstm", "loss"} - {kind}:
        monkeypatch.setattr(sanitize_cuda, f"{other}_cases", lambda device: [])
    cases = list(getattr(sanitize_cuda, f"{kind}_cases")("cpu"))
    monkeypatch.setattr(sanitize_cuda, f"{kind}_cases", lambda device: cases)
    assert sanitize_cuda.run_cases("cpu") > 10
    cases[-1][1][-1].data[-1] += 1
    with pytest.raises(SystemExit, match="off by"):
        sanitize_cuda.run_cases("cpu")

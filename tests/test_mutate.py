"""The mutation run itself: which changes it makes, which it must not make, and when it fails."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # behind all else: only for tools

from tools import mutate
from tools.mutants import Mutant, harmless, mutants_of

CPP = """\
// Rows below n < 3 count, and "a + b" is text.
#include "rows.h"
constexpr int64_t kColumns = 256;
template <typename T>
void f(const T* x, T& y, int64_t n) {
  STD_TORCH_CHECK(n > 0, "n is ", n + 1);
  if (n < 2 && !x[n]) y = n * 4;
  announce(x, n + 1);
  y += std::min(x[0], y);
}
"""
PYTHON = '''\
"""Text with a < b."""
import torch

def f(x, y, mask: int | None = None):
    """1 + 1."""
    if mask is not None:  # 2 + 2
        raise ValueError(f"{mask + 1} is wrong")
    keep = torch.where(mask & x, y, 0.0)
    x = x.contiguous()
    return x @ y - keep, torch.cuda.is_available() and x
'''


def changes(file: str, text: str) -> dict[int, set[str]]:
    made: dict[int, set[str]] = {}
    for mutant in mutants_of(file, text):
        assert mutant.old == text.splitlines()[mutant.line - 1] != mutant.new
        made.setdefault(mutant.line, set()).add(mutant.new.strip())
    return made


@pytest.mark.promise("the mutation run changes code, and never comments, texts, types or tuning constants")
class TestMutants:
    def test_of_cpp(self) -> None:
        made = changes("f.cpp", CPP)
        assert made.keys() == {5, 6, 7, 9}
        assert made[6] == {f'STD_TORCH_CHECK(n {of}, "n is ", n + 1);' for of in (">= 0", "<= 0", "> 1")}
        assert made[7] >= {
            "if (n <= 2 && !x[n]) y = n * 4;",
            "if (n >= 2 && !x[n]) y = n * 4;",
            "if (n < 3 && !x[n]) y = n * 4;",
            "if (n < 2 || !x[n]) y = n * 4;",
            "if (n < 2 && x[n]) y = n * 4;",
            "if (n < 2) y = n * 4;",
            "if (!x[n]) y = n * 4;",
            "if (true) y = n * 4;",
            "if (n < 2 && !x[n]) y = n + 4;",
            "if (n < 2 && !y[n]) y = n * 4;",
        }
        assert made[9] >= {"y = std::min(x[0], y);", "y += std::max(x[0], y);", "y += std::min(x[1], y);", ";"}

    def test_of_python(self) -> None:
        made = changes("f.py", PYTHON)
        assert made.keys() == {4, 6, 8, 9}
        assert made[6] == {f"if {of}:  # 2 + 2" for of in ("mask is None", "True", "False")}
        assert made[8] >= {
            "keep = torch.where(mask | x, y, 0.0)",
            "keep = torch.where(x, y, 0.0)",
            "keep = torch.where(mask & x, y, 1.0)",
            "keep = (y)",
            "keep = torch.where(mask & y, y, 0.0)",
        }
        assert made[9] >= {"x = x", "pass"}

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("  if (start) {", "  if (step) {", True),
            ("return start ? start[b] : 0;", "return step ? start[b] : 0;", True),
            ("return start ? start[b] : 0;", "return start ? step[b] : 0;", False),
            ("Buffer<T> buffers[4];", "Buffer<T> buffers[5];", True),
            ("Buffer<T> buffers[4];", "Buffer<T> buffers[3];", False),
            ("weights[4];", "weights[5];", False),
            ("  finish_streams();", "  ;", True),
            ("  f();", "  ;", False),
        ],
    )
    def test_harmless_by_rule(self, old: str, new: str, expected: bool) -> None:
        assert bool(harmless(Mutant("f.h", 1, "name", old, new))) is expected

    def test_every_file_that_is_named_can_be_changed(self) -> None:
        for file in mutate.TESTS:
            made = mutants_of(file, (mutate.ROOT / file).read_text(encoding="utf-8"))
            assert len(made) >= mutate.LEAST_PER_FILE
            assert len(mutate.keys(made)) == len(made)


@pytest.mark.promise("a sample of mutants depends on its seed alone, and takes every line once before any twice")
def test_the_sample() -> None:
    made = mutants_of("f.cpp", CPP)
    drawn = mutate.drawn(made, 0, "f.cpp")
    assert sorted(drawn) == sorted(made)
    assert drawn == mutate.drawn(made, 0, "f.cpp") != mutate.drawn(made, 1, "f.cpp")
    assert len({mutant.line for mutant in drawn[:4]}) == 4
    of_one_line = [mutant.operator for mutant in drawn if mutant.line == 7]
    kinds = len(set(of_one_line))
    assert max(Counter(of_one_line[:kinds]).values()) == 1
    assert mutate.shares({"a": 90, "b": 10}, 200) == {"a": 180, "b": 20}
    assert mutate.shares({"a": 99, "b": 1}, 100) == {"a": 99, "b": mutate.LEAST_PER_FILE}


@pytest.mark.promise("the mutation run fails when under 90 % are caught, or when a survivor has no reason")
class TestVerdict:
    MADE = mutate.keys(mutants_of("f.cpp", CPP))

    def judge(self, survived: int, explained: bool) -> tuple[int, dict]:
        """Twenty tried, of which so many survive."""
        names = list(self.MADE)[:21]
        outcomes = [mutate.SURVIVED] * survived + [mutate.CAUGHT] * (20 - survived) + [mutate.NO_CODE]
        results = {"f.cpp": {key: {"outcome": of} for key, of in zip(names, outcomes, strict=True)}}
        reasons = {mutate.change(self.MADE[key]): "it is the same" for key in names[:survived]} if explained else {}
        figures = mutate.report(results, {"f.cpp": self.MADE}, {"f.cpp": reasons})
        return mutate.verdict(figures), figures

    def test_by_share_and_reasons(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.judge(0, False)[0] == 0
        assert self.judge(2, True)[0] == 0
        assert capsys.readouterr().err == ""
        assert self.judge(1, False)[0] == 1
        assert "no reason for f.cpp:" in capsys.readouterr().err
        code, figures = self.judge(3, True)
        assert code == 1
        assert "85.0% are caught, 90% are asked for" in capsys.readouterr().err
        assert (figures["tried"], figures["caught"], figures["share"]) == (20, 17, 0.85)
        assert figures["files"]["f.cpp"]["not counted"][mutate.NO_CODE] == 1
        assert all(of["reason"] == "it is the same" for of in figures["survivors"])

    def test_nothing_tried_is_no_success(self) -> None:
        assert mutate.verdict(mutate.report({}, {}, {})) == 1

    def test_the_command(self, tmp_path, monkeypatch, capsys) -> None:
        """--report reads what was recorded, with the reasons as they are now."""
        record = tmp_path / "mutation.json"
        file = "csrc/rows.h"
        key, mutant = next(iter(mutate.keys(mutants_of(file, (mutate.ROOT / file).read_text("utf-8"))).items()))
        record.write_text(json.dumps({"results": {file: {key: {"outcome": mutate.SURVIVED}, "gone -> away": {}}}}))
        monkeypatch.setattr(mutate, "REASONS", tmp_path / "survivors.json")
        monkeypatch.setattr(mutate, "LEAST_SHARE", 0.0)
        monkeypatch.setattr(sys, "argv", ["mutate", "--report", "--json", str(record)])
        assert mutate.main() == 1
        assert f"no reason for {file}:{mutant.line}: " in capsys.readouterr().err
        mutate.REASONS.write_text(json.dumps({file: {mutate.change(mutant): "it is the same"}}), encoding="utf-8")
        assert mutate.main() == 0
        written = json.loads(record.read_text(encoding="utf-8"))
        assert written["survivors"][0]["reason"] == "it is the same"
        assert written["files"][file]["survived"] == 1
        monkeypatch.setattr(sys, "argv", ["mutate", "--resume"])
        with pytest.raises(SystemExit) as ended:
            mutate.main()
        assert ended.value.code == 2

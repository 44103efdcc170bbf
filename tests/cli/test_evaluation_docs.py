"""The code of docs/evaluation.md runs as it is written."""

import json
import random
import re
import shlex
from pathlib import Path

import pytest

from esim_fast import metrics
from tests.cli.commands import succeeds, write_tsv
from tests.cli.made_up import random_model, sentence, write_rows
from tests.pages import ROOT, blocks


def test_every_block_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    random_model(["entailment", "neutral"]).save_pretrained("model")
    rows = [(draw.choice(["entailment", "neutral", "-"]), sentence(draw), sentence(draw)) for _ in range(20)]
    write_tsv(Path("test.tsv"), rows)
    write_rows(
        Path("candidates.tsv"),
        "query candidate relevant",
        [(premise, hypothesis, label) for label, premise, hypothesis in rows],
    )
    found = blocks("docs/evaluation.md")
    assert [block.language for block in found] == ["bash"] * 4 + ["python"] * 2
    names: dict = {}
    reports = []
    for language, code, _ in found:
        if language == "python":
            for command in re.findall(r"# of: esim-fast (.*) > answers.jsonl", code):
                Path("answers.jsonl").write_text(succeeds(*shlex.split(command)))
            exec(code, names)
        else:
            for line in code.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "esim-fast"
                reports.append(json.loads(succeeds(*arguments)))
    for name in ("errors.html", "errors.jsonl", "confusion.png"):
        assert Path(name).stat().st_size
    assert len(names["wrong"]) == len(Path("errors.jsonl").read_text().splitlines())
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    for report in reports:
        for name in {*report, *report.get("ranking", {})} - {"absent_labels", "relevant_label"}:
            assert f"`{name}`" in page
    assert metrics.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75

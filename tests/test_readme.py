"""Checks what the READMEs say about CI, requirements and the bundled sample; test_docs.py runs their code."""

import json
import re

from esim_fast.data import read_pairs
from tests.pages import PAGES, READMES, ROOT, blocks


def test_ci_runs_what_it_is_said_to_run():
    text = (ROOT / ".ci/run").read_text()
    for page in READMES:
        marks = [block.run_by_ci for block in blocks(page) if block.run_by_ci]
        assert marks == ["train", "tests", "predict", "benchmarks"]
        for mark in marks:
            assert f'eval "$(readme {mark})"' in text


def test_what_ci_runs_is_the_same_on_every_page():
    readme = {block.run_by_ci: block for block in blocks(READMES[0])}
    for page in PAGES:
        assert all(block == readme[block.run_by_ci] for block in blocks(page) if block.run_by_ci)


def test_it_is_read_in_minutes():
    text = (ROOT / READMES[0]).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1600


def test_requirements_are_the_extras():
    extra = re.search(r"^test = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    lines = (ROOT / "requirements-test.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == json.loads(extra)


def test_ci_installs_the_extra_for_the_site():
    extra = json.loads(re.search(r"^docs = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.M)[1])
    ci = (ROOT / ".ci/run").read_text()
    assert all(f'"{requirement}"' in ci for requirement in extra)


def test_the_rows_of_the_sample_in_it():
    """The pair that the READMEs ask the sample's model about is not one that it was trained on."""
    code = next(block.code for block in blocks(READMES[0]) if block.run_by_ci == "predict")
    premise, hypothesis = re.findall(r'"([^"]+)"', code)
    train = ROOT / "esim_fast/data/sample/train.tsv"
    assert all((pair.premise, pair.hypothesis) != (premise, hypothesis) for pair in read_pairs(train))

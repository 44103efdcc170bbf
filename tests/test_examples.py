"""The examples run, on fewer pairs than in the docs, and the notebook's outputs have the form of its code's."""

import ast
import io
import json
import runpy
import sys
from contextlib import redirect_stdout

import pytest
from IPython.core.formatters import DisplayFormatter

import esim_fast
from tests.pages import ROOT

EXAMPLES = ROOT / "examples"
SAMPLE = ROOT / "esim_fast/data/sample"
NOTEBOOK = json.loads((EXAMPLES / "sentence_pairs.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_cell(source, names):
    """What a notebook would show: whether anything was printed, and the forms of the last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, source, "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), source, "eval"), names)
    forms = set() if value is None else {*DisplayFormatter().format(value)[0]}
    return bool(printed.getvalue()), forms


def kept(cell):
    """The same of the outputs in the file."""
    kinds = {output["output_type"] for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for output in cell["outputs"])  # no warnings
    return "stream" in kinds, {form for output in cell["outputs"] for form in output.get("data", {})}


@pytest.mark.usefixtures("curves")
def test_the_notebook_runs_and_shows_what_it_has_shown(tmp_path):
    names = {}
    for cell in CELLS:
        source = "".join(cell["source"])
        assert run_cell(source, names) == kept(cell), source
        if "parameters" in cell["metadata"].get("tags", []):
            assert {"TRAIN_PAIRS", "EPOCHS", "LOOP_EPOCHS", "OUTPUT"} <= names.keys()
            names.update(TRAIN_PAIRS=300, EPOCHS=1, LOOP_EPOCHS=1, OUTPUT=tmp_path)
    assert esim_fast.Classifier.from_pretrained(tmp_path / "model").labels == names["model"].labels
    assert names["own"].net is names["net"]


def test_the_notebook_was_run_once_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CELLS] == [*range(1, len(CELLS) + 1)]
    assert (EXAMPLES / "sentence_pairs.ipynb").stat().st_size < 500_000


def run_script(monkeypatch, *arguments):
    script = EXAMPLES / "train_on_your_file.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


def test_the_script_trains(tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    run_script(monkeypatch, SAMPLE / "dev.tsv", model, "--epochs", "1", "--hidden-size", "8")
    printed = capsys.readouterr().out
    assert "802 pairs to train on, 99 to choose the best epoch, 99 to test\n" in printed
    assert "test accuracy" in printed
    assert esim_fast.Classifier.from_pretrained(model).labels == ["contradiction", "entailment", "neutral"]
    assert (model / "attention.html").stat().st_size


def test_the_script_says_what_is_wrong_in_a_line(tmp_path, monkeypatch):
    file = tmp_path / "pairs.csv"
    file.write_text("premise,hypothesis,label\na,b\n")
    with pytest.raises(SystemExit, match=r"^error: .*pairs.csv:2: expected 3 columns, got 2$"):
        run_script(monkeypatch, file, tmp_path / "model")

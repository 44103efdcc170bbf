"""Modules import one another in one direction, nothing of ours inside a function, and torch when it is needed."""

import ast
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import esim_fast
from tests.processes import output_of

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "esim_fast").rglob("*.py")
}


def imports(module, tree):
    """Modules of ours that are imported anywhere in a tree, within functions and for types as well."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else source for name in names if source in FILES)


def test_no_circle():
    graph = {module: set(imports(module, ast.parse(path.read_bytes()))) for module, path in FILES.items()}
    assert graph["esim_fast.data.reading"] >= {"esim_fast.errors", "esim_fast.data.hub"}  # it sees some
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_functions_import_what_is_somebody_elses():
    functions = [
        (module, node)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [(module, node.name) for module, node in functions if [*imports(module, node)]] == []


def test_the_package_gives_what_it_is_asked_for():
    program = """
import sys
import esim_fast
assert {*esim_fast.__all__} <= {*dir(esim_fast)} and "torch" not in sys.modules
modules = esim_fast.ops.bilstm, esim_fast.compat.coetaur0, esim_fast.streaming.predict_file, esim_fast.layers.Dropout
from esim_fast import *
print(*(name for name in esim_fast.__all__ if name not in globals()))
"""
    assert output_of(program) == "\n"
    with pytest.raises(AttributeError, match=r"^module 'esim_fast' has no attribute 'LSTM'$"):
        esim_fast.LSTM  # noqa: B018

"""Imports between modules have no cycles and are at the top of files; torch is imported lazily."""

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
    """Modules of esim_fast imported anywhere in a syntax tree, including functions and type-checking blocks."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else source for name in names if source in FILES)


def test_no_cycle():
    graph = {module: set(imports(module, ast.parse(path.read_bytes()))) for module, path in FILES.items()}
    assert graph["esim_fast.data.reading"] >= {"esim_fast.errors", "esim_fast.data.hub"}  # the graph is not empty
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_functions_import_only_other_packages():
    functions = [
        (module, node)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [(module, node.name) for module, node in functions if [*imports(module, node)]] == []


def test_lazy_attributes_of_the_package():
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

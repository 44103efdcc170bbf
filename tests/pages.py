"""The READMEs and the pages in docs/: their code blocks, and what runs these as they are written."""

import ast
import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

import esim_fast
from tests.cli.commands import succeeds
from tests.processes import places, start

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")
PAGES = [*READMES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SHOWN = {"", "text", "json", "diff", "cpp", "bibtex"}  # what is printed, or is an excerpt


class Block(NamedTuple):
    language: str
    code: str
    run_by_ci: str | None  # the name in "CI runs this as NAME"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """All code blocks of a page, whose path starts at the repository's root."""
    block = r"(?:<!-- (?:CI runs this as (\w+)|(not run)) -->\n)?^```(\w*)\n(.*?)^```$"
    found = re.findall(block, text_of(page), re.M | re.S)
    return [Block(f"{language} skip" if skip else language, code, mark or None) for mark, skip, language, code in found]


def code_of(page: str, language: str) -> list[str]:
    return [block.code for block in blocks(page) if block.language == language]


def run(page: str, names: dict[str, object]) -> None:
    """Runs all blocks of a page in the current directory, Python's with ``names``.

    A block of YAML or Python whose first comment names a file is written to it. A block marked
    ``<!-- not run -->`` needs a network or a GPU.
    """
    for language, code, run_by_ci in blocks(page):
        if run_by_ci or language in SHOWN or language in ("bash skip", "python skip"):
            continue
        if file := re.match(r"# (\S+\.(?:yaml|py))\n", code):
            Path(file[1]).write_text(code, encoding="utf-8")
        if language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line)
        elif language == "yaml":
            assert file, code
        elif "e = a @ b.T" in code:
            check_equations(code)
        else:
            for command in re.findall("# of: (esim-fast .*)", code):  # what the block reads
                run_line(command)
            exec(compile(code, page, "exec"), names)


def check_equations(code: str) -> None:
    """What a page calls equivalent to the ops, for one pair."""
    names = {"torch": torch, "x": torch.randn(5, 6), "a": torch.randn(4, 6), "b": torch.randn(3, 6)}
    exec(code, names)
    x, a, b = (names[name][None] for name in "xab")
    m_a, m_b = esim_fast.ops.local_inference(a, b)
    torch.testing.assert_close(names["v"], esim_fast.ops.masked_pool(x)[0])
    torch.testing.assert_close(names["m_a"], m_a[0])
    torch.testing.assert_close(names["m_b"], m_b[0])


def run_line(line: str) -> None:
    """Runs a shell line and prints its output. ``esim-fast`` runs in this process, because a new one would import torch
    each time."""
    output = ""
    for stage in line.split(" | "):
        output = _run_command(stage, output)
    print(output, end="")


def _run_command(line: str, given: str) -> str:
    words = shlex.split(line, comments=True)
    assignments = list(itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    environment = dict(word.split("=", 1) for word in assignments)
    words = words[len(assignments) :]
    if not words:
        return ""
    command, *arguments = words
    if command == "torchrun":
        _run_processes(arguments)
    elif command == "esim-fast":
        if "<" in arguments:
            at = arguments.index("<")
            given = Path(arguments[at + 1]).read_text(encoding="utf-8")
            del arguments[at : at + 2]
        file = Path(arguments.pop()) if arguments[-2:-1] == [">"] else None
        with mock.patch.dict(os.environ, environment):
            printed = succeeds(*(arguments if file is None else arguments[:-1]), stdin=given)
        if file is None:
            return printed
        file.write_text(printed, encoding="utf-8")
    elif command == "pip":
        _check_extras(arguments)
    elif command == "pytest":
        _check_tests(arguments)
    elif command in ("ruff", "mypy", "mkdocs"):  # CI's, as what follows is
        pass
    elif command.startswith(("python", ".ci/")):
        name = next((word for word in words if not word.startswith(("python", "-"))), "")
        path = name.replace(".", "/") + ".py" if "-m" in words else name
        assert (ROOT / path).is_file(), line
    else:
        return subprocess.run(["bash", "-ec", line], input=given, check=True, capture_output=True, text=True).stdout
    return ""


def _run_processes(arguments: list[str]) -> None:
    """Two of torchrun's processes, on a small network."""
    count = int(arguments.pop(0).removeprefix("--nproc-per-node="))
    assert arguments[:3] == ["-m", "esim_fast", "train"]
    command = [*arguments[2:], "--hidden-size", "8", "--epochs", "1", "--device", "cpu"]
    with ExitStack() as stack:
        started = [start(*command, environment=place, directory=Path.cwd()) for place in places(min(count, 2))]
        commands = [stack.enter_context(process) for process in started]
        outcomes = [process.finish() for process in commands]
    assert [code for code, *_ in outcomes] == [0] * len(outcomes), outcomes


def _check_extras(arguments: list[str]) -> None:
    """Checks that the extras and requirement files that pip is given exist."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for argument in arguments:
        if found := re.match(r"(?:esim_fast|\.)\[([\w,]+)\]$", argument):
            for extra in found[1].split(","):
                assert re.search(rf"^{extra} = \[", project, re.M), f"no extra is called {extra}"
        elif argument.endswith(".txt"):
            assert (ROOT / argument).is_file(), argument


def _check_tests(arguments: list[str]) -> None:
    """Checks that the test files exist, without collecting, which takes a minute."""
    for argument in arguments:
        if argument.startswith(("tests", "benchmarks")):
            assert (ROOT / argument).exists(), argument


def needs(page: str) -> Iterable[str]:
    """Yields the packages, except esim_fast, that a page's code imports."""
    code = "\n".join(block.code for block in blocks(page) if not (block.run_by_ci or block.language in SHOWN))
    for text in code_of(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            yield from (module for module in modules if module.split(".")[0] != "esim_fast")
    for pattern, names in (
        (r"\.png\b", ["matplotlib"]),
        (r"\.yaml\b", ["yaml"]),
        (r"esim-fast export", ["onnx", "onnxruntime"]),
        (r"\btensorboard\b", ["tensorboard"]),
        (r"\bjieba:", ["jieba"]),
    ):
        if re.search(pattern, code):
            yield from names


def skip_without(names: Iterable[str]) -> None:
    for name in names:
        pytest.importorskip(name)

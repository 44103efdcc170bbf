"""The command itself: its version, its help, and the ways to start it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import fails, succeeds
from tests.processes import output_of

COMMANDS = "train", "evaluate", "predict", "explain", "convert", "data"


def test_version_and_help():
    assert succeeds("--version") == f"esim-fast {importlib.metadata.version('esim_fast')}\n"
    text = succeeds("--help")
    assert all(command in text for command in COMMANDS)
    assert "see esim-fast --help" in fails()


def test_nobody_waits_for_torch_who_does_not_compute():
    """It takes seconds to import, and NumPy some tenths of one."""
    asked = [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)]
    asked += [[], ["pedict"], ["predict"], ["predict", "m", "--unheard-of"], ["train", "--epochs", "0"]]
    program = f"""
import contextlib, sys
import esim_fast
from esim_fast.cli import main
for arguments in {asked}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):
        main(arguments)
        print(arguments, "is no mistake", file=sys.__stdout__)
    if found := {{"torch", "numpy"}} & sys.modules.keys():
        print(arguments, "imports", *found)
"""
    assert output_of(program) == ""


def test_console_script_and_module():
    script = Path(sys.executable).with_name("esim-fast")
    if not script.exists():
        pytest.skip("esim_fast is not installed in this environment")
    for command in ([script], [sys.executable, "-m", "esim_fast"]):
        result = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, succeeds("--help"))

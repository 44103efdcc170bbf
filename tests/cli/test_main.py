"""The command itself: its version, its help, and the ways to start it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import fails, succeeds


def test_version_and_help():
    assert succeeds("--version") == f"esim-fast {importlib.metadata.version('esim_fast')}\n"
    text = succeeds("--help")
    assert all(command in text for command in ("train", "evaluate", "predict", "data"))
    assert "see esim-fast --help" in fails()


def test_console_script_and_module():
    script = Path(sys.executable).with_name("esim-fast")
    if not script.exists():
        pytest.skip("esim_fast is not installed in this environment")
    for command in ([script], [sys.executable, "-m", "esim_fast"]):
        result = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, succeeds("--help"))

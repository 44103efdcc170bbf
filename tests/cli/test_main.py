"""The command itself: version, help, and ways to start it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import fails, succeeds
from tests.processes import output_of

COMMANDS = "train", "evaluate", "predict", "explain", "convert", "export", "data"


def test_version_and_help():
    assert succeeds("--version") == f"esim-fast {importlib.metadata.version('esim_fast')}\n"
    text = succeeds("--help")
    assert all(command in text for command in COMMANDS)
    assert "see esim-fast --help" in fails()


def test_torch_is_imported_only_to_compute():
    """Importing torch takes seconds, and NumPy tenths of a second."""
    asked = [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)]
    asked += [
        [],
        ["pedict"],
        ["predict"],
        ["predict", "m", "--unheard-of"],
        ["train", "--epoch", "5"],
        ["train", "--epochs", "0"],
    ]
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


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("train --epoch 5", "--epoch 5; did you mean --epochs?"),
        ("train --epoch=5", "--epoch=5; did you mean --epochs?"),
        ("train --hiden-size 8", "did you mean --hidden-size?"),
        ("train --tokeniser nltk", "did you mean --tokenizer?"),
        ("train --TOKENIZER nltk", "did you mean --tokenizer?"),
        ("train --batch_size 8", "did you mean --batch-size?"),
        ("train --learning_rate 8", "did you mean --lr?"),
        ("train --learning-rat 8", "did you mean --lr?"),
        ("train -epochs 8", "did you mean --epochs?"),
        ("train —epochs 8", "did you mean --epochs?"),
        ("train --lrs 1 --sed 1", "--lrs 1 --sed 1; did you mean --lr, --seed?"),
        ("evaluate m f --batchsize 8", "did you mean --batch-size?"),
        ("explain m --premise a --hypothesis b -o c --ouput d", "did you mean --output?"),
        ("convert a b --form notebook", "did you mean --from?"),
        ("evaluate m f --epochs 8", "--epochs is an option of train"),
        ("train --premise a", "--premise is an option of predict, explain"),
        ("train -o=a", "-o is an option of explain"),
        ("data f --version", "--version is an option of esim-fast"),
        ("train --frobnicate 8", "unrecognized arguments: --frobnicate 8"),
        ("train --max-length 8", "unrecognized arguments: --max-length 8"),
        (
            "train --premise a --epoch 1",
            "a --epoch 1; --premise is an option of predict, explain; did you mean --epochs?",
        ),
        ("train 8 - -- epochs", "unrecognized arguments: 8 - -- epochs"),
        ("evaluate m f epochs -1", "unrecognized arguments: epochs -1"),
    ],
)
def test_an_unknown_option_suggests_the_near_one(arguments, hint):
    command = arguments.partition(" ")[0]
    said = fails(*arguments.split())
    assert said.startswith(f"esim-fast {command}: unrecognized arguments: ")
    assert f"{hint} (see esim-fast {command} --help)" in said


def test_a_usage_error_is_one_short_line():
    assert "--a\\nb (see" in fails("train", "--a\nb")
    assert len(fails("convert", "a", "b", "--labels", "a," * 5000)) < 1200


def test_console_script_and_module():
    script = Path(sys.executable).with_name("esim-fast")
    if not script.exists():
        pytest.skip("esim_fast is not installed in this environment")
    for command in ([script], [sys.executable, "-m", "esim_fast"]):
        result = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, succeeds("--help"))

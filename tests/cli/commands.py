"""The command line, run in this process, because a new one would import torch each time."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from esim_fast.cli import main

TRAIN = [
    ("entailment", "A man is sleeping.", "A man sleeps."),
    ("contradiction", "A man is sleeping.", "A man runs."),
    ("neutral", "A man is sleeping.", "A man dreams."),
    ("entailment", "Two dogs are running.", "Dogs run."),
    ("contradiction", "Two dogs are running.", "Dogs sleep."),
    ("-", "Two dogs are running.", "Dogs dream."),
]
EXPECTED = "expected premise,hypothesis[,label], by name or number from 1, got '"
SMALL = ["--hidden-size", "8", "--epochs", "2", "--batch-size", "2", "--device", "cpu"]


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def esim_fast(*arguments, stdin="", cwd=None):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if cwd is not None:
            stack.callback(os.chdir, Path.cwd())
            os.chdir(cwd)
        given = io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode())
        stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(given)))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # raised by argparse
            code = exit.code
    return Result(code, out.getvalue(), err.getvalue())


def succeeds(*arguments, **options):
    result = esim_fast(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def answers(text):
    """The output of predict without line numbers."""
    return [{key: value for key, value in json.loads(line).items() if key != "line"} for line in text.splitlines()]


def training(corpus, output, *options):
    """Arguments of a short run on one small corpus."""
    return ["train", "--train", corpus, "--dev", corpus, "--output", output, *SMALL, *options]


def fails(*arguments, **options):
    """Checks a usage error: exit code 2, one line on stderr, nothing on stdout."""
    result = esim_fast(*arguments, **options)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr[:-1].isprintable()
    return result.stderr.strip()


def write_tsv(path, rows, header=True):
    lines = (["gold_label\tsentence1\tsentence2"] if header else []) + ["\t".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

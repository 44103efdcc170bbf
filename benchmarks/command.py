"""What the benchmarks that run as commands have in common."""

import argparse
import json
from pathlib import Path
from typing import NoReturn

from benchmarks.timing import environment, hardware, today
from esim_fast.files import replace_file


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """An argparse type."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return number


def positive_number(text: str) -> float:
    """An argparse type."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def add_json(parser: Parser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")


def write_json(parser: Parser, path: Path | None, figures: dict[str, object]) -> None:
    """Writes the figures, and the machine and date they belong to, if there is a ``path``."""
    if path is None:
        return
    circumstances = {"environment": environment(), "hardware": hardware(), "date": today()}
    try:
        text = json.dumps({**circumstances, **figures}, indent=1) + "\n"
        replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    except OSError as error:
        parser.error(f"{path}: {error.strerror}")

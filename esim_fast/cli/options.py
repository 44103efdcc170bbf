"""Options that several commands share, and how mistakes on the command line are reported."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NoReturn

from ..config import INFERENCE_PRECISIONS
from ..delimiters import is_delimiter
from ..errors import one_line
from ..recipe import BEST_BY
from ..tokenizing import TOKENIZERS

MODEL = "a model directory, or user/name on the Hugging Face Hub"
LOGS = ("csv", "tensorboard", "wandb")  # places for a run's curves

FILES = (
    ".jsonl, .json, .csv, .parquet or tab-separated, optionally compressed (.gz, .bz2, .xz, .zip), with column names "
    "of a known corpus (docs/corpora.md) or --columns"
)


class UsageError(Exception):
    """A command line that cannot be executed; the message is one line."""


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print one line, without argparse's usage."""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def add_task(command: argparse.ArgumentParser) -> None:
    tasks = "classification: labels are classes; regression: labels are scores, as in STS-B (default: %(default)s)"
    command.add_argument("--task", choices=("classification", "regression"), default="classification", help=tasks)


def add_reading(command: argparse.ArgumentParser) -> None:
    """Add options on how to read files of sentence pairs."""
    columns = (
        "columns (or keys) of premise, hypothesis and label, by name, or by number from 1 if there is no header "
        "(default: find known names; without a header, detect whether the label is first or last)"
    )
    command.add_argument("--columns", type=_columns, metavar="P,H[,L]", help=columns)
    command.add_argument("--quoted", action="store_true", help="fields of .tsv files may be in double quotes")
    separator = 'column separator: a character or "tab" (default: detected from the first lines)'
    command.add_argument("--delimiter", type=delimiter, metavar="CHAR", help=separator)


def add_label_map(command: argparse.ArgumentParser) -> None:
    names = "rename labels of the files before anything else; several OLD may become the same NEW"
    command.add_argument("--map-labels", type=label_map, default={}, metavar="OLD=NEW,…", help=names)


def add_skipping(command: argparse.ArgumentParser) -> None:
    command.add_argument("--skip-bad-rows", action="store_true", help="list rows that cannot be read, and skip them")


def add_cache(command: argparse.ArgumentParser) -> None:
    """Add options on where to cache prepared files."""
    where = command.add_mutually_exclusive_group()
    where.add_argument("--cache", metavar="DIR", help="cache folder for prepared files (default: ~/.cache/esim_fast)")
    where.add_argument("--no-cache", action="store_true", help="do not use a cache")


def add_tokenizer(command: argparse.ArgumentParser) -> None:
    names = f"{', '.join(TOKENIZERS)}, or module:function for your own (default: nltk)"
    command.add_argument("--tokenizer", type=tokenizer, default="nltk", metavar="NAME", help=names)


def add_model_use(command: argparse.ArgumentParser) -> None:
    """Add options on how to run a trained model on many pairs."""
    how_many = "pairs per batch (default: %(default)s)"
    command.add_argument("--batch-size", type=count, default=256, metavar="N", help=how_many)
    command.add_argument(
        "--precision",
        choices=INFERENCE_PRECISIONS,
        default="fp32",
        help="bf16, fp16: autocast; int8: quantized, on CPUs with VNNI; auto: int8 or fp32 (default: %(default)s)",
    )
    add_cuda_graphs(command, "the network")
    add_loading(command)


def add_cuda_graphs(command: argparse.ArgumentParser, what: str) -> None:
    """Add --cuda-graphs, whose help names what is captured."""
    graphs = f"capture {what} as CUDA graphs; auto: off, because they have not run on a GPU yet (default: auto)"
    command.add_argument("--cuda-graphs", choices=("on", "off", "auto"), default="auto", help=graphs)


def add_loading(command: argparse.ArgumentParser) -> None:
    """Add options on how to load a trained model."""
    command.add_argument(
        "--tokenizer", type=tokenizer, metavar="NAME", help="only for a model trained with your own function"
    )
    add_device(command)


def add_device(command: argparse.ArgumentParser) -> None:
    """Add options on what computes."""
    choices = ("auto", "cpu", "cuda")
    gpu = "auto: a GPU if there is one (default: %(default)s)"
    command.add_argument("--device", choices=choices, default="auto", help=gpu)
    names = ("cpp", "cuda", "triton", "cudnn", "reference")
    lstms = "what runs the BiLSTMs (default: the best one, but never cuda, which no GPU has run yet)"
    command.add_argument("--bilstm-backend", choices=names, help=lstms)
    how_many = "compute threads (default: one for each core that this process may use)"
    command.add_argument("--threads", type=threads, metavar="N", help=how_many)


def text(value: str) -> str:
    """Parse a sentence (an argparse type)."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"not valid UTF-8 at character {error.start + 1}") from error
    return value


def tokenizer(name: str) -> str:
    """Parse the name of a tokenizer, or module:function, which may be in the current directory (an argparse type)."""
    if ":" in name:
        sys.path.insert(0, os.getcwd())
    elif name not in TOKENIZERS:
        raise argparse.ArgumentTypeError(f"expected {', '.join(TOKENIZERS)} or module:function, got {name!r}")
    return name


def logs(text: str) -> list[str]:
    """Parse the places for a run's curves, whose libraries must be installed (an argparse type)."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in LOGS:
            raise argparse.ArgumentTypeError(f"expected {', '.join(LOGS)}, or several of them, got {text!r}")
        spec = None if name == "csv" else find_spec(name)
        if name != "csv" and (spec is None or spec.origin is None):  # a folder of this name is not the library
            raise argparse.ArgumentTypeError(f'{name} is not installed: pip install "esim_fast[{name}]"')
    return names


def say(message: str) -> None:
    """Print one line on stderr."""
    print(one_line(message), file=sys.stderr)


def delimiter(text: str) -> str:
    """Parse a column separator (an argparse type)."""
    character = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}.get(text, text)
    if not is_delimiter(character):
        raise argparse.ArgumentTypeError(
            f"expected one character other than a quote, letter or digit, or tab, got {text!r}"
        )
    return character


def label_map(text: str) -> dict[str, str]:
    """Parse new names of labels by their names in the files (an argparse type)."""
    names: dict[str, str] = {}
    for part in text.split(","):
        old, _, new = map(str.strip, part.partition("="))
        if not old or not new or old in names:
            raise argparse.ArgumentTypeError(f"expected OLD=NEW,…, each OLD once, got {text!r}")
        names[old] = new
    return names


def _number(kind: Callable[[str], Any], expected: str, accept: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Make an argparse type whose error says what it expected."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


count = _number(int, "an integer from 1 to 1000000", lambda value: 1 <= value <= 1_000_000)
threads = _number(int, "an integer from 1 to 1024", lambda value: 1 <= value <= 1024)
size = _number(int, "an integer from 1 to 65536", lambda value: 1 <= value <= 65_536)
seed = _number(int, "an integer from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
rate = _number(float, "a positive number", lambda value: 0 < value < math.inf)
amount = _number(float, "a number from 0", lambda value: 0 <= value < math.inf)
fraction = _number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1)
share = _number(float, "a number above 0, at most 1", lambda value: 0 < value <= 1)
_probability = _number(float, "f1, accuracy or a number from 0 to 1", lambda value: 0 <= value <= 1)
steps = _number(int, "an integer from 0 to 1000000", lambda value: 0 <= value <= 1_000_000)


def patience(text: str) -> int | None:
    """Parse a number of epochs, where 0 means no limit (an argparse type)."""
    return steps(text) or None


def best_by(text: str) -> str:
    """Parse the name of a figure, or the F1 of a label (an argparse type)."""
    text = text if text.startswith("f1:") else text.replace("_", "-")
    if text not in BEST_BY and not (text.startswith("f1:") and text[3:]):
        raise argparse.ArgumentTypeError(f"expected {', '.join(BEST_BY)} or f1:LABEL, got {text!r}")
    return text


def class_weights(text: str) -> str | dict[str, float]:
    """Parse "balanced", or weights by label (an argparse type)."""
    if text == "balanced":
        return text
    weights: dict[str, float] = {}
    for part in text.split(","):
        label, _, weight = map(str.strip, part.rpartition("="))
        if not label or label in weights:
            raise argparse.ArgumentTypeError(f"expected balanced, or LABEL=WEIGHT,…, each LABEL once, got {text!r}")
        weights[label] = rate(weight)
    return weights


def threshold(text: str) -> str | float:
    """Parse a threshold, or the figure to choose it by (an argparse type)."""
    return text if text in ("f1", "accuracy") else _probability(text)


def _columns(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    numbers = [str(int(name)) for name in names if name.isdecimal() and len(name) < 6]
    if numbers and len(numbers) < len(names):
        raise argparse.ArgumentTypeError(f"expected names or numbers, not both, got {text!r}")
    names = numbers or names
    if not 2 <= len(names) <= 3 or not all(names) or len(set(names)) < len(names) or "0" in names:
        raise argparse.ArgumentTypeError(f"expected premise,hypothesis[,label], by name or number from 1, got {text!r}")
    return tuple(names)

"""The arguments of all commands.

This module must not import torch, which takes seconds, so that help and mistyped options answer at once.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version

from ..state_dicts import NAMING_SCHEMES
from .config_file import given_options, set_defaults
from .options import (
    FILES,
    MODEL,
    Parser,
    UsageError,
    add_cache,
    add_cuda_graphs,
    add_device,
    add_label_map,
    add_loading,
    add_model_use,
    add_reading,
    add_skipping,
    add_task,
    add_tokenizer,
    count,
    logs,
    steps,
    text,
    threshold,
    tokenizer,
)
from .recipe import add_recipe


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; ``command`` is the name of the module whose ``run`` executes it."""
    parser = Parser(prog="esim-fast", description="Train and use ESIM, a model for sentence pairs.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('esim_fast')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add, summary in _COMMANDS.items():
        command = commands.add_parser(add.__name__, help=summary, description=add.__doc__)
        command.set_defaults(command=add.__name__, parser=command)
        add(command)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse's own error would refer to the help of the whole program
        hints = _hints(unknown, options.parser, {parser.prog: parser, **commands.choices})
        options.parser.error("; ".join([f"unrecognized arguments: {' '.join(unknown)}", *hints]))
    if getattr(options, "config", None) is not None:
        given = given_options(options.parser, sys.argv[1:] if arguments is None else arguments)
        try:
            set_defaults(options.parser, options.config, options, given)
        except UsageError as error:
            options.parser.error(str(error))
        return parser.parse_args(arguments)
    return options


def train(command: argparse.ArgumentParser) -> None:
    """Train a model. The best one on dev (by accuracy, or --best-by) is saved in the output directory."""
    command.add_argument(
        "--train", nargs="+", metavar="FILE", help=f"training pairs (default: the bundled sample): {FILES}"
    )
    command.add_argument("--dev", metavar="FILE", help="pairs that choose the best epoch")
    command.add_argument("--test", metavar="FILE", help="pairs on which to score the best model, once, at the end")
    command.add_argument(
        "--data", metavar="DIR", help="a folder with train, dev and perhaps test files, such as snli_1.0, or hub:NAME"
    )
    add_task(command)
    add_reading(command)
    add_label_map(command)
    add_skipping(command)
    add_tokenizer(command)
    vectors = (
        "word vectors: text from GloVe, word2vec or fastText, or word2vec's .bin, optionally compressed (.gz, .bz2, "
        ".xz, .zip); or .npz"
    )
    command.add_argument("--vectors", metavar="FILE", help=vectors)
    extending = (
        "add words of these files to the vocabulary if they have a vector; files are pairs or plain text (default: the "
        "dev and test files), and their labels are not read"
    )
    command.add_argument("--extend-vocabulary", nargs="*", metavar="FILE", help=extending)
    add_cache(command)
    output = "the model directory to write (default: %(default)s)"
    command.add_argument("--output", metavar="DIR", default="esim-fast-model", help=output)
    command.add_argument("--resume", action="store_true", help="continue a run that stopped, with the same options")
    number = partial(command.add_argument, type=count, metavar="N")
    number("--checkpoint-steps", default=1000, help="steps between checkpoints within an epoch (default: %(default)s)")
    add_cuda_graphs(command, "training steps")
    number("--seeds", help="train N models, with seeds counting up from --seed, in DIR/seed-…")
    scaling = "fit a temperature on dev, so that probabilities match how often the best model is right"
    command.add_argument("--calibrate", action="store_true", help=scaling)
    cutting = "for two labels: predict the positive one (entailment, 1 or the second) from probability X on, or from "
    cutting += "the one with the best F1 or accuracy on dev"
    command.add_argument("--threshold", type=threshold, metavar="f1|accuracy|X", help=cutting)
    number("--limit", help="read only the first N pairs of each file, for a trial run")
    places = "also log curves to csv, tensorboard or wandb, or to several, as in csv,tensorboard"
    command.add_argument("--log", type=logs, action="extend", default=[], metavar="NAME,…", help=places)
    values = "read options from a .json or .yaml file, such as a run's config.json; the command line takes precedence"
    command.add_argument("--config", metavar="FILE", help=values)
    add_device(command)
    add_recipe(command)


def evaluate(command: argparse.ArgumentParser) -> None:
    """Score a model on labeled pairs. Prints one JSON object with accuracy, F1, calibration, figures for each class and
    the confusion matrix, or with the correlations of a regression model (docs/evaluation.md)."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("file", metavar="FILE", help=FILES)
    ranking = (
        "also report MAP, MRR and recall@k; pairs with the same premise are one query's candidates, and those labeled "
        "entailment, else 1, else the second of two labels (or with a score above 0) are relevant"
    )
    command.add_argument("--ranking", action="store_true", help=ranking)
    wrong = "write the wrong pairs, most confident answers first, as a web page (.html) or .jsonl"
    command.add_argument("--errors", metavar="FILE", help=wrong)
    command.add_argument("--confusion", metavar="FILE", help="plot the confusion matrix (.png)")
    add_reading(command)
    add_label_map(command)
    add_skipping(command)
    add_model_use(command)
    add_cache(command)


def predict(command: argparse.ArgumentParser) -> None:
    """Predict labels and probabilities for one pair, or for a file in its order. Prints one JSON line for each pair,
    with its line number. Rows that cannot be read are reported on stderr and skipped."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument(
        "file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin, tab-separated or .jsonl"
    )
    command.add_argument("--premise", type=text, metavar="TEXT", help="premise of a single pair")
    command.add_argument("--hypothesis", type=text, metavar="TEXT", help="hypothesis of a single pair")
    command.add_argument(
        "--stop-at-bad-row", action="store_true", help="stop at a row that cannot be read instead of skipping it"
    )
    add_reading(command)
    add_model_use(command)


def rank(command: argparse.ArgumentParser) -> None:
    """Find the candidates that best match a query, which is the premise; each candidate is a hypothesis. Prints JSON
    lines, the best candidate first."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("--query", type=text, metavar="TEXT", help="a single query")
    sentences = "one sentence per line, optionally compressed (.gz, .bz2, .xz, .zip); - reads stdin"
    command.add_argument("--queries", metavar="FILE", help=f"many queries: {sentences}")
    command.add_argument("--candidates", metavar="FILE", required=True, help=sentences)
    how_many = "candidates to print for each query, 0 for all (default: %(default)s)"
    command.add_argument("--top-k", type=steps, default=10, metavar="N", help=how_many)
    label = "rank by the probability of this label (default: entailment, otherwise 1)"
    command.add_argument("--label", metavar="NAME", help=label)
    add_model_use(command)


def explain(command: argparse.ArgumentParser) -> None:
    """Draw the two attention maps of a pair: how much each word of the premise attends to each word of the hypothesis,
    and vice versa."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("--premise", type=text, metavar="TEXT", required=True)
    command.add_argument("--hypothesis", type=text, metavar="TEXT", required=True)
    forms = "an image (.png), a web page (.html) or the numbers (.json)"
    command.add_argument("-o", "--output", metavar="FILE", required=True, help=forms)
    add_loading(command)


def convert(command: argparse.ArgumentParser) -> None:
    """Convert a network trained with the course notebook, coetaur0/ESIM or AllenNLP into a model directory. Nothing
    in the checkpoint is executed."""
    sources = "a state dict or checkpoint from torch.save or safetensors, or AllenNLP's folder or .tar.gz"
    command.add_argument("source", metavar="SOURCE", help=sources)
    command.add_argument("output", metavar="MODEL_DIR", help="the model directory to write")
    words = (
        "words in the order of their ids, one per line, or .json: a list, or ids by word (default: sentences are "
        "written as word ids)"
    )
    command.add_argument("--vocabulary", metavar="FILE", help=words)
    command.add_argument(
        "--labels", type=_labels, metavar="A,B,…", help="names of the outputs, in order (default: their numbers)"
    )
    command.add_argument(
        "--from",
        dest="source_of",
        choices=(*NAMING_SCHEMES, "esim_fast"),
        help="whose equations the network follows (default: those of the implementation whose names the weights have); "
        "esim_fast: this library's network, whose names are the notebook's",
    )
    tokenizers = "how to split sentences (default: nltk; for coetaur0's models, coetaur0 or nltk-cased)"
    command.add_argument("--tokenizer", type=tokenizer, metavar="NAME", help=tokenizers)


def export(command: argparse.ArgumentParser) -> None:
    """Export a model to ONNX, with a JSON file of its vocabulary, labels and tokenizer. Both are written only if ONNX
    Runtime gives the same logits (docs/export.md)."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("output", metavar="FILE", help="a name that ends in .onnx; the JSON file is FILE.json")
    command.add_argument("--int8", action="store_true", help="quantize the model: smaller and faster, but less exact")
    words = "the model takes words and looks up their ids itself (default: it takes ids)"
    command.add_argument("--words", action="store_true", help=words)


def data(command: argparse.ArgumentParser) -> None:
    """Describe files of pairs: rows, labels, lengths and vocabulary, and for every file after the first, how much of it
    the first one covers. Rows of pairs or vectors that cannot be read are listed on stderr. The exit code is 1 if there
    are any, 2 if a whole file cannot be read."""
    command.add_argument("files", nargs="+", metavar="FILE", help=FILES)
    add_task(command)
    add_reading(command)
    add_label_map(command)
    add_tokenizer(command)
    command.add_argument("--vectors", metavar="FILE", help="also report how many words have a vector in this file")
    add_cache(command)


_DASHES = ("-", "–", "—")  # text that was pasted may have long dashes

_COMMANDS: dict[Callable[[argparse.ArgumentParser], None], str] = {
    train: "train a model",
    evaluate: "score a model on labeled pairs",
    predict: "label pairs",
    rank: "find the candidates that best match a query",
    explain: "show which words attend to which",
    convert: "convert a checkpoint of the course notebook, coetaur0/ESIM or AllenNLP",
    export: "export a model to ONNX",
    data: "describe files of pairs",
}


def _hints(
    unknown: Sequence[str], command: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]
) -> list[str]:
    """Suggest what was meant by unknown options: options of other commands, or similar ones of this command.

    An option is also found by the name of what it sets, such as --learning-rate for --lr.
    """
    known = {
        name.lstrip("-").replace("_", "-"): action.option_strings[-1]
        for action in command._actions
        for name in (action.dest, *action.option_strings)
        if action.option_strings
    }
    hints, meant = [], []
    for argument in filter(lambda argument: argument.startswith(_DASHES), unknown):
        option = argument.partition("=")[0]
        if others := [name for name, parser in parsers.items() if option in parser._option_string_actions]:
            hints.append(f"{option} is an option of {', '.join(others)}")
        elif near := get_close_matches(option.lstrip("-").replace("_", "-").lower(), known, 1, 0.65):
            meant.append(known[near[0]])
    return [*hints, f"did you mean {', '.join(meant)}?"] if meant else hints


def _labels(text: str) -> list[str]:
    labels = [label.strip() for label in text.split(",")]
    if not all(labels) or len(set(labels)) < len(labels):
        raise argparse.ArgumentTypeError(f"expected distinct labels separated by commas, got {text!r}")
    return labels

"""What the program and each command ask for. Nothing that is imported here imports torch, which takes seconds: whoever
asks for help or mistypes does not wait for it."""

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
    """What the command line says; ``command`` is the module here whose ``run`` does it."""
    parser = Parser(prog="esim-fast", description="ESIM for sentence pairs.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('esim_fast')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add, summary in _COMMANDS.items():
        command = commands.add_parser(add.__name__, help=summary, description=add.__doc__)
        command.set_defaults(command=add.__name__, parser=command)
        add(command)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse itself would point to the help of the whole program
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
    """Trains a model; the best one on dev (by accuracy, or --best-by) is kept in the output directory."""
    command.add_argument(
        "--train", nargs="+", metavar="FILE", help=f"training pairs: {FILES}; default: the bundled sample"
    )
    command.add_argument("--dev", metavar="FILE", help="pairs that choose the best epoch")
    command.add_argument("--test", metavar="FILE", help="pairs to score the best model on, once, at the end")
    command.add_argument(
        "--data", metavar="DIR", help="a folder with train, dev and perhaps test files, such as snli_1.0; or hub:NAME"
    )
    add_task(command)
    add_reading(command)
    add_label_map(command)
    add_skipping(command)
    add_tokenizer(command)
    vectors = "word vectors: text of GloVe, word2vec or fastText, or .bin, each also .gz, .bz2, .xz or .zip; or .npz"
    command.add_argument("--vectors", metavar="FILE", help=vectors)
    extending = (
        "words of these files, pairs or plain text (of the dev and test files, if none is named), join the "
        "vocabulary if they have a vector; no labels are read for that"
    )
    command.add_argument("--extend-vocabulary", nargs="*", metavar="FILE", help=extending)
    add_cache(command)
    command.add_argument("--output", metavar="DIR", default="esim-fast-model", help="default: %(default)s")
    command.add_argument("--resume", action="store_true", help="go on where a run with the same options stopped")
    number = partial(command.add_argument, type=count, metavar="N")
    number("--checkpoint-steps", default=1000, help="steps between checkpoints within an epoch; default: %(default)s")
    number("--seeds", help="train N models, with seeds from --seed on, in DIR/seed-…")
    scaling = "choose a temperature on dev, so that probabilities say how often the best model is right"
    command.add_argument("--calibrate", action="store_true", help=scaling)
    cutting = "of two labels, give the positive one (entailment, 1 or the second) from the probability X on, or from "
    cutting += "that with the best F1 or accuracy on dev"
    command.add_argument("--threshold", type=threshold, metavar="f1|accuracy|X", help=cutting)
    number("--limit", help="for a trial: read the first N pairs of each file, and no more")
    places = "also write the curves to csv, tensorboard or wandb, or several: csv,tensorboard"
    command.add_argument("--log", type=logs, action="extend", default=[], metavar="NAME,…", help=places)
    values = "options from a .json or .yaml file, such as the config.json of a run; those given here come first"
    command.add_argument("--config", metavar="FILE", help=values)
    add_device(command)
    add_recipe(command)


def evaluate(command: argparse.ArgumentParser) -> None:
    """Accuracy, F1, calibration, figures of each class and the confusion matrix, or a regression model's correlations,
    as one JSON object (docs/evaluation.md)."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("file", metavar="FILE", help=FILES)
    ranking = (
        "also MAP, MRR and recall@k: the pairs of each premise are a query's candidates, and those whose label is "
        "entailment or 1 (whose score is above 0) the relevant ones"
    )
    command.add_argument("--ranking", action="store_true", help=ranking)
    wrong = "write the wrong pairs, the most confident answers first: a page for a browser (.html), or .jsonl"
    command.add_argument("--errors", metavar="FILE", help=wrong)
    command.add_argument("--confusion", metavar="FILE", help="draw the confusion matrix (.png)")
    add_reading(command)
    add_label_map(command)
    add_skipping(command)
    add_model_use(command)
    add_cache(command)


def predict(command: argparse.ArgumentParser) -> None:
    """Labels and probabilities as JSON lines, for one pair or a file of them, in its order. A row that cannot be read
    is reported on stderr and left out; each answer says which line it is of."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument(
        "file", nargs="?", metavar="FILE", help="pairs, with or without labels; - reads stdin: tab-separated, or .jsonl"
    )
    command.add_argument("--premise", type=text, metavar="TEXT")
    command.add_argument("--hypothesis", type=text, metavar="TEXT")
    command.add_argument(
        "--stop-at-bad-row", action="store_true", help="end there, instead of reporting the row and going on"
    )
    add_reading(command)
    add_model_use(command)


def rank(command: argparse.ArgumentParser) -> None:
    """The candidates that go best with a query, the best one first, as JSON lines. The query is the premise, each
    candidate a hypothesis."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("--query", type=text, metavar="TEXT")
    sentences = "a sentence a line, also compressed (.gz, .bz2, .xz, .zip); - reads stdin"
    command.add_argument("--queries", metavar="FILE", help=f"many of them: {sentences}")
    command.add_argument("--candidates", metavar="FILE", required=True, help=sentences)
    how_many = "candidates of each query, 0 for all; default: %(default)s"
    command.add_argument("--top-k", type=steps, default=10, metavar="N", help=how_many)
    label = "the label by whose probability they are ranked; default: entailment, else 1"
    command.add_argument("--label", metavar="NAME", help=label)
    add_model_use(command)


def explain(command: argparse.ArgumentParser) -> None:
    """Draws the two attention maps of a pair: how much each word of the premise looks at each of the hypothesis, and
    the other way round."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("--premise", type=text, metavar="TEXT", required=True)
    command.add_argument("--hypothesis", type=text, metavar="TEXT", required=True)
    forms = "a picture (.png), a page for a browser (.html) or the numbers (.json)"
    command.add_argument("-o", "--output", metavar="FILE", required=True, help=forms)
    add_loading(command)


def convert(command: argparse.ArgumentParser) -> None:
    """Makes a model directory of a trained network of the notebook, of coetaur0/ESIM or of AllenNLP. Nothing in the
    checkpoint is executed."""
    sources = "a state dict or checkpoint of torch.save or safetensors, or a folder or .tar.gz of AllenNLP's"
    command.add_argument("source", metavar="SOURCE", help=sources)
    command.add_argument("output", metavar="MODEL_DIR")
    words = "words in the order of their ids, one a line, or as .json: a list, or ids by word; default: ids are words"
    command.add_argument("--vocabulary", metavar="FILE", help=words)
    command.add_argument(
        "--labels", type=_labels, metavar="A,B,…", help="names of the outputs, in their order; default: their numbers"
    )
    command.add_argument(
        "--from",
        dest="source_of",
        choices=(*NAMING_SCHEMES, "esim_fast"),
        help="whose mathematics it is; default: that of those whose names the entries have. esim_fast: our own "
        "network, whose names are the notebook's",
    )
    tokenizers = "how sentences are split; default: nltk, for coetaur0's coetaur0 or nltk-cased"
    command.add_argument("--tokenizer", type=tokenizer, metavar="NAME", help=tokenizers)


def export(command: argparse.ArgumentParser) -> None:
    """Writes a model for ONNX Runtime, and beside it a JSON file with its vocabulary, labels and tokenizer, once ONNX
    Runtime has given the same logits. See docs/export.md."""
    command.add_argument("model", metavar="MODEL_DIR", help=MODEL)
    command.add_argument("output", metavar="FILE", help="a name that ends in .onnx; the other file's is FILE.json")
    command.add_argument("--int8", action="store_true", help="quantized: smaller and faster, and less exact")
    words = "it takes words, and looks them up itself; default: ids of words"
    command.add_argument("--words", action="store_true", help=words)


def data(command: argparse.ArgumentParser) -> None:
    """Rows, labels, lengths and vocabulary of each file, of later ones also how much of it the first one knows. Rows
    that cannot be read, also of the vectors, are listed on stderr; the exit code is 1 if there are any, 2 if a whole
    file cannot be read."""
    command.add_argument("files", nargs="+", metavar="FILE", help=FILES)
    add_task(command)
    add_reading(command)
    add_label_map(command)
    add_tokenizer(command)
    command.add_argument("--vectors", metavar="FILE", help="also say how many words have a vector here")
    add_cache(command)


_DASHES = ("-", "–", "—")  # text that is copied may have long ones

_COMMANDS: dict[Callable[[argparse.ArgumentParser], None], str] = {
    train: "train a model",
    evaluate: "score a model on labeled pairs",
    predict: "label pairs",
    rank: "find the candidates that go best with a query",
    explain: "show which words look at which",
    convert: "make a model of a checkpoint of the notebook, coetaur0/ESIM or AllenNLP",
    export: "write a model for ONNX Runtime",
    data: "say what files of pairs hold",
}


def _hints(
    unknown: Sequence[str], command: argparse.ArgumentParser, parsers: Mapping[str, argparse.ArgumentParser]
) -> list[str]:
    """What was meant by options that a command does not have: another command's, or those of its own that look alike.

    An option also goes by the name of what it sets, such as --learning-rate for --lr.
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
    """An argparse type."""
    labels = [label.strip() for label in text.split(",")]
    if not all(labels) or len(set(labels)) < len(labels):
        raise argparse.ArgumentTypeError(f"expected distinct labels with commas between, got {text!r}")
    return labels

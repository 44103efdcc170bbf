"""``esim-fast explain``: which words of a pair look at which."""

import argparse
import warnings
from typing import Any

from ..errors import DataError
from ..explanation import check_form
from . import options as common


def add(commands: Any) -> None:
    command = common.add_command(commands, explain, "show which words look at which")
    command.add_argument("model", metavar="MODEL_DIR")
    command.add_argument("--premise", type=common.text, metavar="TEXT", required=True)
    command.add_argument("--hypothesis", type=common.text, metavar="TEXT", required=True)
    forms = "a picture (.png), a page for a browser (.html) or the numbers (.json)"
    command.add_argument("-o", "--output", metavar="FILE", required=True, help=forms)
    common.add_loading(command)


def explain(options: argparse.Namespace) -> None:
    """Draws the two attention maps of a pair: how much each word of the premise looks at each of the hypothesis, and
    the other way round."""
    try:
        check_form(options.output)
        explanation = common.load_model(options).explain(options.premise, options.hypothesis)
    except DataError:
        raise
    except ValueError as error:
        raise common.UsageError(str(error)) from error
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            explanation.save(options.output)
    except ImportError as error:
        raise common.UsageError(
            f"{options.output}: a picture needs matplotlib (pip install matplotlib), a page or numbers do not"
        ) from error
    for warning in caught:
        common.say(f"esim-fast: {options.output}: {warning.message}")
    common.say(f"{options.output}: {explanation.label} ({explanation.probabilities[explanation.label]:.1%})")

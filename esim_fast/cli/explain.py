"""``esim-fast explain``: draw the attention maps of a pair."""

import argparse
import warnings

from ..errors import DataError
from ..explanation import check_form
from . import common
from .options import UsageError, say


def run(options: argparse.Namespace) -> None:
    try:
        check_form(options.output)
        explanation = common.load_model(options).explain(options.premise, options.hypothesis)
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            explanation.save(options.output)
    except ImportError as error:
        raise UsageError(
            f'{options.output}: .png needs matplotlib (pip install "esim_fast[plot]"); .html and .json do not'
        ) from error
    for warning in caught:
        say(f"esim-fast: {options.output}: {warning.message}")
    probability = explanation.probabilities.get(explanation.label)  # None for a regression model
    say(f"{options.output}: {explanation.label}" + ("" if probability is None else f" ({probability:.1%})"))

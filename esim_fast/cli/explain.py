"""``esim-fast explain``: which words of a pair look at which."""

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
            f"{options.output}: a picture needs matplotlib (pip install matplotlib), a page or numbers do not"
        ) from error
    for warning in caught:
        say(f"esim-fast: {options.output}: {warning.message}")
    probability = explanation.probabilities.get(explanation.label)  # a regression model has none
    say(f"{options.output}: {explanation.label}" + ("" if probability is None else f" ({probability:.1%})"))

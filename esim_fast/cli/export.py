"""``esim-fast export``: export a model to ONNX."""

import argparse

from ..classifier import Classifier
from ..errors import DataError, OwnTokenizerError
from ..export import to_onnx
from .options import UsageError, say


def run(options: argparse.Namespace) -> None:
    try:
        model = Classifier.from_pretrained(options.model, device="cpu")
        done = to_onnx(model, options.output, int8=options.int8, words=options.words)
    except OwnTokenizerError as error:
        raise DataError(
            f"{options.model}: a custom tokenizer cannot be exported. In Python, "
            "esim_fast.export.to_onnx(model.net, FILE) exports the network alone, which takes ids"
        ) from error
    except DataError:
        raise
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    size = f"{done.size / 1e6:,.1f} MB" if done.size >= 1e6 else f"{done.size / 1e3:,.0f} kB"
    say(
        f"{done.path}: {size}, logits within {done.difference:.1e} of the network's; "
        f"see {done.description} for how to use it"
    )

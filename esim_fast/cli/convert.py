"""``esim-fast convert``: somebody's checkpoint into a model directory."""

import argparse
from pathlib import Path
from typing import Any

from ..compat import checkpoints
from ..data import DataError
from ..state_dicts import LAYOUTS, recognised
from . import options as common


def add(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="make a model of a checkpoint of the notebook, coetaur0/ESIM or AllenNLP",
        description=convert.__doc__,
    )
    command.set_defaults(run=convert, parser=command)
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="a state dict or checkpoint of torch.save or safetensors, or a folder of AllenNLP's",
    )
    command.add_argument("output", metavar="MODEL_DIR")
    command.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="words in the order of their ids, one a line, or as .json: a list, or ids by word; default: ids are words",
    )
    command.add_argument(
        "--labels", metavar="A,B,…", help="names of the outputs, in their order; default: their numbers"
    )
    command.add_argument(
        "--from",
        dest="source_of",
        choices=(*LAYOUTS, "esim_fast"),
        help="whose mathematics it is; default: that of those whose names the entries have. esim_fast: our own "
        "network, whose names are the notebook's",
    )
    command.add_argument(
        "--tokeniser", type=common.tokeniser, metavar="NAME", help="how sentences are split; default: as theirs"
    )


def convert(options: argparse.Namespace) -> None:
    """Makes a model directory of a trained network of the notebook, of coetaur0/ESIM or of AllenNLP. Nothing in the
    checkpoint is executed."""
    source = Path(options.source)
    weights, vocabulary = source, options.vocabulary
    labels = options.labels.split(",") if options.labels else None
    if source.is_dir():  # what AllenNLP leaves of a training run, and its archives when they are unpacked
        weights = next((source / name for name in ("best.th", "weights.th") if (source / name).is_file()), source)
        if weights == source:
            raise DataError(f"{source}: expected a folder of AllenNLP's, with best.th or weights.th")
        vocabulary = vocabulary or source / "vocabulary" / "tokens.txt"
        labels = labels or checkpoints.read_words(source / "vocabulary" / "labels.txt")
    state_dict = checkpoints.read_state_dict(weights)
    words = None if vocabulary is None else checkpoints.read_words(vocabulary)
    try:
        model = checkpoints.convert(state_dict, words, labels, source=options.source_of, tokeniser=options.tokeniser)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{weights}: {error}") from error
    model.save_pretrained(options.output)
    sizes = model.net.config
    names = LAYOUTS[recognised(state_dict) or "notebook"].source
    common.say(
        f"{options.output}: {sizes['vocab_size']:,} words of {sizes['embedding_dim']} numbers, hidden size "
        f"{sizes['hidden_size']}, {sizes['num_labels']} labels, tokeniser {model.tokeniser}, from the names of {names}"
    )
    if words is None:
        common.say("without --vocabulary, sentences are word ids with blanks between them")
    if recognised(state_dict) == "notebook" and options.source_of is None:
        common.say(
            "taken for the notebook's mathematics (--from esim_fast: our own network). Its LSTMs ran across the batch: "
            "weights that were trained so have to be trained on, along the sentence, before they are of use"
        )

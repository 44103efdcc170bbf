"""``esim-fast convert``: somebody's checkpoint into a model directory."""

import argparse
from pathlib import Path

from ..classifier import CONFIG, LABELS, VOCABULARY, WEIGHTS
from ..compat import checkpoints
from ..errors import DataError
from ..files import check_kind
from ..state_dicts import NAMING_SCHEMES, recognized
from .options import say


def run(options: argparse.Namespace) -> None:
    source, output = Path(options.source), Path(options.output)
    if any((output / name).exists() for name in (CONFIG, LABELS, VOCABULARY, WEIGHTS)):
        raise DataError(f"{output}: already holds a model: choose another directory, or delete this one")
    weights, vocabulary, labels = source, options.vocabulary, options.labels
    if source.is_dir():  # what AllenNLP leaves of a training run, and its archives when they are unpacked
        found = [source / name for name in ("best.th", "weights.th") if (source / name).is_file()]
        if not found:
            what = "is a model already" if (source / CONFIG).exists() else "has neither best.th nor weights.th"
            raise DataError(f"{source}: expected a file, or a folder of AllenNLP's; this one {what}")
        weights = found[0]
        for name in ("tokens.txt", "labels.txt"):
            check_kind(source / "vocabulary" / name)
        vocabulary = vocabulary or source / "vocabulary" / "tokens.txt"
        labels = labels or checkpoints.read_words(source / "vocabulary" / "labels.txt")
    state_dict = checkpoints.read_state_dict(weights)
    words = None if vocabulary is None else checkpoints.read_words(vocabulary)
    try:
        model = checkpoints.convert(state_dict, words, labels, source=options.source_of, tokenizer=options.tokenizer)
    except DataError:
        raise
    except ValueError as error:
        files = weights if vocabulary is None else f"{weights} with {vocabulary}"
        raise DataError(f"{files}: {error}") from error
    model.save_pretrained(options.output)
    sizes = model.net.config
    named = recognized(state_dict) or "notebook"
    say(
        f"{options.output}: {sizes.vocab_size:,} words of {sizes.embedding_dim} numbers, hidden size "
        f"{sizes.hidden_size}, {sizes.num_labels} labels, tokenizer {model.tokenizer}, "
        f"from the names of {NAMING_SCHEMES[named].source}"
    )
    if words is None:
        say("without --vocabulary, sentences are word ids with blanks between them")
    if named == "notebook" and options.source_of is None:
        say(
            "taken for the notebook's mathematics (--from esim_fast: our own network). Its LSTMs ran across the batch: "
            "weights that were trained so have to be trained on, along the sentence, before they are of use"
        )

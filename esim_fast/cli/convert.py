"""``esim-fast convert``: somebody's checkpoint into a model directory."""

import argparse
from pathlib import Path

from ..compat import archives, checkpoints
from ..errors import DataError
from ..files import check_kind
from ..pretrained import CONFIG, MODEL_FILES
from ..state_dicts import NAMING_SCHEMES, recognized
from .options import say


def run(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if any((output / name).exists() for name in MODEL_FILES):
        raise DataError(f"{output}: already holds a model: choose another directory, or delete this one")
    notes: list[str] = []  # for the case that it succeeds
    with archives.as_folder(Path(options.source)) as source:
        weights, vocabulary, labels = _parts(source, options)
        state_dict = checkpoints.read_state_dict(weights, notes.append)
        words = None if vocabulary is None else checkpoints.read_words(vocabulary)
        how = {"source": options.source_of, "tokenizer": options.tokenizer}
        try:
            model = checkpoints.convert(state_dict, words, labels, **how)
        except DataError:
            raise
        except ValueError as error:
            files = weights if vocabulary is None else f"{weights} with {vocabulary}"
            raise DataError(f"{files}: {error}") from error
    model.save_pretrained(output)
    for note in notes:
        say(f"{options.source}: {note}")
    sizes = model.net.config
    named = recognized(state_dict) or "notebook"
    say(
        f"{output}: {sizes.vocab_size:,} words of {sizes.embedding_dim} numbers, hidden size "
        f"{sizes.hidden_size}, {sizes.num_labels} labels, tokenizer {model.tokenizer}, "
        f"from the names of {NAMING_SCHEMES[named].source}"
    )
    if words is None:
        say("without --vocabulary, sentences are word ids with blanks between them")
    if named == "notebook" and options.source_of is None:
        say(
            "taken for the notebook's mathematics (--from esim_fast: our own network). Its LSTMs ran across the batch: "
            "such weights must be trained further, along the sentence, before they are useful"
        )


def _parts(source: Path, options: argparse.Namespace) -> tuple[Path, Path | None, list[str] | None]:
    """Where the weights and the words are, and the labels, if they are known."""
    vocabulary, labels = options.vocabulary and Path(options.vocabulary), options.labels
    if not source.is_dir():
        return source, vocabulary, labels
    # What AllenNLP leaves of a training run.
    found = [source / name for name in archives.WEIGHTS if (source / name).is_file()]
    if not found:
        what = "is a model already" if (source / CONFIG).exists() else "has neither best.th nor weights.th"
        raise DataError(f"{source}: expected a file, or a folder of AllenNLP's; this one {what}")
    for name in (archives.TOKENS, archives.LABELS):
        check_kind(source / name)
    labels = labels or checkpoints.read_words(source / archives.LABELS)
    return found[0], vocabulary or source / archives.TOKENS, labels

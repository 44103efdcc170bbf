"""``esim-fast convert``: turn a checkpoint from elsewhere into a model directory."""

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
        raise DataError(f"{output}: already holds a model; choose another directory, or delete this one")
    notes: list[str] = []  # printed only on success
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
        f"parameter names from {NAMING_SCHEMES[named].source}"
    )
    if words is None:
        say("without --vocabulary, write sentences as word ids separated by spaces")
    if named == "notebook" and options.source_of is None:
        say(
            "assuming the notebook's equations (for this library's network, use --from esim_fast); the notebook's "
            "LSTMs ran across the batch, so train these weights further, along the sentence, before you use them"
        )


def _parts(source: Path, options: argparse.Namespace) -> tuple[Path, Path | None, list[str] | None]:
    """Return the files of weights and words, and the labels, if they are known."""
    vocabulary, labels = options.vocabulary and Path(options.vocabulary), options.labels
    if not source.is_dir():
        return source, vocabulary, labels
    # The files that AllenNLP leaves after training.
    found = [source / name for name in archives.WEIGHTS if (source / name).is_file()]
    if not found:
        what = "is a model already" if (source / CONFIG).exists() else "has neither best.th nor weights.th"
        raise DataError(f"{source}: expected a file or an AllenNLP folder; this one {what}")
    for name in (archives.TOKENS, archives.LABELS):
        check_kind(source / name)
    labels = labels or checkpoints.read_words(source / archives.LABELS)
    return found[0], vocabulary or source / archives.TOKENS, labels

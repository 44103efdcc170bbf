"""Find, read and check a model in a directory or on the Hugging Face Hub. Nothing in it is executed."""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .config import ESIMConfig
from .data import Tokenizer, Vocabulary
from .errors import DataError, OwnTokenizerError, first_line, naming
from .files import check_entries, load_safetensors, parse_json
from .hub_models import fetch, is_hub_name
from .model import ESIM

CONFIG, LABELS, VOCABULARY, WEIGHTS = MODEL_FILES = "config.json", "labels.json", "vocabulary.txt", "model.safetensors"
Json = TypeVar("Json", dict, list)


class Parts(NamedTuple):
    """The arguments of ``esim_fast.Classifier`` with the same names."""

    net: ESIM  # on the CPU
    vocabulary: Vocabulary
    labels: list[str]
    tokenizer: str | Tokenizer
    training: dict[str, Any] | None
    temperature: float
    threshold: float | None


def directory_of(name: str, revision: str | None, token: str | bool | None) -> Path:
    """Return a model's directory, downloading it from the Hub if there is no such directory here.

    Raises:
        ValueError: ``revision`` is given for a local directory.
        DataError: there is no such model, or the Hub cannot be reached.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision} needs a model on the Hub, but {name} is a local directory")
        return Path(name)
    if not is_hub_name(name):
        raise DataError(f"{name}: no such model directory")
    return fetch(name, MODEL_FILES, revision, token)


def read_model(
    directory: Path, backend: str | None, bilstm_backend: str | None, tokenizer: str | Tokenizer | None
) -> Parts:
    """Read what ``esim_fast.Classifier.save_pretrained`` wrote.

    Args:
        directory: the model's directory.
        backend, bilstm_backend: as for ``esim_fast.ESIM``.
        tokenizer: the custom tokenizer of the model, or its name, if it has one.

    Raises:
        DataError: a file is missing, malformed, or does not fit the others; the message names it.
    """
    for name in MODEL_FILES:
        if not (directory / name).is_file():
            raise DataError(f"{directory}: not a model directory, {name} is missing")
    config = _read_json(directory / CONFIG, dict)
    labels = _read_json(directory / LABELS, list)
    if not all(isinstance(label, str) for label in labels):
        raise DataError(f"{directory / LABELS}: expected a list of strings")
    vocabulary = Vocabulary.load(directory / VOCABULARY)
    if config.pop("model", None) != "ESIM":
        raise DataError(f"{directory / CONFIG}: expected the configuration of an ESIM")
    tokenizer = _agreed_tokenizer(directory / CONFIG, config.pop("tokenizer", "nltk"), tokenizer)
    training = config.pop("training", None)
    temperature, threshold = config.pop("temperature", 1.0), config.pop("threshold", None)
    for name in sorted(config.keys() ^ {field.name for field in fields(ESIMConfig)}):
        raise DataError(f"{directory / CONFIG}: {name} is {'unknown' if name in config else 'missing'}")
    for name, key, part in ((VOCABULARY, "vocab_size", vocabulary), (LABELS, "num_labels", labels)):
        if config[key] != len(part):
            raise DataError(f"{directory / name}: {len(part)} entries, but {key} is {config[key]} in {CONFIG}")
    try:
        # Sizes in the file must not allocate memory before they are checked against the weights.
        with torch.device("meta"):
            net = ESIM(**config, backend=backend, bilstm_backend=bilstm_backend)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(f"{directory / CONFIG}: {first_line(error)}") from error
    _load_weights(net, directory / WEIGHTS)
    return Parts(net, vocabulary, labels, tokenizer, training, temperature, threshold)


def _agreed_tokenizer(path: Path, trained_with: Any, given: str | Tokenizer | None) -> str | Tokenizer:
    """Choose the tokenizer. A name in a file never causes an import unless the caller has given it, too."""
    if not isinstance(trained_with, str):
        raise DataError(f"{path}: expected a tokenizer's name, got {trained_with!r}")
    if isinstance(given, str) and given != trained_with:
        raise DataError(f"{path}: the model was trained with the tokenizer {trained_with}, not {given}")
    if given is None and ":" in trained_with:
        raise OwnTokenizerError(
            f"{path}: the model was trained with a custom tokenizer, which is imported only if you name it: "
            f"--tokenizer {shlex.quote(trained_with)}, or tokenizer={trained_with!r} in Python"
        )
    return trained_with if given is None else given


def _read_json(path: Path, expected: type[Json]) -> Json:
    with naming(path):
        try:
            value = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, expected):
        raise DataError(f"{path}: expected a JSON {'object' if expected is dict else 'array'}")
    return value


def _load_weights(net: ESIM, path: Path) -> None:
    weights = load_safetensors(path)
    try:
        check_entries(weights, net.state_dict())
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    first = next(iter(weights.values())).dtype
    for name, tensor in weights.items():
        if tensor.dtype != first:
            raise DataError(f"{path}: expected tensors of one dtype, got {first} and {tensor.dtype} ({name})")
    net.load_state_dict(weights, assign=True)

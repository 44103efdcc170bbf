"""A model in a directory, or on the Hugging Face hub: found, read and checked; nothing in it is executed."""

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
    """What a :class:`esim_fast.Classifier` is made of: its arguments of the same names."""

    net: ESIM  # on the CPU
    vocabulary: Vocabulary
    labels: list[str]
    tokenizer: str | Tokenizer
    training: dict[str, Any] | None
    temperature: float
    threshold: float | None


def directory_of(name: str, revision: str | None, token: str | bool | None) -> Path:
    """The directory of a model; one of the hub is fetched.

    Raises:
        ValueError: a revision is asked of a directory that is here.
        DataError: there is no such model, or the hub cannot be reached.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision}: {name} is a directory here, and no model of the hub")
        return Path(name)
    if not is_hub_name(name):
        raise DataError(f"{name}: no such model directory")
    return fetch(name, MODEL_FILES, revision, token)


def read_model(directory: Path, backend: str | None, tokenizer: str | Tokenizer | None) -> Parts:
    """What :meth:`esim_fast.Classifier.save_pretrained` wrote.

    Args:
        backend: as for :class:`esim_fast.ESIM`.
        tokenizer: the function, or its name, of a model that was trained with one of the user's.

    Raises:
        DataError: a part is missing, malformed, or does not fit the others; the message names the file.
    """
    for name in MODEL_FILES:
        if not (directory / name).is_file():
            raise DataError(f"{directory}: no model, {name} is missing")
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
        # Sizes must not take memory before they are known to be those of the weights.
        with torch.device("meta"):
            net = ESIM(**config, backend=backend)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(f"{directory / CONFIG}: {first_line(error)}") from error
    _load_weights(net, directory / WEIGHTS)
    return Parts(net, vocabulary, labels, tokenizer, training, temperature, threshold)


def _agreed_tokenizer(path: Path, trained_with: Any, given: str | Tokenizer | None) -> str | Tokenizer:
    """What to tokenize with; a name in a file alone makes nothing be imported."""
    if not isinstance(trained_with, str):
        raise DataError(f"{path}: expected a tokenizer's name, got {trained_with!r}")
    if isinstance(given, str) and given != trained_with:
        raise DataError(f"{path}: the model was trained with the tokenizer {trained_with}, not {given}")
    if given is None and ":" in trained_with:
        raise OwnTokenizerError(
            f"{path}: the model was trained with a tokenizer of somebody's own, {trained_with}: "
            "give it as tokenizer= or --tokenizer to have it imported and run"
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
            raise DataError(f"{path}: expected tensors of one dtype, got {first} and, {name}, {tensor.dtype}")
    net.load_state_dict(weights, assign=True)

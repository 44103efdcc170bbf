"""``--config``: options from a YAML or JSON file, or from the ``config.json`` of a run."""

import argparse
import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from ..errors import listed, reason_of
from .options import UsageError
from .recipe import preset_fields

_NOT_IN_FILES = ("help", "config")
# Options on the command line also replace options in the file that they exclude.
_EXCLUDE_EACH_OTHER = (
    ({"data"}, {"train", "dev", "test"}),
    ({"batch_size"}, {"max_tokens"}),
    ({"cache"}, {"no_cache"}),
    ({"vectors", "extend_vocabulary"}, {"embedding_dim"}),
)
_OF_NETWORK = ("hidden_size", "embedding_dim", "dropout", "embedding_dropout", "freeze_embedding", "tokenizer")


def set_defaults(command: argparse.ArgumentParser, path: str, given: argparse.Namespace, names: Iterable[str]) -> None:
    """Set the defaults of a command's options from a file.

    Args:
        command: the command's parser.
        path: the file.
        given: the parsed command line.
        names: the options on the command line, by their ``dest``.

    Raises:
        UsageError: the file cannot be read, names an unknown option, or has an invalid value.
    """
    actions = {
        _plain(name): action
        for action in command._actions
        if action.option_strings and action.dest not in _NOT_IN_FILES
        for name in (action.dest, *action.option_strings)
    }
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}  # the file's keys by the options' dest
    for key, value in _read(path, has_files=bool({"train", "data"} & set(names))).items():
        action = actions.get(_plain(key))
        if action is None:
            near = get_close_matches(_plain(key), actions, 1, 0.65)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{path}: {key}: not an option of train{hint}")
        if action.dest in keys:
            raise UsageError(f"{path}: {keys[action.dest]} and {key} are the same option")
        keys[action.dest] = key
        if value is None and action.dest == "patience":
            value = 0
        if value is not None:
            try:
                values[action.dest] = _value_of(action, value)
            except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
                raise UsageError(f"{path}: {key}: {error}") from error
    replaced = set(names)
    if "preset" in replaced:
        replaced |= preset_fields(given.preset)
    for one, other in _EXCLUDE_EACH_OTHER:
        first, second = (
            next((keys[name] for name in keys if name in side & set(values)), None) for side in (one, other)
        )
        if first and second:
            raise UsageError(f"{path}: {first} and {second} exclude each other")
        for side, others in ((one, other), (other, one)):
            if side & set(names):
                replaced |= others
    command.set_defaults(**{name: value for name, value in values.items() if name not in replaced})


def given_options(command: argparse.ArgumentParser, arguments: Sequence[str]) -> set[str]:
    """Return the options on a command line, by their ``dest``."""
    known = command._option_string_actions
    options = (argument.partition("=")[0] for argument in arguments)
    return {known[option].dest for option in options if option in known}


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _value_of(action: argparse.Action, value: Any) -> Any:
    """Convert a value as the command line would; raise ArgumentTypeError, TypeError or ValueError if it is invalid."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise TypeError(f"expected true or false, got {value!r}")
        return value
    if action.nargs in ("+", "*"):
        if value is True and action.nargs == "*":  # the option without arguments
            return []
        texts = [_text(part) for part in value] if isinstance(value, list) else [_text(value)]
        if not texts and action.nargs == "+":
            raise ValueError("expected one value or more, got none")
        return texts
    separated = "," in str(action.metavar)
    if separated and isinstance(value, dict):
        value = [f"{_text(name)}={_text(new)}" for name, new in value.items()]
    if separated and isinstance(value, list):
        parts = list(map(_text, value))
        if any("," in part for part in parts):
            raise ValueError(f"expected values without commas, got {listed(parts)}")
        value = ",".join(parts)
    text = _text(value)
    found = text if action.type is None else action.type(text)  # type: ignore[operator]  # never a registered name
    if action.choices is not None and found not in action.choices:
        raise ValueError(f"expected one of {', '.join(action.choices)}, got {text!r}")
    return found


def _text(value: Any) -> str:
    """Return a plain value as it would be written on a command line."""
    if isinstance(value, bool):
        raise TypeError(f"expected text or a number, got {str(value).lower()} (text needs quotes)")
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"expected text or a number, got {type(value).__name__}")
    return str(value)


def _read(path: str, has_files: bool) -> dict[str, Any]:
    """Read the options in a file, by name; ``has_files`` if the command line names the training pairs."""
    is_yaml = path.lower().endswith((".yaml", ".yml"))
    if not is_yaml and not path.lower().endswith(".json"):
        raise UsageError(f"--config {path}: expected a name that ends in .json, .yaml or .yml")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"--config {path}: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: expected text in UTF-8, got something else") from error
    found = _parse_yaml(path, text) if is_yaml else _parse_json(path, text)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"{path}: expected options with values, such as lr: 0.001")
    return _of_run(path, found, has_files) if found.get("model") == "ESIM" else found


def _parse_json(path: str, text: str) -> Any:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)} occurs twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from error


def _parse_yaml(path: str, text: str) -> Any:
    try:
        import yaml  # optional
    except ImportError as error:
        raise UsageError(f'--config {path}: needs PyYAML: pip install "esim_fast[yaml]"') from error
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        raise UsageError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    return {} if found is None else found  # None if there are only comments


def _of_run(path: str, config: dict[str, Any], has_files: bool) -> dict[str, Any]:
    """Return the options of a run from its ``config.json``."""
    training = config.get("training")
    if not isinstance(training, dict) or not isinstance(training.get("recipe"), dict):
        raise UsageError(f"{path}: expected the config.json of a model trained by esim-fast train")
    parts = [training.get(name) for name in ("files", "options")]
    values = {
        **{name: config.get(name) for name in _OF_NETWORK},
        **training["recipe"],
        "forget_bias": training.get("forget_bias"),
        **{name: value for part in parts if isinstance(part, dict) for name, value in part.items()},
    }
    if not values.get("train") and not has_files:  # the model was trained by Classifier.fit
        raise UsageError(f"{path}: names no training files; use --train and --dev")
    values.pop("unlabeled", None)  # a test file that was not used
    # A run saves both of two options that exclude each other.
    for used, unused in (("max_tokens", "batch_size"), ("vectors", "embedding_dim")):
        if values.get(used) is not None:
            values.pop(unused, None)
    return values

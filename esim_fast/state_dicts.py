"""State dicts with other projects' names: one table maps their modules to ours.

``esim_fast.ESIM`` uses the notebook's names. Names of parameters within a module are PyTorch's own and the same
everywhere.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from .config import ESIMConfig
from .errors import one_line

# Ours and the notebook's                coetaur0/ESIM             AllenNLP
_NAMES = """
embedding                                _word_embedding           _text_field_embedder.token_embedder_tokens
encoder.lstm                             _encoding._encoder        _encoder._module
infercomposition.composition.F           _projection.0             _projection_feedforward._linear_layers.0
infercomposition.composition.lstm        _composition._encoder     _inference_encoder._module
linear.mlp.1                             _classification.1         _output_feedforward._linear_layers.0
linear.mlp.3                             _classification.4         _output_logit._linear_layers.0
"""
_COLUMNS = tuple(zip(*map(str.split, _NAMES.strip().splitlines()), strict=True))


@dataclass(frozen=True)
class NamingScheme:
    """How another ESIM names its modules, and the options that reproduce its mathematics.

    Attributes:
        source: name of the project.
        modules: maps its module names to ours.
        options: options of ``esim_fast.ESIM`` for the same mathematics.
    """

    source: str
    modules: Mapping[str, str]
    options: Mapping[str, Any]

    def ours(self, name: str) -> str | None:
        """Return our name of an entry, or None if the name is not part of this scheme."""
        module, _, parameter = name.rpartition(".")
        return f"{self.modules[module]}.{parameter}" if module in self.modules else None

    def theirs(self, name: str) -> str:
        """Return this scheme's name of one of our entries; other names are returned unchanged."""
        module, _, parameter = name.rpartition(".")
        return next((f"{theirs}.{parameter}" for theirs, ours in self.modules.items() if ours == module), name)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Match this scheme's names of entries, with any prefix that a wrapper adds."""
        modules = "|".join(map(re.escape, self.modules))
        return re.compile(rf"(?P<prefix>(?:.*\.)?)(?:{modules})\.[^.]+", re.DOTALL)


def _scheme(column: int, source: str, options: dict[str, Any]) -> NamingScheme:
    return NamingScheme(source, dict(zip(_COLUMNS[column], _COLUMNS[0], strict=True)), options)


_PADDED = {"padding_idx": 0, "variational_dropout": True, "projection_activation": "relu"}
NAMING_SCHEMES = {
    "notebook": _scheme(
        0, "the notebook", {"variant": "notebook", "projection_activation": None, "classifier_activation": "relu"}
    ),
    "coetaur0": _scheme(1, "coetaur0/ESIM", {**_PADDED, "classifier_activation": "tanh"}),
    "allennlp": _scheme(2, "AllenNLP", {**_PADDED, "classifier_activation": "relu"}),
}
# Common keys of the state dict in a checkpoint, the most likely first.
STATES = ("model", "state_dict", "model_state_dict", "net", "model_state", "net_state_dict", "weights", "params")
_DEEPEST = 4  # levels of a checkpoint that are searched for state dicts
_COUNTER = "n_averaged"
_DECISIVE = ("padding_idx", "projection_activation", "classifier_activation")  # options that change inference


class Network(NamedTuple):
    """A network found among entries: its naming scheme, and the prefix that wrappers have added."""

    source: str  # a key of NAMING_SCHEMES
    prefix: str

    def ours(self, name: str) -> str | None:
        """Return our name of an entry, or None if it does not belong to this network."""
        inside = name.startswith(self.prefix)
        return NAMING_SCHEMES[self.source].ours(name.removeprefix(self.prefix)) if inside else None

    def in_their_words(self, message: str, own: str) -> str:
        """Return a message with module names of scheme ``own`` replaced by the names that the entries have."""
        theirs, modules = NAMING_SCHEMES[self.source], NAMING_SCHEMES[own].modules
        pattern = rf"(?<![\w.])({'|'.join(map(re.escape, modules))})\."
        return re.sub(pattern, lambda found: f"{self.prefix}{theirs.theirs(f'{modules[found[1]]}.')}", message)


def find_network(names: Iterable[Any], prefix: str | None = None) -> Network | None:
    """Return the network that most of these names belong to, or None.

    Args:
        names: names of entries.
        prefix: the prefix that the network's names must have; None allows any, since DataParallel, Lightning and others
            wrap networks.

    Raises:
        ValueError: two networks have the same number of entries.
    """
    counts = Counter(found for name in names for found in _networks(name) if prefix in (None, found.prefix))
    (network, most), (other, as_many) = (*counts.most_common(2), (None, 0), (None, 0))[:2]
    if network and other and most == as_many and network.prefix != other.prefix:
        begins = [json.dumps(found.prefix, ensure_ascii=False) for found in (network, other)]
        raise ValueError(
            one_line(
                f"expected the entries of one network, got two with the prefixes {' and '.join(begins)}: keep one, "
                f"{{name: entry for name, entry in state_dict.items() if name.startswith({max(begins)})}}"
            )
        )
    return network


def _networks(name: Any) -> Iterator[Network]:
    """Yield the networks that an entry of this name may belong to."""
    for source, scheme in NAMING_SCHEMES.items():
        if isinstance(name, str) and (found := scheme.pattern.fullmatch(name)):
            yield Network(source, found["prefix"])


def recognized(names: Iterable[str]) -> str | None:
    """Return the naming scheme of these names, a key of ``NAMING_SCHEMES``, or None."""
    network = find_network(names, "")
    return network and network.source


def find_state_dicts(checkpoint: Mapping[Any, Any]) -> list[tuple[str, ...]]:
    """Return the keys that lead to an ESIM's state dicts in a checkpoint, the most likely first.

    The empty path means that the checkpoint itself is a state dict.
    """
    rank = {key: number for number, key in enumerate(STATES)}
    found = [
        path
        for path, entries in _mappings_in(checkpoint)
        if any(hasattr(value, "shape") and any(_networks(name)) for name, value in entries.items())
    ]
    return sorted(found, key=lambda path: (len(path), [rank.get(key, len(rank)) for key in path]))


def _mappings_in(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield a checkpoint and the mappings in it, each once, with the keys that lead to them."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), checkpoint)]
    seen = {id(checkpoint)}
    for _ in range(_DEEPEST):
        yield from level
        outer, level = level, []
        for path, entries in outer:
            for key, value in entries.items():
                if isinstance(key, str) and isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    level.append(((*path, key), value))


def loaded(load: Callable[[], Any], state_dict: Any, own: str) -> Any:
    """Return what ``load`` returns, a module's ``load_state_dict``, with messages in the names of the state dict.

    Args:
        load: loads the state dict.
        state_dict: the state dict.
        own: the module's naming scheme, a key of ``NAMING_SCHEMES``.

    Raises:
        RuntimeError: ``load`` raised it, or ``state_dict`` is a whole checkpoint or holds two networks.
    """
    network = Network(own, "")
    try:
        if isinstance(state_dict, Mapping):
            _check_no_checkpoint(state_dict)
            network = find_network(state_dict) or network
        found = load()
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    except RuntimeError as error:
        raise RuntimeError(network.in_their_words(str(error), own)) from error
    found.missing_keys[:] = [network.in_their_words(name, own) for name in found.missing_keys]
    return found


def _check_no_checkpoint(state_dict: Mapping[Any, Any]) -> None:
    """Raise ValueError for a whole checkpoint, which ``strict=False`` would silently load nothing from."""
    paths = find_state_dicts(state_dict)
    if paths and () not in paths:
        calls = [f"load_state_dict(checkpoint{''.join(f'[{json.dumps(key)}]' for key in path)})" for path in paths]
        raise ValueError(one_line(f"expected a state dict, got a checkpoint that holds one: {' or '.join(calls)}"))


def rename(state_dict: MutableMapping[str, Any], prefix: str | None = "", into: str = "notebook") -> str | None:
    """Rename the entries of a state dict in place; unknown names stay as they are.

    Args:
        state_dict: the state dict.
        prefix: the prefix of the entries to rename, which they keep. None removes any prefix that wrappers have added,
            and the counter of ``torch.optim.swa_utils.AveragedModel``.
        into: the naming scheme to use, a key of ``NAMING_SCHEMES``.

    Returns:
        The naming scheme that the entries had, a key of ``NAMING_SCHEMES``, or None if they had none.

    Raises:
        ValueError: two entries would get the same name.
    """
    network = find_network(state_dict, prefix)
    if network is None:
        return None
    for name in list(state_dict):
        ours = network.ours(name)
        if ours is not None:
            renamed = f"{prefix or ''}{NAMING_SCHEMES[into].theirs(ours)}"
            value = state_dict.pop(name)
            if renamed in state_dict:
                raise ValueError(one_line(f"expected one entry for {renamed}, got {name} as well"))
            state_dict[renamed] = value
        elif prefix is None and name.endswith(_COUNTER) and network.prefix.startswith(_averaged(name)):
            del state_dict[name]
    return network.source


def _averaged(counter: str) -> str:
    """Return the prefix of the network that belongs to an AveragedModel's counter of this name."""
    return f"{counter.removesuffix(_COUNTER)}module."


def warn_of_differences(source: str, config: ESIMConfig) -> None:
    """Warn if a network gets the weights of a project whose options differ from its own."""
    options = NAMING_SCHEMES[source].options
    others = [
        f"{name}={options[name]!r}" for name in _DECISIVE if name in options and getattr(config, name) != options[name]
    ]
    if others:
        warnings.warn(
            f"these weights are named as in {NAMING_SCHEMES[source].source}: to reproduce its results, use "
            f"ESIM(..., {', '.join(others)})",
            stacklevel=9,  # point at the caller of load_state_dict, not into torch
        )

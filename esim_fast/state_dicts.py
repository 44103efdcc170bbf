"""State dicts in other people's names: one table says which of their modules is which of ours.

``esim_fast.ESIM`` has the notebook's names. The parameters within a module are PyTorch's own, the same for everybody.
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
    """How somebody's ESIM names its modules, and the mathematics behind the names.

    Attributes:
        source: whose names they are.
        modules: their names of modules, and ours.
        options: of :class:`esim_fast.ESIM`, for the same mathematics.
    """

    source: str
    modules: Mapping[str, str]
    options: Mapping[str, Any]

    def ours(self, name: str) -> str | None:
        """Our name of an entry, or None if it is none of theirs."""
        module, _, parameter = name.rpartition(".")
        return f"{self.modules[module]}.{parameter}" if module in self.modules else None

    def theirs(self, name: str) -> str:
        """Their name of one of our entries; of any other, its own."""
        module, _, parameter = name.rpartition(".")
        return next((f"{theirs}.{parameter}" for theirs, ours in self.modules.items() if ours == module), name)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Of their names of entries, with the prefix that a wrapper gives them."""
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
# What checkpoints call the state dict in them, the likeliest first.
STATES = ("model", "state_dict", "model_state_dict", "net", "model_state", "net_state_dict", "weights", "params")
_DEEPEST = 4  # levels of a checkpoint in which state dicts are looked for
_COUNTER = "n_averaged"
_DECISIVE = ("padding_idx", "projection_activation", "classifier_activation")  # for logits without dropout


class Network(NamedTuple):
    """A network among entries: whose names they have, and what wrappers have put before them."""

    source: str  # a key of NAMING_SCHEMES
    prefix: str

    def ours(self, name: str) -> str | None:
        """Our name of an entry, or None if it is none of the network's."""
        inside = name.startswith(self.prefix)
        return NAMING_SCHEMES[self.source].ours(name.removeprefix(self.prefix)) if inside else None

    def in_their_words(self, message: str, own: str) -> str:
        """A message with the names that the entries have instead of those that a module has, which are ``own``."""
        theirs, modules = NAMING_SCHEMES[self.source], NAMING_SCHEMES[own].modules
        pattern = rf"(?<![\w.])({'|'.join(map(re.escape, modules))})\."
        return re.sub(pattern, lambda found: f"{self.prefix}{theirs.theirs(f'{modules[found[1]]}.')}", message)


def find_network(names: Iterable[Any], prefix: str | None = None) -> Network | None:
    """The network that most of these names are entries of; None if they are of none.

    Args:
        prefix: what its names begin with; None: anything, as DataParallel, Lightning and others wrap a network.

    Raises:
        ValueError: as many are entries of another network.
    """
    counts = Counter(found for name in names for found in _networks(name) if prefix in (None, found.prefix))
    (network, most), (other, as_many) = (*counts.most_common(2), (None, 0), (None, 0))[:2]
    if network and other and most == as_many and network.prefix != other.prefix:
        begins = [json.dumps(found.prefix, ensure_ascii=False) for found in (network, other)]
        raise ValueError(
            one_line(
                f"expected the entries of one network, got two, which begin with {' and '.join(begins)}: keep those of "
                f"one, {{name: entry for name, entry in state_dict.items() if name.startswith({max(begins)})}}"
            )
        )
    return network


def _networks(name: Any) -> Iterator[Network]:
    """What network an entry of this name may be of."""
    for source, scheme in NAMING_SCHEMES.items():
        if isinstance(name, str) and (found := scheme.pattern.fullmatch(name)):
            yield Network(source, found["prefix"])


def recognized(names: Iterable[str]) -> str | None:
    """Whose names these are, a key of :data:`NAMING_SCHEMES`; None if they are nobody's."""
    network = find_network(names, "")
    return network and network.source


def find_state_dicts(checkpoint: Mapping[Any, Any]) -> list[tuple[str, ...]]:
    """The keys that lead to the state dicts of an ESIM in a checkpoint, none to itself; the likeliest comes first."""
    rank = {key: number for number, key in enumerate(STATES)}
    found = [
        path
        for path, entries in _mappings_in(checkpoint)
        if any(hasattr(value, "shape") and any(_networks(name)) for name, value in entries.items())
    ]
    return sorted(found, key=lambda path: (len(path), [rank.get(key, len(rank)) for key in path]))


def _mappings_in(checkpoint: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """A checkpoint and the mappings in it, each once, with the keys that lead there."""
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
    """What ``load`` returns, a module's ``load_state_dict``; what it says of entries, in the names that they have.

    Args:
        own: whose names the module has, a key of :data:`NAMING_SCHEMES`.

    Raises:
        RuntimeError: as ``load``; or ``state_dict`` is a whole checkpoint, or that of two networks.
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
    """Raises ValueError for a checkpoint, nothing of which would be loaded without ``strict``, and nothing said."""
    paths = find_state_dicts(state_dict)
    if paths and () not in paths:
        calls = [f"load_state_dict(checkpoint{''.join(f'[{json.dumps(key)}]' for key in path)})" for path in paths]
        raise ValueError(one_line(f"expected a state dict, got a checkpoint that holds one: {' or '.join(calls)}"))


def rename(state_dict: MutableMapping[str, Any], prefix: str | None = "", into: str = "notebook") -> str | None:
    """Gives the entries of a state dict other names, in place; entries of no known name stay as they are.

    Args:
        prefix: what the entries that count begin with, before and afterwards. None: whatever wrappers have put before
            the names goes away, and so does the counter of ``torch.optim.swa_utils.AveragedModel``.
        into: whose names they get, a key of :data:`NAMING_SCHEMES`.

    Returns:
        Whose names they had, a key of :data:`NAMING_SCHEMES`; None if they were nobody's.

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
    """What the names of a network begin with, of which AveragedModel counts the steps under this name."""
    return f"{counter.removesuffix(_COUNTER)}module."


def warn_of_differences(source: str, config: ESIMConfig) -> None:
    """Warns if a network gets the weights of a source whose mathematics is not its own."""
    options = NAMING_SCHEMES[source].options
    others = [
        f"{name}={options[name]!r}" for name in _DECISIVE if name in options and getattr(config, name) != options[name]
    ]
    if others:
        warnings.warn(
            f"these weights have the names of {NAMING_SCHEMES[source].source}, whose mathematics is "
            f"ESIM(..., {', '.join(others)})",
            stacklevel=9,  # past torch's own loading, where nobody could do anything about it
        )

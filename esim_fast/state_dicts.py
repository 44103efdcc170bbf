"""State dicts in other people's names: one table says which of their modules is which of ours.

``esim_fast.ESIM`` has the notebook's names. The parameters within a module are PyTorch's own, the same for everybody.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from .config import ESIMConfig

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

    def in_their_words(self, message: str, prefix: str = "") -> str:
        """A message with their names instead of ours, which begin with ``prefix``."""
        for theirs, ours in self.modules.items():
            message = re.sub(rf"(?<![\w.]){re.escape(prefix + ours)}\.", f"{theirs}.", message)
        return message

    def loaded(self, load: Callable[[], Any], prefix: str = "") -> Any:
        """What ``load`` returns, a module's ``load_state_dict``; what it says of entries, in their names.

        Raises:
            RuntimeError: as ``load``.
        """
        try:
            found = load()
        except RuntimeError as error:
            raise RuntimeError(self.in_their_words(str(error), prefix)) from error
        found.missing_keys[:] = [self.in_their_words(name, prefix) for name in found.missing_keys]
        return found


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
_DECISIVE = ("padding_idx", "projection_activation", "classifier_activation")  # for logits without dropout


def recognized(names: Iterable[str]) -> str | None:
    """Whose names these are, a key of :data:`NAMING_SCHEMES`; None if they are nobody's."""
    names = list(names)
    found = {key: sum(scheme.ours(name) is not None for name in names) for key, scheme in NAMING_SCHEMES.items()}
    best = max(found, key=found.__getitem__)
    return best if found[best] else None


def rename(state_dict: MutableMapping[str, Any], prefix: str = "", onto: str | None = None) -> str | None:
    """Gives the entries of a state dict our names, in place; entries of no known name stay as they are.

    Args:
        prefix: what the entries that count begin with.
        onto: what they begin with afterwards; ``prefix``, if None.

    Returns:
        Whose names they had, a key of :data:`NAMING_SCHEMES`; None if they were nobody's.
    """
    names = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
    source = recognized(names)
    if source is not None:
        for name in names:
            ours = NAMING_SCHEMES[source].ours(name)
            if ours is not None:
                state_dict[f"{prefix if onto is None else onto}{ours}"] = state_dict.pop(f"{prefix}{name}")
    return source


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

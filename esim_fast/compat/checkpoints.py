"""Convert checkpoints of other ESIM implementations: weights, vocabulary and labels.

Nothing in a checkpoint is executed. Content that needs Python's unpickler raises DataError.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classifier import Classifier
from ..data import PADDING, UNKNOWN, Tokenizer, Vocabulary
from ..errors import DataError, first_line, listed, naming, one_line, reason_of
from ..files import check_entries, check_kind, load_safetensors, load_saved, parse_json
from ..labels import LabelNames
from ..model import ESIM
from ..ops.checks import FLOATING
from ..state_dicts import NAMING_SCHEMES, STATES, find_network, find_state_dicts, recognized, rename

_TIED = 4  # how many names may share one storage, as tied weights do
# Names of modules that are not layers: losses (with class weights) and metrics.
_BESIDE = re.compile(
    r"(.*_)?(criteri(on|a)|loss(es)?|cross_?entropy|(class|pos)_?weights?|metrics?|acc|accuracy|f1)([_\d].*)?",
    re.IGNORECASE | re.DOTALL,
)
# Names of the unknown word and of padding in each source, and elsewhere.
_SPECIAL = {
    "notebook": (UNKNOWN, PADDING),
    "coetaur0": ("_OOV_", "_PAD_"),
    "allennlp": ("@@UNKNOWN@@", "@@PADDING@@"),
    "others": ("[UNK]", "[PAD]"),
}


def read_state_dict(path: str | os.PathLike[str], note: Callable[[str], object] = lambda _: None) -> dict[str, Tensor]:
    """Read a state dict from a ``torch.save`` or safetensors file, either alone or in a checkpoint, and remove
    wrappers' prefixes.

    Args:
        path: the file.
        note: called with one line about each kind of content that was skipped.

    Raises:
        DataError: the file cannot be read, or holds Python objects, no state dict, or that of two networks.
    """
    path = Path(path)
    content = _content(path)
    found: list[tuple[str, ...]] = []
    if isinstance(content, Mapping):
        usual = [(), *((name,) for name in STATES)]  # fallback for state dicts with unknown names
        found = find_state_dicts(content) or [keys for keys in usual if _is_state_dict(_entry(content, keys))][:1]
    if not found:
        raise DataError(f"{path}: expected a state dict, or a checkpoint with one as {' or '.join(STATES)}")
    if len(found) > 1:
        taken, *others = [f"entry {'.'.join(keys)}" if keys else "outermost" for keys in found]
        note(f"holds several state dicts: using the {taken}, skipping the {listed(others)}")
    try:
        entries, left_out = _network(_entry(content, found[0]))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if left_out:
        note(f"skipped entries that are not part of the network: {listed(left_out)}")
    _check_sizes(path, entries)
    return entries


def read_words(path: str | os.PathLike[str]) -> list[str]:
    """Read words in the order of their ids: one per line, or (``.json``) a list or an object that maps words to ids.

    Raises:
        DataError: the file cannot be read or has another format.
    """
    path = Path(path)
    with naming(path):
        content = path.read_bytes()
    if content.startswith(b"\x80"):
        as_json = path.with_suffix(".json")
        source, target = (json.dumps(os.fspath(name), ensure_ascii=False) for name in (path, as_json))
        code = f'import json, pickle; words = pickle.load(open({source}, "rb")); json.dump(words, open({target}, "w"))'
        raise DataError(
            f"{path}: a pickle, which would run code when loaded: if you trust it, run "
            f"python -c {shlex.quote(code)} and pass {as_json} instead"
        )
    try:
        text = content.decode().removeprefix("\ufeff")
        lines = (line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
        value = parse_json(text) if path.suffix == ".json" else list(lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 at byte {error.start + 1}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {first_line(error)}") from error
    if isinstance(value, dict):
        if sorted(value.values(), key=str) != sorted(range(len(value)), key=str):
            raise DataError(f"{path}: expected the ids 0 to {len(value) - 1}, each once")
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise DataError(f"{path}: expected a list of words, or an object that maps words to ids")
    return value


def convert(
    state_dict: Mapping[str, Tensor],
    words: Sequence[str] | None = None,
    labels: LabelNames | None = None,
    *,
    source: str | None = None,
    tokenizer: str | Tokenizer | None = None,
) -> Classifier:
    """Convert another implementation's state dict to a model.

    Args:
        state_dict: from the notebook, coetaur0/ESIM or AllenNLP, or from an ``esim_fast.ESIM``.
        words: words in the order of their ids. The unknown word and padding may have the names that any of the three
            projects uses; AllenNLP's list may begin with the unknown word, as its files do. None uses ids as words.
        labels: names of the network's outputs, as for ``Classifier``; None uses their numbers.
        source: whose mathematics to use: ``"notebook"``, ``"coetaur0"``, ``"allennlp"`` or ``"esim_fast"`` (the
            paper's). None decides by the names of the entries.
        tokenizer: how to split sentences. None is ``"nltk"``; for coetaur0/ESIM, ``"coetaur0"`` if the words include
            ``_BOS_`` and ``_EOS_``, else ``"nltk-cased"``; and ``"whitespace"`` without words.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: labels are not strings or have no order.
        ValueError: entries are missing, unexpected or have the wrong shape, or words or labels do not fit the network.
    """
    named = recognized(state_dict)
    if named is None:
        some = ", ".join(sorted(state_dict)[:3])
        names = ", ".join(scheme.source for scheme in NAMING_SCHEMES.values())
        raise ValueError(one_line(f"expected a state dict with the names of {names}, got {some}, …"))
    if source not in (None, *NAMING_SCHEMES, "esim_fast"):
        raise ValueError(f"source must be one of {', '.join(map(repr, NAMING_SCHEMES))} or 'esim_fast', got {source!r}")
    entries = {name: _in_fp32(entry) for name, entry in state_dict.items()}
    rename(entries)
    sizes = _sizes(entries, named)
    words, tokenizer = _words(words, tokenizer, named, sizes["vocab_size"])
    order, vocabulary = _in_our_order(words, named)
    if labels is None:
        labels = [str(number) for number in range(sizes["num_labels"])]
    options = {} if source == "esim_fast" else NAMING_SCHEMES[source or named].options
    described: dict[str, Any] = {**sizes, **options, "padding_idx": 1}  # padding's id in our vocabulary
    with torch.device("meta"):
        net = ESIM(**described)
    check_entries(entries, net.state_dict(), named)
    entries["embedding.weight"] = entries["embedding.weight"][order]
    net.load_state_dict({name: entry.clone() for name, entry in entries.items()}, assign=True)
    return Classifier(net.eval(), vocabulary, labels, tokenizer)


def _content(path: Path) -> Any:
    check_kind(path)
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        with open(path, "rb") as file:
            return load_saved(file, leave_out=True)
    except DataError:
        raise
    except OSError as error:
        if error.filename is None:  # raised while reading
            raise DataError(f"{path}: the file is incomplete") from error
        raise DataError(f"{path}: {reason_of(error)}") from error
    except Exception as error:  # torch raises many types for damaged files
        if objects := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise DataError(
                f"{path}: holds Python objects ({objects[1]}), which would run code when loaded: "
                "save net.state_dict() with torch.save and convert that"
            ) from error
        raise DataError(f"{path}: damaged, or not a torch.save or safetensors file") from error


def _entry(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _network(entries: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Split entries into those of the network and the names of the others.

    Raises:
        ValueError: there are two networks, or an entry of the network is not a tensor.
    """
    network = find_network(entries)
    prefix = network.prefix if network else ""
    found, left_out = {}, []
    for name, entry in entries.items():
        known = network and network.ours(str(name))
        if known and not isinstance(entry, Tensor):
            raise ValueError(f"{name} is not a tensor: save net.state_dict() with torch.save and convert that")
        if known or (str(name).startswith(prefix) and not _is_beside(str(name).removeprefix(prefix), entry)):
            found[str(name).removeprefix(prefix)] = entry
        else:
            left_out.append(str(name))
    return found, left_out


def _is_beside(name: str, entry: Any) -> bool:
    """Whether an entry is clearly not a weight of a layer: a counter, a non-tensor, or part of a loss or metric."""
    counts = isinstance(entry, Tensor) and entry.dtype in (torch.int64, torch.int32, torch.bool)
    return counts or not isinstance(entry, Tensor) or _BESIDE.fullmatch(name.partition(".")[0]) is not None


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items())


def _check_sizes(path: Path, entries: Mapping[str, Tensor]) -> None:
    """Reject expanded and heavily shared tensors, which can be huge in memory although the file is tiny."""
    shown, stored = 0, {}
    for name, entry in entries.items():
        if entry.layout != torch.strided or entry.is_meta or entry.is_nested:
            found = (
                "one without values (meta)" if entry.is_meta else "a nested one" if entry.is_nested else entry.layout
            )
            raise DataError(f"{path}: {name} must be a dense tensor with values, got {found}")
        if entry.numel() * entry.element_size() > entry.untyped_storage().nbytes():
            raise DataError(f"{path}: {name} has shape {list(entry.shape)}, but the file stores fewer numbers")
        shown += entry.numel() * entry.element_size()
        stored[entry.untyped_storage().data_ptr()] = entry.untyped_storage().nbytes()
    if shown > _TIED * sum(stored.values()):
        raise DataError(f"{path}: expected separate tensors, got the same numbers under many names")


def _in_fp32(entry: Tensor) -> Tensor:
    """Convert to fp32 if possible; ``check_entries`` reports the rest."""
    return entry.float() if entry.dtype in FLOATING and entry.layout == torch.strided else entry


def _sizes(entries: Mapping[str, Tensor], named: str) -> dict[str, int]:
    """Derive the sizes of ESIM from the shapes of the entries."""
    shapes = {}
    for name in ("embedding.weight", "encoder.lstm.weight_hh_l0", "linear.mlp.3.weight"):
        theirs = NAMING_SCHEMES[named].theirs(name)
        if name not in entries:
            raise ValueError(f"{theirs} is missing")
        if entries[name].dim() != 2 or not entries[name].numel():
            raise ValueError(f"{theirs} has shape {list(entries[name].shape)}, expected two nonzero dimensions")
        shapes[name] = entries[name].shape
    (vocab_size, embedding_dim), (_, hidden_size), (num_labels, _) = shapes.values()
    sizes = {"hidden_size": hidden_size, "embedding_dim": embedding_dim}
    return {**sizes, "vocab_size": vocab_size, "num_labels": num_labels}


def _words(
    words: Sequence[str] | None, tokenizer: str | Tokenizer | None, named: str, count: int
) -> tuple[list[str], str | Tokenizer]:
    """Return the words of all rows of the embedding, and the tokenizer."""
    if words is None:
        if count < 2:
            raise ValueError(f"expected at least 2 word vectors, for the unknown word and padding, got {count}")
        special = [PADDING, UNKNOWN] if NAMING_SCHEMES[named].options.get("padding_idx") == 0 else [UNKNOWN, PADDING]
        return [*special, *map(str, range(2, count))], tokenizer or "whitespace"
    words = list(words)
    if named == "allennlp" and words[:1] == ["@@UNKNOWN@@"]:
        words = ["@@PADDING@@", *words]  # AllenNLP's files omit it
    if len(words) != count:
        raise ValueError(f"the network has {count} word vectors, but the vocabulary has {len(words)} words")
    if tokenizer is None and named == "coetaur0":
        tokenizer = "coetaur0" if {"_BOS_", "_EOS_"} <= set(words) else "nltk-cased"
    return words, tokenizer or "nltk"


def _in_our_order(words: Sequence[str], named: str) -> tuple[list[int], Vocabulary]:
    """Return the row that each word of our vocabulary has in theirs, and our vocabulary: unknown word, padding, the
    rest.
    """
    places = {word: place for place, word in enumerate(words)}
    first = []
    # Their own names take precedence, because another project's name may be an ordinary word in their text.
    for names in zip(_SPECIAL[named], *_SPECIAL.values(), strict=True):
        place = next((places[name] for name in names if name in places), None)
        if place is None:
            raise ValueError(f"expected one of {', '.join(names[1:])} among the words, got none")
        first.append(place)
    padding_idx = NAMING_SCHEMES[named].options.get("padding_idx")
    if padding_idx is not None and first[1] != padding_idx:
        raise ValueError(
            f"expected padding as word {padding_idx}, as in {NAMING_SCHEMES[named].source}, got {words[first[1]]!r} as "
            f"word {first[1]}: the words are not in the order of the network's ids"
        )
    order = [*first, *(place for place in range(len(words)) if place not in first)]
    return order, Vocabulary([UNKNOWN, PADDING, *(words[place] for place in order[2:])])

"""Label names, in the forms in which users have them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .errors import listed, one_line

LabelNames: TypeAlias = Sequence[str] | Mapping[str, int] | Mapping[int, str] | Mapping[str, str]


def label_names(labels: LabelNames) -> list[str]:
    """Return label names in the order of their ids.

    Args:
        labels: the names in order, as a list, tuple, NumPy array or pandas column. Or a dict that maps names to ids or
            ids to names; ids may be strings of digits, as in Hugging Face's ``id2label``.

    Raises:
        TypeError: ``labels`` is something else, such as a set, which has no order, or a name is not a string.
        ValueError: a name is repeated, or the ids of a dict are not 0 to n - 1, each once.
    """
    names: list[Any]
    if isinstance(labels, Mapping):
        names = _in_order_of_ids(labels)
    elif getattr(labels, "ndim", None) == 1 and hasattr(labels, "tolist"):  # NumPy's and pandas'
        names = labels.tolist()
    elif isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)):
        names = list(labels)
    else:
        raise TypeError(f"labels must be a list of names in the order of their ids, got {type(labels).__name__}")
    for name in names:
        if not isinstance(name, str):
            message = f"labels must be strings, got {name!r:.40}: pass [str(label) for label in labels]"
            raise TypeError(one_line(message))
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise ValueError(f"labels must be distinct, got {name[:100]!r} {count} times")
    return names


def positive_label(labels: Sequence[str]) -> str | None:
    """Return the label that means "these belong together", by its name: ``entailment``, else ``1``, else None."""
    return next((name for name in ("entailment", "1") if name in labels), None)


def positive_or_second(labels: Sequence[str]) -> str | None:
    """Return the label for single-class metrics and thresholds: the positive one, else the second of two, else None."""
    return positive_label(labels) or (labels[1] if len(labels) == 2 else None)


def _in_order_of_ids(labels: Mapping[Any, Any]) -> list[str]:
    if _are_strings(labels.values()):
        pairs = [(str(number), name) for number, name in labels.items()]
    elif _are_strings(labels):
        pairs = [(str(number), name) for name, number in labels.items()]
    else:
        raise TypeError("labels given as a dict must map names to ids or ids to names")
    by_id, ids = dict(pairs), [str(number) for number in range(len(pairs))]
    if by_id.keys() != set(ids):
        got = listed([number for number, _ in pairs])
        raise ValueError(
            one_line(f"labels given as a dict must have the ids 0 to {len(ids) - 1}, each once, got {got}")
        )
    return [by_id[number] for number in ids]


def _are_strings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)

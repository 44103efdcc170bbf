"""Take pairs and labels from Python: lists, dicts of columns, DataFrames, Hugging Face datasets."""

import json
import numbers
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import listed, one_line
from ..tokenizing import Tokenizer
from .columns import NAMES, SCORE_NAMES, either
from .preparing import PreparedCorpus, prepare_lines
from .reading import CorpusFormat

_COLUMNS = ("premise", "hypothesis", "label")
_MOST_LABELS = 1000  # a column with more distinct values holds something else, such as sentences


@dataclass(frozen=True)
class LabeledPairs:
    """Pairs with the labels to learn.

    Attributes:
        name: what messages call the pairs; they count rows from 1.
        pairs: (premise, hypothesis) tuples.
        labels: for each pair, a string, a number, or None if there is no gold label.
        task: "classification" or "regression".
        classes: the names of the labels in the order of their ids, if the dataset defines it.
    """

    name: str
    pairs: list[tuple[str, str]]
    labels: list[Any]
    task: str
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def split(self, share: float, seed: int) -> "tuple[LabeledPairs, LabeledPairs]":
        """Hold out a random ``share`` of the pairs, and return (the rest, the pairs held out).

        Raises:
            ValueError: either part would be empty.
        """
        count = len(self)
        held = round(share * count)
        if not 0 < held < count:
            raise ValueError(f"dev={share}: expected a share that leaves pairs on both sides, got {held} of {count}")
        order = np.random.default_rng(seed).permutation(count)
        return self._taken("pairs", sorted(order[held:])), self._taken("dev", sorted(order[:held]))

    def _taken(self, name: str, places: Iterable[int]) -> "LabeledPairs":
        places = list(places)
        pairs, labels = ([values[place] for place in places] for values in (self.pairs, self.labels))
        return replace(self, name=name, pairs=pairs, labels=labels)

    def prepared(self, tokenizer: str | Tokenizer) -> PreparedCorpus:
        """Tokenize the pairs; raise DataError for a row that cannot be read."""
        corpus_format = CorpusFormat(_COLUMNS, scores=self.task == "regression")
        return prepare_lines(self._lines(), self.name, tokenizer, corpus_format)

    def _lines(self) -> Iterator[bytes]:
        for (premise, hypothesis), label in zip(self.pairs, self.labels, strict=True):
            if label is None:
                if self.task == "regression":  # "-" rows would make negative scores ambiguous
                    continue
                label = "-"
            elif self.task == "regression" and label == -1:
                label = "-1e0"  # a score; "-1" would mean no gold label
            yield json.dumps(dict(zip(_COLUMNS, (premise, hypothesis, label), strict=True))).encode()

    def label_names(self, corpora: Sequence[PreparedCorpus]) -> list[str]:
        """Return the labels to learn, in the order of their ids.

        Args:
            corpora: these pairs, prepared, or the parts they were split into.

        Raises:
            ValueError: there are fewer than two labels, or too many.
        """
        counts = sum((Counter(corpus.label_counts()) for corpus in corpora), Counter())
        found = sorted(counts) if self.classes is None else [name for name in self.classes if name in counts]
        if not 2 <= len(found) <= _MOST_LABELS:
            got = f"only {found[0]!r}" if len(found) == 1 else f"{len(found)}, such as {found[0][:40]!r}"
            missing = any(corpus.unlabeled for corpus in corpora)
            hint = ' (None, "-" and -1 mean no gold label)' if missing else ""
            raise ValueError(one_line(f"{self.name}: expected 2 to {_MOST_LABELS} labels, got {got}{hint}"))
        return found


def labeled_pairs(name: str, pairs: Any, labels: Any = None, task: str | None = None) -> LabeledPairs:
    """Read pairs and labels from any of the supported forms.

    Args:
        name: what messages call the pairs.
        pairs: (premise, hypothesis) pairs, or a table with known column names: a DataFrame, a ``datasets.Dataset`` or a
            dict of columns.
        labels: a string, an integer or a score (float) for each pair, None for no gold label. Without ``labels``, they
            are a column of the table.
        task: "classification" or "regression"; None: regression if labels are floats.

    Raises:
        TypeError: pairs or labels have another type.
        ValueError: there are no pairs, their number differs from that of the labels, or the table lacks a column.
    """
    classes: list[str] | None = None
    names = _column_names(pairs)
    if names is not None:
        places = _known(names, scores=task == "regression")
        for role in ("premise", "hypothesis"):
            if role not in places:
                raise ValueError(_lacks(name, role, NAMES, names))
        if labels is None:
            if "label" not in places and task is None:  # the table may have scores instead
                places = _known(names, scores=True)
                task = "regression" if "label" in places else None
            if "label" not in places:
                raise ValueError(_lacks(name, "label", SCORE_NAMES if task == "regression" else NAMES, names))
            labels = _values(pairs[places["label"]])
            features = getattr(pairs, "features", None)
            classes = getattr(features[places["label"]], "names", None) if features else None
        sides = [_values(pairs[places[role]]) for role in ("premise", "hypothesis")]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"{name}: expected as many hypotheses as premises, got {len(sides[1]):,} for {len(sides[0]):,}"
            )
        rows = [
            (_text(name, index, row[0]), _text(name, index, row[1]))
            for index, row in enumerate(zip(*sides, strict=True))
        ]
    else:
        rows = _checked_pairs(name, pairs)
        if labels is None:
            raise TypeError(f"{name}: expected labels as well, or a table with a label column")
    if isinstance(labels, (str, bytes, Mapping)) or not isinstance(labels, Iterable):
        raise TypeError(f"{name}: expected a list of labels, got {type(labels).__name__}")
    values = [None if _is_missing(label) else label for label in _values(labels)]
    if len(values) != len(rows):
        raise ValueError(f"{name}: expected as many labels as pairs, got {len(values):,} for {len(rows):,}")
    if not rows:
        raise ValueError(f"{name}: expected labeled pairs, got none")
    if classes is not None:
        values = [classes[label] if label is not None and 0 <= label < len(classes) else None for label in values]
    return LabeledPairs(name, rows, values, task or _task_of(name, values), classes)


def _column_names(table: Any) -> list[str] | None:
    """Return the column names of a table, or None if it is not a table."""
    if isinstance(table, Mapping):
        return list(table)
    if hasattr(table, "column_names"):  # a datasets.Dataset
        return list(table.column_names)
    return list(table.columns) if hasattr(table, "columns") else None


def _known(names: Sequence[Any], scores: bool) -> dict[str, Any]:
    """Map roles (premise, hypothesis, label) to the columns with known names."""
    lower = {str(name).strip().lower(): name for name in reversed(names)}
    known = SCORE_NAMES if scores else NAMES
    found = {role: next((lower[name] for name in known[role] if name in lower), None) for role in _COLUMNS}
    return {role: name for role, name in found.items() if name is not None}


def _lacks(name: str, role: str, known: Mapping[str, Sequence[str]], names: Sequence[Any]) -> str:
    expected, found = either(known[role][:4]), listed(list(map(str, names))) or "none"
    return one_line(
        f"{name}: expected a column {expected}, got {found}; rename yours, or pass pairs and labels as lists"
    )


def _values(column: Any) -> list[Any]:
    """Convert a column, array or list to a list of Python values."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _text(name: str, index: int, value: Any) -> str:
    """Return a sentence of a table; a missing value is an empty sentence."""
    if _is_missing(value):
        return ""
    if not isinstance(value, (str, numbers.Real)):
        raise TypeError(one_line(f"{name}: expected a sentence in row {index}, got {value!r:.80}"))
    return str(value)


def _checked_pairs(name: str, pairs: Any) -> list[tuple[str, str]]:
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
        raise TypeError(f"{name}: expected (premise, hypothesis) pairs or a table, got {type(pairs).__name__}")
    rows = _values(pairs)
    for index, row in enumerate(rows):
        is_pair = isinstance(row, Sequence) and len(row) == 2 and all(isinstance(text, str) for text in row)
        if not is_pair or isinstance(row, str):
            raise TypeError(
                one_line(f"{name}[{index}] must be a (premise, hypothesis) pair of strings, got {row!r:.80}")
            )
    return [(row[0], row[1]) for row in rows]


def _is_missing(label: Any) -> bool:
    """Return whether a value is missing: None, NaN, NaT or pandas' NA."""
    return label is None or (not isinstance(label, str) and str(label).lower() in ("nan", "<na>", "nat"))


def _task_of(name: str, labels: Sequence[Any]) -> str:
    given = [label for label in labels if label is not None]
    for index, label in enumerate(labels):
        if label is not None and not isinstance(label, (str, numbers.Real)):
            raise TypeError(one_line(f"{name}: labels[{index}] must be a string or a number, got {label!r:.80}"))
    strings = sum(isinstance(label, str) for label in given)
    if 0 < strings < len(given):
        raise TypeError(
            f"{name}: expected labels that are all strings or all numbers, got {strings:,} strings of {len(given):,}"
        )
    if strings or all(isinstance(label, numbers.Integral) for label in given):
        return "classification"
    few = len(given) < len(labels) or len(set(given)) <= 2
    if few and all(float(label).is_integer() for label in given):
        raise ValueError(
            f"{name}: labels are whole numbers as floats, which may be scores, or classes that pandas converted "
            'because some are missing; pass task="classification" or task="regression"'
        )
    return "regression"

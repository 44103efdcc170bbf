"""Parse a row's bytes into a pair of sentences, or say what is wrong with the row."""

import contextlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import BadRowError, listed
from .columns import IDS, NAMES, SCORE_NAMES, SPLITS, Columns, either, split_row
from .compression import what_it_is
from .scores import is_score, score_of

NO_LABELS = ("-", "-1")  # no gold label: "-" in SNLI and MultiNLI, -1 in Hugging Face's datasets
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # lone surrogates, which JSON can spell but UTF-8 cannot encode
_WHOLE_NUMBER = re.compile(r"(-?\d+)\.0+")
_PREMISES, _HYPOTHESES = frozenset(NAMES["premise"]), frozenset(NAMES["hypothesis"])


class Pair(NamedTuple):
    """Two sentences and their label.

    Attributes:
        premise: the first sentence.
        hypothesis: the second sentence.
        label: the label, or None if there is no gold label.
        line: the row's line in the file, counted from 1.
        id: the row's id, if the file has a column or key with one of the known names for ids.
    """

    premise: str
    hypothesis: str
    label: str | None
    line: int
    id: str | float | None = None


@dataclass(frozen=True)
class DelimitedRows:
    """Parse the rows of a file with columns, once its first rows have settled which column is which."""

    columns: Columns
    delimiter: str | None
    labeled: bool
    label_map: Mapping[str, str]
    part: str | None  # the split of the first row, if a column names it
    scores: bool  # whether labels are scores

    def __call__(self, content: bytes, line: int) -> Pair:
        fields, columns, places = split_row(decode(content), self.delimiter), self.columns, self.columns.places
        if len(fields) not in columns.widths:
            unquoted = self.delimiter is None and any(field.startswith('"') for field in fields)
            hint = " (are some fields quoted?)" if unquoted else ""
            raise BadRowError(f"expected {columns.widths[0]} columns, got {len(fields)}{hint}")
        premise, hypothesis = fields[places["premise"]], fields[places["hypothesis"]]
        if (premise in _PREMISES and hypothesis in _HYPOTHESES) or fields == columns.header:
            raise BadRowError("expected a pair, got the header again (were two files joined?)")
        if self.part is not None and columns.split is not None:
            _check_part(fields[columns.split], self.part)
        label = None
        if "label" in places and (self.labeled or not _is_blank(fields[places["label"]])):
            label = gold_label(fields[places["label"]], self.label_map)
        if self.scores and label is not None:
            label = _score(label, self.labeled)
        return Pair(premise, hypothesis, label, line, None if columns.id is None else fields[columns.id] or None)


class JsonRows:
    """Parse the rows of a file of JSON objects."""

    def __init__(
        self,
        columns: Sequence[str] | None,
        labeled: bool,
        label_map: Mapping[str, str],
        part: str | None,
        scores: bool = False,
        id_key: str | None = None,
    ) -> None:
        self.keys = SCORE_NAMES if scores else NAMES
        if columns is not None:
            self.keys = {role: (key,) for role, key in zip(NAMES, columns, strict=False)}
        self.hint = "; name the keys with --columns" if columns is None else ""
        self.labeled, self.label_map, self.part, self.scores = labeled, label_map, part, scores
        self.id_key = id_key

    def __call__(self, content: bytes, line: int) -> Pair:
        record = parse_object(content)
        premise, hypothesis = (self._text(record, role) for role in ("premise", "hypothesis"))
        if self.part is not None:
            _check_part(part_of(record), self.part)
        label = None
        # Unless labels are required, a label that cannot be read counts as none.
        with contextlib.nullcontext() if self.labeled else contextlib.suppress(BadRowError):
            if self.labeled or "label" in self.keys:
                label = gold_label(self._text(record, "label"), self.label_map)
            if self.scores and label is not None:
                label = _score(label, self.labeled)
        return Pair(premise, hypothesis, label, line, None if self.id_key is None else _id(record.get(self.id_key)))

    def _text(self, record: dict[str, Any], role: str) -> str:
        key = next((key for key in self.keys[role] if key in record), None)
        if key is None:
            names, hint = either(self.keys[role][:4]), self.hint
            if role == "label" and self.keys is NAMES and not record.keys().isdisjoint(SCORE_NAMES["label"]):
                hint += " (for scores, use train --task regression)"
            raise BadRowError(f"expected a key {names}, got {listed(list(record)) or 'none'}{hint}")
        value = record[key]
        if not isinstance(value, str):
            return _written(value, key, role)
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise BadRowError(f"{key}: not valid Unicode at character {error.start + 1}") from error
        return value


def _written(value: Any, key: str, role: str) -> str:
    """Return a value that is not a string as a table would show it; null is an empty field."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float) and (role == "label" or not isinstance(value, bool)):
        return json.dumps(value)
    hint = " (from pandas? Write it with orient='records')" if isinstance(value, dict) else ""
    raise BadRowError(f"{key}: expected a string, got {type(value).__name__}{hint}")


def id_key(record: Mapping[str, Any], others: Collection[str]) -> str | None:
    """Return the key of an object that has a known name for ids and is not among ``others``."""
    keys = {key.lower(): key for key in record if key not in others}
    return next((keys[name] for name in IDS if name in keys), None)


def _id(value: Any) -> str | float | None:
    """Return an id if it is a string or a finite number, else None."""
    if isinstance(value, str):
        return None if _HALF_PAIR.search(value) else value or None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def part_of(record: Mapping[str, Any]) -> str | None:
    """Return the split that an object says it belongs to, if any."""
    return next((str(value) for name, value in record.items() if name.lower() in SPLITS), None)


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse the JSON object of a row; raise BadRowError if there is none."""
    try:
        record = json.loads(decode(content))
    except json.JSONDecodeError as error:
        hint = " (expected one object per line, or a single array of objects)" if content.strip() == b"{" else ""
        raise BadRowError(f"not valid JSON at character {error.pos + 1}{hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep nesting
        raise BadRowError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRowError("expected a JSON object")
    return record


def parse_sentence(content: bytes, line: int) -> Pair:
    """Take a whole line as the premise of a pair without a hypothesis."""
    return Pair(decode(content), "", None, line)


def decode(content: bytes) -> str:
    """Decode a row and strip its line ending; raise BadRowError if it is not UTF-8."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRowError(f"not valid UTF-8 at byte {error.start + 1}{_encoding_hint(content)}") from error
    return text.removesuffix("\n").removesuffix("\r")


def _encoding_hint(content: bytes) -> str:
    what = what_it_is(content)
    if what is None:
        what = "convert it with iconv -f GB18030 -t UTF-8 OLD > NEW if it is Chinese, -f CP1252 if Western European"
    return f" ({what})"


def gold_label(label: str, label_map: Mapping[str, str]) -> str | None:
    """Return a label's name, or None if the label in the file stands for no gold label.

    Raises:
        BadRowError: the label is empty.
    """
    label = label.strip()  # invisible blanks must not make it a different label
    if _is_blank(label):
        raise BadRowError("empty label")
    name = label_name(label, label_map)
    return None if name in NO_LABELS else name


def _score(label: str, labeled: bool) -> str | None:
    """Check a label that must be a score; unless labels are required, return None if it is not a number."""
    if labeled:
        score_of(label)
    return label if is_score(label) else None


def _is_blank(label: str) -> bool:
    return label.strip().lower() in ("", "nan")


def label_name(label: str, label_map: Mapping[str, str]) -> str:
    """Return the label's name in the map, if it is there; otherwise the label, with a class such as 1.0 as 1."""
    if label in label_map:
        return label_map[label]
    if "." in label and (number := _WHOLE_NUMBER.fullmatch(label)):  # pandas writes classes so if one is missing
        label = number[1]
    return label_map.get(label, label)


def _check_part(part: str | None, first: str) -> None:
    if part != first:
        raise BadRowError(f"this row belongs to {part}, but the first row to {first}; write one file per split")

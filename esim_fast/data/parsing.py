"""From a row's bytes to a pair of sentences, or to what is wrong with the row."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import BadRowError, listed
from .columns import NAMES, Columns, either, split_row
from .compression import what_it_is

NO_LABELS = ("-", "-1")  # where the annotators did not agree: of SNLI and MultiNLI, of Hugging Face's data sets
_WHOLE_NUMBER = re.compile(r"(-?\d+)\.0+")
_HANZI = re.compile("[\u4e00-\u9fff]")
_PREMISES, _HYPOTHESES = frozenset(NAMES["premise"]), frozenset(NAMES["hypothesis"])


class Pair(NamedTuple):
    """Two sentences and how they relate; ``label`` is None where nobody said, ``line`` counts from 1 in its file."""

    premise: str
    hypothesis: str
    label: str | None
    line: int


@dataclass(frozen=True)
class DelimitedRows:
    """Parses the rows of a file of columns, once its first rows have settled which is which."""

    columns: Columns
    delimiter: str | None
    label_map: Mapping[str, str] = field(default_factory=dict)
    part: str | None = None  # what the first row is for, where a column says it

    def __call__(self, content: bytes, line: int) -> Pair:
        fields, columns, places = split_row(decode(content), self.delimiter), self.columns, self.columns.places
        if len(fields) not in columns.widths:
            unquoted = self.delimiter is None and any(field.startswith('"') for field in fields)
            hint = " (are there quoted fields?)" if unquoted else ""
            raise BadRowError(f"expected {columns.widths[0]} columns, got {len(fields)}{hint}")
        premise, hypothesis = fields[places["premise"]], fields[places["hypothesis"]]
        if (premise in _PREMISES and hypothesis in _HYPOTHESES) or fields == columns.header:
            raise BadRowError("expected a pair, got a header once more: are these two files, one behind the other?")
        if columns.split is not None:
            _check_part(fields[columns.split], self.part)
        label = fields[places["label"]] if "label" in places else None
        return Pair(premise, hypothesis, None if label is None else _checked_label(label, self.label_map), line)


class JsonRows:
    """Parses the rows of a file that holds JSON objects."""

    def __init__(
        self, columns: Sequence[str] | None, labeled: bool, label_map: Mapping[str, str], part: str | None = None
    ) -> None:
        self.keys = NAMES if columns is None else {role: (key,) for role, key in zip(NAMES, columns, strict=False)}
        self.labeled, self.label_map, self.part = labeled, label_map, part

    def __call__(self, content: bytes, line: int) -> Pair:
        record = parse_object(content)
        premise, hypothesis = (self._text(record, role) for role in ("premise", "hypothesis"))
        if self.part is not None:
            _check_part(str(record.get("split")), self.part)
        has_label = self.labeled or any(record.get(key) is not None for key in self.keys.get("label", ()))
        label = _checked_label(self._text(record, "label"), self.label_map) if has_label else None
        return Pair(premise, hypothesis, label, line)

    def _text(self, record: dict[str, Any], role: str) -> str:
        key = next((key for key in self.keys[role] if key in record), None)
        if key is None:
            hint = ": name the keys with --columns" if self.keys is NAMES else ""
            names = either(self.keys[role][:4])
            raise BadRowError(f"expected a key {names}, got {listed(list(record)) or 'none'}{hint}")
        value = record[key]
        if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty field, in a table
            return ""
        if isinstance(value, int | float):  # a class by number, or true and false; a sentence that is a number
            return json.dumps(value)
        if not isinstance(value, str):
            raise BadRowError(f"{key}: expected a string, got {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no file of ours could hold
            raise BadRowError(f"{key}: not valid Unicode at character {error.start + 1}") from error
        return value


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a row; BadRowError if there is none."""
    try:
        record = json.loads(decode(content))
    except json.JSONDecodeError as error:
        hint = " (expected an object a line, or one array of objects)" if content.strip() == b"{" else ""
        raise BadRowError(f"not valid JSON at character {error.pos + 1}{hint}") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits; nesting as deep
        raise BadRowError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRowError("expected a JSON object")
    return record


def parse_sentence(content: bytes, line: int) -> Pair:
    """Takes each line for a sentence by itself, a premise without a hypothesis."""
    return Pair(decode(content), "", None, line)


def decode(content: bytes) -> str:
    """The text of a row, without the end of its line; BadRowError if it is no UTF-8."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRowError(f"not valid UTF-8 at byte {error.start + 1}{_encoding_hint(content)}") from error
    return text.removesuffix("\n").removesuffix("\r")


def _encoding_hint(content: bytes) -> str:
    what = what_it_is(content)
    if what is None:
        text = content.decode("gb18030", errors="replace")
        if "\ufffd" not in text and _HANZI.search(text):
            what = "GBK? Convert it with iconv -f GB18030 -t UTF-8"
    return f" ({what})" if what else ""


def _checked_label(label: str, label_map: Mapping[str, str]) -> str | None:
    label = label.strip()  # blanks around it would make another label of it, which nobody sees
    if not label:
        raise BadRowError("empty label")
    if "." in label and (number := _WHOLE_NUMBER.fullmatch(label)):  # pandas writes classes so, if one is missing
        label = number[1]
    if label in label_map:
        label = label_map[label]
        return None if label == NO_LABELS[0] else label
    return None if label in NO_LABELS else label


def _check_part(part: str, first: str | None) -> None:
    if part != first:
        raise BadRowError(
            f"expected a row for {first}, as the first one is, got one for {part}: write a file for each part"
        )

"""Which column of a file of sentence pairs is which: by its header, by what it holds, or as the user says."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BadRowError, listed

NAMES = {
    "premise": (
        *("sentence1", "premise", "question1", "text_a"),
        *("sentence_a", "#1 string", "context", "question"),  # SICK, MRPC, ANLI, QNLI
    ),
    "hypothesis": (
        *("sentence2", "hypothesis", "question2", "text_b"),
        *("sentence_b", "#2 string", "hypo", "sentence"),  # SICK, MRPC, XNLI's translations, QNLI
    ),
    "label": (
        *("gold_label", "label", "is_duplicate"),
        *("entailment_label", "entailment_judgment", "quality"),  # SICK (in two forms), MRPC
    ),
}
_SPLITS = ("split", "semeval_set")  # columns that say whether a row is for training, dev or test
_LEFT_OUT = ["label2", "label3", "label4", "label5"]  # columns of MultiNLI's header that its training rows lack
_LAST_LABELS = re.compile("label[1-5]")  # annotators' labels, which stand before the gold one in GLUE
_KNOWN_LABELS = {
    *("entailment", "neutral", "contradiction", "contradictory", "entails", "蕴含", "中立", "矛盾"),
    *("not_entailment", "not-entailment", "non-entailment", "duplicate", "not_duplicate", "paraphrase"),
    *("equivalent", "not_equivalent", "match", "similar", "different", "positive", "negative"),
    *("yes", "no", "true", "false", "-", "-1"),
}
_SHORT_NUMBER = re.compile(r"\d{1,2}(\.0+)?")
_LONGEST_LABEL = 100  # characters
_FEW_ROWS = 10  # say little of what a column holds
_DELIMITERS = ("\t", ";", "|", ",")


@dataclass(frozen=True)
class Columns:
    """Where the parts of a pair stand in a row.

    Attributes:
        places: of premise, hypothesis and (if there is one) label; -1 is the last column.
        widths: how many columns a row may have.
        header: the names of the columns, if the first row has them.
        split: the place of a column that says what a row is for.
    """

    places: dict[str, int]
    widths: tuple[int, ...]
    header: list[str] | None = None
    split: int | None = None


def split_row(text: str, delimiter: str | None) -> list[str]:
    """The fields of a row; without a delimiter they are separated by tabs, and quotes are characters like any other.

    Raises:
        BadRowError: its quoting is not valid.
    """
    if delimiter is None:
        return text.split("\t")
    if "\0" in text:  # which Python 3.10 cannot split
        raise BadRowError("NUL character")
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadRowError(f"not valid quoting: {error}") from error


def detected_delimiter(lines: Sequence[str], usual: str) -> str:
    """What separates the columns of a file's first lines, if it is not the ``usual`` character after all."""
    widths = {delimiter: [_width(line, delimiter) for line in lines] for delimiter in _DELIMITERS}
    if len(lines) < 2 or _are_columns(widths[usual], least=3):
        return usual
    # Sentences hold commas and semicolons as well: a delimiter gives every line as many columns.
    is_unused = set(widths[usual]) == {1}
    others = [delimiter for delimiter in _DELIMITERS if delimiter != usual and (is_unused or delimiter != ",")]
    found = [delimiter for delimiter in others if _are_columns(widths[delimiter], least=2 if is_unused else 3)]
    return max(found, key=lambda delimiter: widths[delimiter][0], default=usual)


def _width(line: str, delimiter: str) -> int:
    return re.sub('"(?:[^"]|"")*"', "", line).count(delimiter) + 1


def _are_columns(widths: Sequence[int], least: int) -> bool:
    return len(set(widths)) == 1 and widths[0] >= least


def find_columns(rows: Sequence[Sequence[str]], wanted: Sequence[str] | None, labeled: bool) -> Columns:
    """What the first rows of a file say of its columns.

    Args:
        rows: fields, of one row at least.
        wanted: names or numbers of columns that the user gives, as in ``CorpusFormat.columns``.
        labeled: whether there must be labels.

    Raises:
        BadRowError: the first row is not as it should be, or the rows leave open which column is which.
    """
    fields = [field.strip() for field in rows[0]]
    lower = [field.lower() for field in fields]
    named = {role: next((lower.index(name) for name in names if name in lower), None) for role, names in NAMES.items()}
    known = {role: column for role, column in named.items() if column is not None}
    required = tuple(NAMES) if labeled else ("premise", "hypothesis")
    is_header = len(known) >= 2
    if wanted is not None and all(map(str.isdecimal, wanted)):
        places = {role: int(number) - 1 for role, number in zip(NAMES, wanted, strict=False)}
        places = {role: place for role, place in places.items() if role in required or place < len(fields)}
        most = max(places.values()) + 1
        if most > len(fields):
            raise BadRowError(f"expected at least {most} columns, got {len(fields)}")
        # A header by the known names is one, even if nobody needs it.
        if len(places.items() & known.items()) < 2:
            return Columns(places, (len(fields),))
    elif wanted is not None:
        names = dict(zip(NAMES, wanted, strict=False))
        for role, name in names.items():
            if name not in fields and role in required:
                raise BadRowError(f"expected a column {name} in the header, got {listed(fields)}")
        places = {role: fields.index(name) for role, name in names.items() if name in fields}
    elif is_header or ("label" in known and len(fields) >= len(NAMES)):
        for role in required:
            if role not in known:
                raise BadRowError(
                    f"expected a column {either(NAMES[role][:4])} in the header, got {listed(fields)}: "
                    "name the columns with --columns"
                )
        places = known
    else:
        return _without_header(rows, labeled)
    header = list(rows[0])
    split = next((lower.index(name) for name in _SPLITS if name in lower), None) if labeled else None
    if fields[-len(_LEFT_OUT) :] == _LEFT_OUT:
        return Columns(places, (len(fields), len(fields) - len(_LEFT_OUT)), header, split)
    if places.get("label") == len(fields) - 1:
        # GLUE's SNLI: the gold label stands last, behind that of one annotator or those of five.
        given = sum(_LAST_LABELS.fullmatch(name) is not None for name in fields)
        if given:
            others = (len(fields) - given + count for count in (1, 5) if count != given)
            return Columns({**places, "label": -1}, (len(fields), *others), header, split)
    return Columns(places, (len(fields),), header, split)


def _without_header(rows: Sequence[Sequence[str]], labeled: bool) -> Columns:
    count = len(rows[0])
    if count == 2 and not labeled:
        return Columns({"premise": 0, "hypothesis": 1}, (2,))
    if count != 3:
        expected = f"{'3' if labeled else '2 or 3'} columns, a header with known names, or --columns"
        hint = ""
        if count == 1:
            hint = " (is there another delimiter, for --delimiter? Or a sentence a line: paste puts files side by side)"
        raise BadRowError(f"expected {expected}, got {count}: {listed(rows[0])}{hint}")
    label = _label_column([row for row in rows[1:] if len(row) == count])  # the first one may be a header
    _refuse_unknown_header(rows, label)
    places = {0: (1, 2, 0), 2: (0, 1, 2)}[label]
    return Columns(dict(zip(NAMES, places, strict=True)), (3,))


def _label_column(rows: Sequence[Sequence[str]]) -> int:
    """Which of three columns holds labels: 0 or 2. Where the rows do not say, the first one does."""
    if not rows:
        return 0
    columns = list(zip(*rows, strict=True))
    likeness = [_likeness_to_labels([value.strip() for value in column]) for column in columns]
    best = max(likeness)
    found = [place for place in range(3) if likeness[place] == best]
    if best == 0 or (len(rows) < _FEW_ROWS and 0 in found):
        return 0
    if len(found) > 1:
        numbers = " and ".join(str(place + 1) for place in found)
        raise BadRowError(
            f"columns {numbers} both look like labels, with values such as "
            f"{', '.join(repr(columns[place][0][:40]) for place in found)}: "
            "name the columns with --columns (2,3,1: label first; 1,2,3: label last)"
        )
    if found == [1]:
        raise BadRowError("column 2 looks like the label: name the columns with --columns 1,3,2")
    return found[0]


def _likeness_to_labels(values: Sequence[str]) -> int:
    """How much a column looks like one of labels: which have few values, and short ones that recur."""
    known = sum(value.lower() in _KNOWN_LABELS or _SHORT_NUMBER.fullmatch(value) is not None for value in values)
    if known >= 0.9 * len(values):
        return 3
    different = set(values)
    if len(values) < _FEW_ROWS or len(different) > min(len(values) / 2, max(10, len(values) / 5)):
        return 0
    if any(len(value) > _LONGEST_LABEL for value in different):
        return 0
    return 1 if any(" " in value for value in different) else 2


def _refuse_unknown_header(rows: Sequence[Sequence[str]], label: int) -> None:
    """A label that only the first row has, while all others are known or recur, is the name of a column."""
    first, *others = (row[label].strip() for row in rows if len(row) == len(rows[0]))
    recur = all(_likeness_to_labels([other]) == 3 or others.count(other) > 1 for other in set(others))
    if len(others) > 1 and recur and first not in others and _likeness_to_labels([first]) == 0:
        raise BadRowError(
            f"no other row has the label {first[:40]!r}; if this row is a header, name its columns with --columns"
        )


def either(names: Sequence[str]) -> str:
    """Names as one says them: "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))

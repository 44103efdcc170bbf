"""Work out which column of a file is which: from its header, from its values, or from what the user says."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BadRowError, listed
from .scores import is_score

NAMES = {
    "premise": (
        *("sentence1", "premise", "question1", "text_a"),
        *("sentence_a", "#1 string", "context", "question", "query"),  # SICK, MRPC, ANLI, QNLI, ranking
    ),
    "hypothesis": (
        *("sentence2", "hypothesis", "question2", "text_b"),
        *("sentence_b", "#2 string", "hypo", "sentence"),  # SICK, MRPC, XNLI's translations, QNLI
        *("candidate", "passage"),  # ranking
    ),
    "label": (
        *("gold_label", "label", "is_duplicate"),
        *("entailment_label", "entailment_judgment", "quality", "relevant"),  # SICK (in two forms), MRPC, ranking
    ),
}
# If scores are wanted; SICK has both scores and labels.
SCORE_NAMES = {
    **NAMES,
    "label": (
        *("score", "relatedness_score"),  # STS-B, SICK
        *("similarity_score", "similarity", "label", "gold_label"),  # label: STS-B on the Hugging Face Hub
    ),
}
# Known names of ids, from SNLI, SICK, sentence-transformers, ANLI, Quora, Hugging Face's datasets and GLUE.
IDS = ("pairid", "pair_id", "guid", "uid", "id", "idx", "index")
SPLITS = ("split", "semeval_set")  # columns that may name the split a row belongs to
PARTS = ("train", "dev", "valid", "validation", "val", "trial", "test")
_LEFT_OUT = ["label2", "label3", "label4", "label5"]  # in MultiNLI's header, but not in its training rows
_LAST_LABELS = re.compile("label[1-5]")  # labels of single annotators, which precede the gold one in GLUE
_KNOWN_LABELS = {
    *("entailment", "neutral", "contradiction", "contradictory", "entails", "蕴含", "中立", "矛盾"),
    *("not_entailment", "not-entailment", "non-entailment", "duplicate", "not_duplicate", "paraphrase"),
    *("equivalent", "not_equivalent", "match", "similar", "different", "positive", "negative"),
    *("yes", "no", "true", "false", "-", "-1"),
}
_SHORT_NUMBER = re.compile(r"\d{1,2}(\.0+)?")
_LONGEST_NAME = 30  # characters in a column's name
_HANZI = re.compile("[\u4e00-\u9fff]")
_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")
_FEW_ROWS = 10  # fewer rows do not tell what a column holds
_DELIMITERS = ("\t", ";", "|", ",")


@dataclass(frozen=True)
class Columns:
    """The places of a pair's parts in a row.

    Attributes:
        places: columns of premise, hypothesis and, if there is one, label; -1 is the last column.
        widths: the numbers of columns that a row may have.
        header: the names of the columns, if the first row is a header.
        split: the column that names the split a row belongs to.
        id: the column with a known name for ids.
    """

    places: dict[str, int]
    widths: tuple[int, ...]
    header: list[str] | None = None
    split: int | None = None
    id: int | None = None


def split_row(text: str, delimiter: str | None) -> list[str]:
    """Split a row into fields; without a delimiter, split at tabs and treat quotes as ordinary characters.

    Raises:
        BadRowError: the quoting is invalid.
    """
    if delimiter is None:
        return text.split("\t")
    if "\0" in text:  # Python 3.10's csv module cannot split it
        raise BadRowError("NUL character")
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadRowError(f"invalid quoting: {error}") from error


def detected_delimiter(lines: Sequence[str], usual: str) -> str:
    """Return the delimiter that a file's first lines suggest, or the ``usual`` one, a tab or a comma.

    Raises:
        BadRowError: several delimiters are possible.
    """
    # Sentences contain commas and semicolons too, so a delimiter must give every line the same number of columns.
    lines = list(filter(str.strip, lines))
    widths = {delimiter: {_width(line, delimiter) for line in lines} for delimiter in _DELIMITERS}
    if len(lines) < 2 or (usual == "\t" and widths["\t"] != {1} and len(widths["\t"]) == 1):
        return usual
    least = 2 if widths[usual] == {1} else 3
    found = [delimiter for delimiter in _DELIMITERS if len(widths[delimiter]) == 1 and min(widths[delimiter]) >= least]
    if usual == "\t" and "," in found and len(_known_columns(lines[0].replace('"', "").split(","))) < 2:
        found.remove(",")  # the lines are plain sentences
    if "\t" in found:  # sentences contain no tabs
        return "\t"
    if len(found) > 1:
        raise BadRowError(f"columns could be separated by {' or '.join(found)}; choose one with --delimiter")
    return found[0] if found else usual


def _width(line: str, delimiter: str) -> int:
    return re.sub('"(?:[^"]|"")*"', "", line).count(delimiter) + 1


def _known_columns(fields: Sequence[str], known_names: Mapping[str, Sequence[str]] = NAMES) -> dict[str, int]:
    """Map roles (premise, hypothesis, label) to the columns of a header with known names."""
    lower = [field.strip().lower() for field in fields]
    named = {
        role: next((lower.index(name) for name in names if name in lower), None) for role, names in known_names.items()
    }
    return {role: column for role, column in named.items() if column is not None}


def find_columns(
    rows: Sequence[Sequence[str]], wanted: Sequence[str] | None, labeled: bool, scores: bool = False
) -> Columns:
    """Work out the columns of a file from its first rows.

    Args:
        rows: the fields of one row or more.
        wanted: names or numbers of columns that the user gave, as in ``CorpusFormat.columns``.
        labeled: whether labels are required.
        scores: whether labels are scores.

    Raises:
        BadRowError: the first row is malformed, or the rows do not settle which column is which.
    """
    fields = [field.strip() for field in rows[0]]
    lower = [field.lower() for field in fields]
    known_names = SCORE_NAMES if scores else NAMES
    twice = next((name for names in known_names.values() for name in names if lower.count(name) > 1), None)
    if twice is not None and wanted is None:
        raise BadRowError(f"two columns are called {twice}; choose columns by number with --columns")
    known = _known_columns(fields, known_names)
    required = tuple(NAMES) if labeled else ("premise", "hypothesis")
    if wanted is not None and all(map(str.isdecimal, wanted)):
        places = {role: int(number) - 1 for role, number in zip(NAMES, wanted, strict=False)}
        places = {role: place for role, place in places.items() if role in required or place < len(fields)}
        most = max(places.values()) + 1
        if most > len(fields):
            raise BadRowError(f"expected at least {most} columns, got {len(fields)}")
        # Skip a header with known names even if the columns are numbered.
        if len(places.items() & known.items()) < 2:
            return Columns(places, (len(fields),))
    elif wanted is not None:
        names = dict(zip(NAMES, wanted, strict=False))
        for role, name in names.items():
            if name not in fields and role in required:
                raise BadRowError(f"expected a column {name} in the header, got {listed(fields)}")
        places = {role: fields.index(name) for role, name in names.items() if name in fields}
    elif len(known) >= 2 or ("label" in known and len(fields) >= len(NAMES) and lower[known["label"]] != "relevant"):
        for role in required:
            if role not in known:
                has_scores = role == "label" and "label" in _known_columns(fields, SCORE_NAMES)
                hint = " (for scores, use train --task regression)" if has_scores else ""
                raise BadRowError(
                    f"expected a column {either(known_names[role][:4])} in the header, got {listed(fields)}; "
                    f"name the columns with --columns{hint}"
                )
        places = known
    else:
        return _without_header(rows, labeled, scores)
    header = list(rows[0])
    split = next((lower.index(name) for name in SPLITS if name in lower), None) if labeled else None
    ids = (lower.index(name) for name in IDS if lower.count(name) == 1)
    id_place = next((place for place in ids if place not in places.values()), None)
    if fields[-len(_LEFT_OUT) :] == _LEFT_OUT:
        return Columns(places, (len(fields), len(fields) - len(_LEFT_OUT)), header, split, id_place)
    if places.get("label") == len(fields) - 1:
        # In GLUE's SNLI, the gold label is last, after the labels of one annotator or of five.
        given = sum(_LAST_LABELS.fullmatch(name) is not None for name in fields)
        if given and "sentence1_binary_parse" in lower:
            others = (len(fields) - given + count for count in (1, 5) if count != given)
            return Columns({**places, "label": -1}, (len(fields), *others), header, split, id_place)
    return Columns(places, (len(fields),), header, split, id_place)


def _without_header(rows: Sequence[Sequence[str]], labeled: bool, scores: bool) -> Columns:
    count = len(rows[0])
    if count == 2 and not labeled:
        return Columns({"premise": 0, "hypothesis": 1}, (2,))
    if count != 3:
        expected = f"{'3' if labeled else '2 or 3'} columns, a header with known names, or --columns P,H,LABEL"
        hint = ""
        if count == 1 and rows[0][0].startswith("sep="):
            hint = " (Excel's delimiter line; remove it)"
        elif count == 1:
            hint = " (another delimiter? Use --delimiter. One sentence per line? Join the files with paste)"
        raise BadRowError(f"expected {expected}, got {count}: {listed(rows[0])}{hint}")
    label = _label_column([row for row in rows[1:] if len(row) == count], scores)  # the first row may be a header
    _refuse_unknown_header(rows, label, scores)
    places = {0: (1, 2, 0), 2: (0, 1, 2)}[label]
    return Columns(dict(zip(NAMES, places, strict=True)), (3,))


def _label_column(rows: Sequence[Sequence[str]], scores: bool) -> int:
    """Return which of three columns is the label, 0 or 2; 0 if the rows do not tell."""
    if not rows:
        return 0
    columns = [[value.strip() for value in column] for column in zip(*rows, strict=True)]
    first, middle, last = likeness = list(map(_likeness_to_scores if scores else _likeness_to_labels, columns))
    others = max(middle, last)
    if first and (others == 0 or (first == 3 and (others < 3 or len(rows) < _FEW_ROWS))):
        return 0
    if first == 0:
        begins_with_sentences = scores or any(map(_is_sentence, columns[0]))  # or at least not with numbers
        if last > middle and (begins_with_sentences or len(rows) >= _FEW_ROWS):
            return 2
        if middle > last:
            raise BadRowError("column 2 looks like the label; name the columns with --columns 1,3,2")
        if others == 0 and not begins_with_sentences:
            return 0
    found = [place for place in range(3) if place == 0 or likeness[place] or not any(likeness)]
    numbers = _joined([str(place + 1) for place in found], "and")
    values = ", ".join(repr(columns[place][0][:40]) for place in found)
    raise BadRowError(
        f"columns {numbers} could be the label, with values such as {values}; "
        "use --columns 2,3,1 if the label comes first, 1,2,3 if it comes last"
    )


def _likeness_to_labels(values: Sequence[str]) -> int:
    """Rate how much a column looks like labels, which have few distinct values that are short and recur."""
    if sum(map(_is_known_label, values)) >= 0.9 * len(values):
        return 3
    different = set(values)
    if len(values) < _FEW_ROWS or len(different) > min(len(values) / 2, max(10, len(values) / 5)):
        return 0
    if any(map(_is_sentence, different)):
        return 0
    return 1 if any(" " in value for value in different) else 2


def _likeness_to_scores(values: Sequence[str]) -> int:
    return 3 if sum(map(is_score, values)) >= 0.9 * len(values) else 0


def _is_known_label(value: str) -> bool:
    return value.lower() in _KNOWN_LABELS or _SHORT_NUMBER.fullmatch(value) is not None


def _is_sentence(value: str) -> bool:
    """Return whether a value is longer than labels are, or ends like a sentence."""
    return value.count(" ") > 2 or len(_HANZI.findall(value)) > 5 or value.endswith(_SENTENCE_ENDS)


def _refuse_unknown_header(rows: Sequence[Sequence[str]], label: int, scores: bool) -> None:
    """Raise BadRowError if the first row's label occurs only there while all others are known or recur."""
    first, *others = (row[label].strip() for row in rows if len(row) == len(rows[0]))
    is_known = is_score if scores else _is_known_label
    recur = all(is_known(other) or others.count(other) > 1 for other in set(others))
    names = all(len(value) <= _LONGEST_NAME and not _is_sentence(value) for value in rows[0])
    if names and len(others) > 1 and recur and first not in others and not is_known(first):
        raise BadRowError(
            f"no other row has the label {first[:40]!r}; if this row is a header, use --columns with names, "
            "otherwise with numbers"
        )


def either(names: Sequence[str]) -> str:
    """Join names as in "a, b or c"."""
    return _joined(names, "or")


def _joined(names: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(filter(None, (", ".join(names[:-1]), names[-1])))

"""Write the pairs that a model got wrong, as an HTML page or as JSON lines."""

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..classifier import Classifier
from ..data import Pair
from ..explanation import page_of
from ..files import replace_file
from .figures import Answers, Scores

FORMS = (".html", ".jsonl")
_MAPS = 200  # pairs with attention maps, from the first on
_CELLS = 5000  # most cells of an attention map
_ON_A_PAGE = 5000  # most pairs on a page; JSON lines hold all
_LIKELIEST = 10  # most probabilities of a pair on a page
_TABLE = 30  # most labels of a confusion matrix on a page


def worst_first(answers: Answers | Scores) -> np.ndarray:
    """Indices of the wrong pairs, the most confident predictions first: int64.

    In regression, indices of all pairs, the farthest from their gold scores first.
    """
    if isinstance(answers, Scores):
        return np.argsort(-np.abs(answers.given - answers.gold), kind="stable")
    wrong = np.flatnonzero(answers.given != answers.gold)
    confidence = answers.probabilities[wrong, answers.given[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")]


def save(path: Path, answers: Answers | Scores, pairs: Mapping[int, Pair], model: Classifier, source: str) -> None:
    """Write the pairs of ``worst_first`` to a file.

    Args:
        path: the file, whose suffix is one of ``FORMS``.
        answers: the model's predictions.
        pairs: the pairs by index, at least those of ``worst_first``.
        model: the model, for its attention maps.
        source: the name of the pairs' file.

    Raises:
        OSError: the file cannot be written.
    """
    order = worst_first(answers)
    if path.suffix.lower() == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(order, answers, pairs, model))

        def write(partial: Path) -> None:
            with open(partial, "w", encoding="utf-8") as file:
                file.writelines(lines)

        replace_file(path, write)
        return
    content: dict[str, Any] = {
        "source": source,
        "pairs": len(answers.gold),
        "wrong": len(order),
        "maps": _MAPS,
        "errors": [_shortened(row) for row in _rows(order[:_ON_A_PAGE], answers, pairs, model)],
    }
    if isinstance(answers, Answers):
        content["labels"] = answers.labels
        content["confusion"] = answers.confusion().tolist() if len(answers.labels) <= _TABLE else None
    page = page_of((resources.files(__package__) / "errors.html").read_text(encoding="utf-8"), content)
    replace_file(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def _rows(
    order: np.ndarray, answers: Answers | Scores, pairs: Mapping[int, Pair], model: Classifier
) -> Iterator[dict[str, Any]]:
    for place, index in enumerate(order.tolist()):
        pair = pairs[index]
        row: dict[str, Any] = {"line": pair.line}
        if pair.id is not None:
            row["id"] = pair.id
        row.update(premise=pair.premise, hypothesis=pair.hypothesis)
        if isinstance(answers, Scores):
            row.update(gold=float(answers.gold[index]), score=round(float(answers.given[index]), 6))
        else:
            row.update(gold=answers.labels[answers.gold[index]], label=answers.labels[answers.given[index]])
            probabilities = [round(value, 6) for value in answers.probabilities[index].tolist()]
            row["probabilities"] = dict(zip(answers.labels, probabilities, strict=True))
        if place < _MAPS and (attention := _attention(pair, model)):
            row["attention"] = attention
        yield row


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its highest probabilities only, because many labels in thousands of rows make a page slow."""
    probabilities = row.get("probabilities", {}).items()
    if len(probabilities) <= _LIKELIEST:
        return row
    likeliest = sorted(probabilities, key=lambda item: (item[0] not in (row["gold"], row["label"]), -item[1]))
    return {**row, "probabilities": dict(likeliest[:_LIKELIEST])}


def _attention(pair: Pair, model: Classifier) -> dict[str, Any] | None:
    """The attention maps of a pair, or None if it has too many words or none."""
    if not 0 < len(model.split(pair.premise)) * len(model.split(pair.hypothesis)) <= _CELLS:
        return None
    explanation = model.explain(pair.premise, pair.hypothesis).as_dict()
    return {part: explanation[part] for part in ("premise", "hypothesis", "unknown", "alpha", "beta")}

"""The soft alignment's weights between the words of a pair, as a picture, an HTML page or JSON."""

import json
import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import replace_file
from . import picture

_FORMS = (".png", ".html", ".json")


@dataclass(frozen=True, eq=False)
class Explanation:
    """The attention between the words of a pair, with the model's prediction.

    Attributes:
        premise: its Lp words.
        hypothesis: its Lh words.
        alpha: float32 ``[Lp, Lh]``, how much each premise word attends to each hypothesis word. Rows sum to 1
            (equation 12).
        beta: float32 ``[Lp, Lh]``, how much each hypothesis word attends to each premise word. Columns sum to 1
            (equation 13).
        label: the predicted label; in regression, the score.
        probabilities: the probability of each label; empty in regression.
        unknown: words that are not in the vocabulary. The model treats them all as one unknown word.
    """

    premise: list[str]
    hypothesis: list[str]
    alpha: Tensor
    beta: Tensor
    label: str
    probabilities: dict[str, float]
    unknown: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """All fields, as JSON types."""
        return {
            "premise": self.premise,
            "hypothesis": self.hypothesis,
            "label": self.label,
            "probabilities": {label: round(value, 6) for label, value in self.probabilities.items()},
            "unknown": sorted(self.unknown),
            "alpha": _rounded(self.alpha),
            "beta": _rounded(self.beta),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save a picture (``.png``, needs matplotlib), an HTML page (``.html``) or the numbers (``.json``).

        Args:
            path: the file, whose suffix chooses the format.

        Raises:
            ValueError: the file has another suffix.
            ImportError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        path = Path(path)
        check_form(path)
        if path.suffix.lower() == ".png":
            replace_file(path, lambda partial: picture.draw(partial, **vars(self)))
            return
        if path.suffix.lower() == ".html":
            text = page_of((resources.files(__package__) / "page.html").read_text(encoding="utf-8"), self.as_dict())
        else:
            text = json.dumps(self.as_dict(), ensure_ascii=False) + "\n"
        replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def page_of(template: str, content: dict[str, Any]) -> str:
    """Fill a template with the code that draws attention maps and with ``content`` as JSON.

    The page loads no other file, and no content can become markup.
    """
    for name in ("maps.css", "maps.js"):
        template = template.replace(
            f"{{{{{name}}}}}", (resources.files(__package__) / name).read_text(encoding="utf-8")
        )
    # Last, so that no placeholder inside the content is replaced.
    return template.replace("{{content}}", json.dumps(content, ensure_ascii=False).replace("<", r"\u003c"))


def check_form(path: str | os.PathLike[str]) -> None:
    """Check that ``Explanation.save`` supports the suffix.

    Raises:
        ValueError: it does not.
    """
    if Path(path).suffix.lower() not in _FORMS:
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in {', '.join(_FORMS[:-1])} or {_FORMS[-1]}")


def _rounded(weights: Tensor) -> list[list[float]]:
    return [[round(weight, 4) for weight in row] for row in weights.tolist()]

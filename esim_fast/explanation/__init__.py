"""Which words of a pair look at which: the soft alignment's weights, as a picture, a page or numbers."""

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
    """The attention between the words of a pair, and what the model made of it.

    Attributes:
        premise, hypothesis: their words, Lp and Lh.
        alpha: float32 ``[Lp, Lh]``, how much each word of the premise looks at each of the hypothesis; rows sum to one
            (equation 12).
        beta: float32 ``[Lp, Lh]``, how much each word of the hypothesis looks at each of the premise; columns sum to
            one (equation 13).
        label: what the model says; a regression model, its score.
        probabilities: of each label; a regression model has none.
        unknown: words that are not in the vocabulary: the model treats them all as one unknown word.
    """

    premise: list[str]
    hypothesis: list[str]
    alpha: Tensor
    beta: Tensor
    label: str
    probabilities: dict[str, float]
    unknown: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON has it."""
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
        """Writes a picture (``.png``, with matplotlib), a page for a browser (``.html``) or the numbers (``.json``).

        Raises:
            ValueError: the name has another ending.
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
    """A page of what draws attention maps and ``content`` as JSON: one file, which loads nothing.

    Words are text to it, whatever they are.
    """
    for name in ("maps.css", "maps.js"):
        template = template.replace(
            f"{{{{{name}}}}}", (resources.files(__package__) / name).read_text(encoding="utf-8")
        )
    # Last, because nothing in it is to be replaced.
    return template.replace("{{content}}", json.dumps(content, ensure_ascii=False).replace("<", r"\u003c"))


def check_form(path: str | os.PathLike[str]) -> None:
    """Whether :meth:`Explanation.save` knows what to write into a file of this name.

    Raises:
        ValueError: it does not.
    """
    if Path(path).suffix.lower() not in _FORMS:
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in {', '.join(_FORMS[:-1])} or {_FORMS[-1]}")


def _rounded(weights: Tensor) -> list[list[float]]:
    return [[round(weight, 4) for weight in row] for row in weights.tolist()]

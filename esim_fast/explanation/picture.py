"""Draw an explanation: both directions of attention, side by side."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ft2font import FT2Font
    from matplotlib.image import AxesImage

_CELL = 0.24  # inches
_LONGEST = 80.0  # inches; cells shrink to stay within it
_LONGEST_WORD = 40  # most characters shown of a word
_FEW = 240  # most cells of a map that shows its weights


def draw(
    path: Path,
    *,
    premise: list[str],
    hypothesis: list[str],
    alpha: Tensor,
    beta: Tensor,
    label: str,
    probabilities: dict[str, float],
    unknown: set[str],
) -> None:
    """Draw an Explanation's fields as a PNG with matplotlib, whatever the suffix of ``path``."""
    # Here, because importing it takes a second; without pyplot, which holds on to every figure.
    import matplotlib
    from matplotlib.figure import Figure

    families = fonts_for({*"".join([*premise, *hypothesis, label])})
    cell = min(_CELL, _LONGEST / max(len(premise), 2 * len(hypothesis)))
    names = 0.45 * cell * max(len(plain(word)) for word in [*premise, *hypothesis])  # their rough width
    width, height = 2 * (cell * len(hypothesis) + names) + 1.5, cell * len(premise) + names + 1.2
    with matplotlib.rc_context({"font.family": families, "font.size": 40 * cell, "axes.unicode_minus": False}):
        figure = Figure(figsize=(max(width, 6.0), height), dpi=150, layout="constrained")
        left, right = figure.subplots(1, 2)
        said = f"{plain(label)} ({probabilities[label]:.1%})" if probabilities else plain(label)
        if unknown:
            said += "; gray words are not in the vocabulary"
        above = {"xycoords": "axes fraction", "xytext": (0, 40), "textcoords": "offset points"}
        heading = left.annotate(said, (0, 1), **above, fontsize=11, fontweight="bold")
        heading.set_in_layout(False)  # a long heading must not shrink the maps
        words = (hypothesis, premise, unknown)
        _draw_map(left, *words, alpha.numpy(), "premise to hypothesis\n(rows sum to 1)")
        image = _draw_map(right, *words, beta.numpy(), "hypothesis to premise\n(columns sum to 1)")
        figure.colorbar(image, ax=[left, right], shrink=min(1.0, 2.5 / height), label="weight")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts_for has warned
            figure.savefig(path, format="png", bbox_inches="tight", bbox_extra_artists=[heading], pad_inches=0.15)


def _draw_map(
    axes: Axes, across: list[str], down: list[str], unknown: set[str], weights: np.ndarray, title: str
) -> AxesImage:
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    for axis, words in ((axes.xaxis, across), (axes.yaxis, down)):
        axis.set_ticks(range(len(words)), [plain(word) for word in words])
        for label, word in zip(axis.get_ticklabels(), words, strict=True):
            if word in unknown:
                label.set_color("0.5")
    axes.tick_params(axis="x", rotation=90 if max(map(len, across)) > 1 else 0)
    axes.tick_params(length=0)
    if weights.size <= _FEW:
        for (row, column), weight in np.ndenumerate(weights):
            if weight >= 0.005:
                color = "white" if weight > 0.55 else "black"
                text = f"{weight:.2f}".removeprefix("0")
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=6.5)
    return image


def plain(word: str) -> str:
    """A word for matplotlib: shortened, and with dollar signs escaped, which would start a formula."""
    return (word if len(word) <= _LONGEST_WORD else f"{word[: _LONGEST_WORD - 1]}…").replace("$", r"\$")


def fonts_for(characters: set[str]) -> list[str]:
    """Fonts that together have these characters: matplotlib's own first, then installed ones, e.g. for Chinese."""
    from matplotlib import font_manager, ft2font  # here, because importing them takes a second

    families = ["DejaVu Sans"]
    own = ft2font.FT2Font(font_manager.findfont(families[0]))
    missing = {character for character in characters if character.isprintable()} - _drawn_by(own)
    if missing:
        # matplotlib's cached list lacks fonts that were installed after its first run.
        for path in {*font_manager.findSystemFonts()} - {font.fname for font in font_manager.fontManager.ttflist}:
            with contextlib.suppress(Exception):  # a damaged or deleted font
                font_manager.fontManager.addfont(path)
        # matplotlib's fallback font "Last Resort" has boxes for every character.
        fonts = [font for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name]
        # Prefer upright sans-serif fonts of regular weight; the name makes the order deterministic.
        fonts.sort(
            key=lambda font: ("sans" not in font.name.lower(), font.style != "normal", font.weight != 400, font.name)
        )
        for font in fonts:
            if not missing:
                break
            with contextlib.suppress(Exception):
                if found := missing & _drawn_by(ft2font.FT2Font(font.fname)):
                    families.append(font.name)
                    missing -= found
    if missing:
        some = "".join(sorted(missing)[:10])
        warnings.warn(
            f"no installed font has {some}: boxes replace them (for Chinese, install fonts-noto-cjk or write .html)",
            stacklevel=2,
        )
    return families


def _drawn_by(font: FT2Font) -> set[str]:
    return {chr(code) for code in font.get_charmap()}

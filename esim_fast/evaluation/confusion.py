"""Draw a confusion matrix."""

import warnings
from pathlib import Path

import numpy as np

from ..explanation.picture import fonts_for, plain

_CELL, _SMALL_CELL = 0.62, 0.2  # inches, with and without numbers
_LARGEST = 80.0  # inches; cells shrink to stay within it
_FEW = 40  # most labels whose cells have numbers


def draw(path: Path, labels: list[str], confusion: np.ndarray) -> None:
    """Draw a PNG with matplotlib, whatever the suffix of ``path``.

    Args:
        path: the file to write.
        labels: names of the labels.
        confusion: int64 ``[gold, predicted]``, numbers of pairs.
    """
    import matplotlib  # here, because importing it takes a second
    from matplotlib.figure import Figure

    count, names = len(labels), [plain(label) for label in labels]
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    with_numbers = count <= _FEW
    cell = min(_CELL if with_numbers else _SMALL_CELL, _LARGEST / count)
    beside = 0.1 * max(map(len, names)) + 1.2
    size = max(cell * count, 1.5)
    options = {"font.family": fonts_for({*"".join(labels)}), "font.size": 9 if with_numbers else 36 * cell}
    with matplotlib.rc_context(options):
        figure = Figure(figsize=(size + beside + 0.8, size + beside), dpi=150, layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 4 else 0)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted", fontsize=10)
        axes.set_ylabel("gold", fontsize=10)
        if with_numbers:
            for (gold, given), share in np.ndenumerate(shares):
                text = f"{confusion[gold, given]:,}\n{share:.0%}"
                color = "white" if share > 0.55 else "black"
                axes.text(given, gold, text, ha="center", va="center", color=color, fontsize=7.5)
        figure.colorbar(image, ax=axes, shrink=min(1.0, 2.5 / size), label="share of the gold label")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts_for has warned
            figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15)

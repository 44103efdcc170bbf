"""Draws docs/packed-rows.svg, the data's way through the model, from what ``pack_pairs`` makes of three pairs.

    python tools/draw_packed_rows.py

run in the repository's root.
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from esim_fast import pack_pairs

PAIRS = [
    ("two dogs are running", "dogs sleep"),
    ("a man sleeps", "a man is awake now"),
    ("she sings", "she is silent"),
]
COLOURS = ["#4c78a8", "#f58518", "#54a24b"]  # of the pairs
WAY = [
    ("token ids", "[N]"),
    ("embedding", "[N, E]"),
    ("BiLSTM,\none call", "[N, 2H]"),
    ("local\ninference", "[N, 8H]"),
    ("projection", "[N, H]"),
    ("BiLSTM,\none call", "[N, 2H]"),
    ("pooling", "[B, 8H]"),
    ("classifier", "[B, labels]"),
]


def draw_word(axes: Axes, x: float, y: float, word: str, colour: str, is_premise: bool, row: int | None = None) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, alpha=0.75 if is_premise else 0.4, edgecolor="white"))
    axes.text(x + 0.5, y + (0.5 if row is None else 0.62), word, ha="center", va="center", fontsize=7.5)
    if row is not None:
        axes.text(x + 0.5, y + 0.24, f"row {row}", ha="center", va="center", fontsize=5.5, color="0.25")


def draw_padded(axes: Axes, sentences: list[list[str]], left: float, top: float, title: str, is_premise: bool) -> None:
    width = max(map(len, sentences))
    axes.text(left, top + 0.35, title, fontsize=9)
    for b, words in enumerate(sentences):
        for t in range(width):
            if t < len(words):
                draw_word(axes, left + t, top - 1 - b, words[t], COLOURS[b], is_premise)
            else:
                axes.add_patch(Rectangle((left + t, top - 1 - b), 1, 1, facecolor="0.93", edgecolor="white"))
                axes.text(left + t + 0.5, top - 0.5 - b, "pad", ha="center", va="center", fontsize=6.5, color="0.6")


def draw_packed(axes: Axes, premises: list[list[str]], hypotheses: list[list[str]], left: float, top: float) -> None:
    lengths = [torch.tensor([len(words) for words in side]) for side in (premises, hypotheses)]
    ids = [
        torch.zeros(len(side), int(of.max()), dtype=torch.int64)
        for side, of in zip((premises, hypotheses), lengths, strict=True)
    ]
    pairs = pack_pairs(*ids, *lengths)
    sentences, rank, first_row = [*premises, *hypotheses], pairs.rank.tolist(), pairs.first_row.tolist()
    axes.text(
        left, top + 0.35, f"packed: N = {len(pairs.tokens)} rows, the longest sentence first, step by step", fontsize=9
    )
    for sentence, words in enumerate(sentences):
        for t, word in enumerate(words):
            colour, row = COLOURS[sentence % len(premises)], first_row[t] + rank[sentence]
            draw_word(axes, left + t, top - 1 - rank[sentence], word, colour, sentence < len(premises), row)
    for t in range(len(first_row)):
        axes.text(left + t + 0.5, top - len(sentences) - 0.35, f"step {t}", ha="center", va="center", fontsize=6.5)


def main() -> None:
    premises, hypotheses = ([pair[side].split() for pair in PAIRS] for side in (0, 1))
    # Words stay text, and the file is the same each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "esim_fast", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9.6, 5.6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.2, 13.7), ylim=(-3.0, 8.5))
        axes.axis("off")
        draw_padded(axes, premises, 0, 7.8, "premises [B, Lp]", True)
        draw_padded(axes, hypotheses, 0, 3.2, "hypotheses [B, Lh]", False)
        arrow = {"arrowstyle": "-|>", "color": "0.4", "lw": 1.4}
        axes.annotate("", (6.9, 4.8), (5.5, 4.8), arrowprops=arrow)
        axes.text(6.2, 5.15, "pack_pairs", ha="center", fontsize=8)
        draw_packed(axes, premises, hypotheses, 7.4, 7.8)
        for index, (stage, shape) in enumerate(WAY):
            x = 0.05 + 1.7 * index
            axes.add_patch(Rectangle((x, -2.2), 1.35, 1.1, facecolor="#eef1f6", edgecolor="0.55"))
            axes.text(x + 0.675, -1.65, stage, ha="center", va="center", fontsize=7.5)
            axes.text(x + 0.675, -2.6, shape, ha="center", va="center", fontsize=7.5, color="0.3")
            if index:
                axes.annotate("", (x, -1.65), (x - 0.35, -1.65), arrowprops=arrow)
        Path("docs").mkdir(exist_ok=True)
        figure.savefig("docs/packed-rows.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

"""The curves of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from ..files import replace_file
from .progress import EpochMetrics

_TRAIN, _DEV, _GRAY = "#8a8f98", "#1f6fb4", "#5a5f66"


def draw_curves(history: Sequence[EpochMetrics], best: EpochMetrics, path: Path) -> None:
    """Draws loss and accuracy by epoch, on training and dev pairs, if matplotlib is there; ``best`` is marked."""
    try:
        from matplotlib.figure import Figure  # a second to import, and needed for nothing else
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError:
        return
    epochs = [metrics.epoch for metrics in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for part, color, label in (("train", _TRAIN, "training, with dropout"), ("dev", _DEV, "dev")):
            values = [getattr(metrics, f"{part}_{name}") for metrics in history]
            axes.plot(epochs, values, color=color, marker="o", markersize=3.5, label=label)
        axes.axvline(best.epoch, color=_GRAY, linewidth=0.8, linestyle=":")
        axes.set_title(name, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    accuracy.annotate(f"{best.dev_accuracy:.2%}", (best.epoch, best.dev_accuracy), **above, color=_DEV)
    accuracy.margins(y=0.15)
    loss.legend(frameon=False)
    replace_file(path, lambda partial: figure.savefig(partial, format="png", dpi=130))

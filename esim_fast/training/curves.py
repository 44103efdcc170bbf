"""Draw the curves of a run."""

from collections.abc import Sequence
from pathlib import Path

from ..files import replace_file
from .figures import Figure
from .progress import EpochMetrics

_TRAIN, _DEV, _SECOND, _GRAY = "#8a8f98", "#1f6fb4", "#c2571a", "#5a5f66"
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
_ON_TRAIN = "training, with dropout"
# The lines of each panel: attribute, color and name. Lines that were not measured are skipped.
_PANELS = {
    "loss": (("train_loss", _TRAIN, _ON_TRAIN), ("dev_loss", _DEV, "dev")),
    "accuracy": (("train_accuracy", _TRAIN, _ON_TRAIN), ("dev_accuracy", _DEV, "dev")),
    "F1": (("dev_macro_f1", _DEV, "dev"), ("dev_f1", _DEV, "dev")),
    "AUC": (("dev_auc", _DEV, "dev"),),
    "correlation": (("dev_spearman", _DEV, "Spearman, dev"), ("dev_pearson", _SECOND, "Pearson, dev")),
}
_IN_PERCENT = ("accuracy", "F1")


def draw_curves(history: Sequence[EpochMetrics], best: EpochMetrics, figure: Figure, path: Path) -> None:
    """Draw the metrics by epoch, if matplotlib is installed.

    Args:
        history: metrics of every epoch.
        best: the epoch to mark.
        figure: the figure that chose it.
        path: of the PNG file.
    """
    try:
        from matplotlib.figure import Figure as Picture  # here, because importing it takes a second
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError:
        return
    measured = {name for metrics in history for name in metrics.as_dict()}
    panels = {title: [line for line in lines if line[0] in measured] for title, lines in _PANELS.items()}
    panels = {title: lines for title, lines in panels.items() if lines}
    epochs = [metrics.epoch for metrics in history]
    picture = Picture(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    # The number above the best epoch is the figure that chose it, or its accuracy if the loss did.
    marked = f"dev_{figure.field}" if figure.field != "loss" else "dev_accuracy"
    for axes, (title, lines) in zip(picture.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, color, label in lines:
            axes.plot(epochs, [getattr(m, name) for m in history], color=color, marker="o", markersize=3.5, label=label)
        axes.axvline(best.epoch, color=_GRAY, linewidth=0.8, linestyle=":")
        axes.set_title(figure.name if title == "F1" else title, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        if title in _IN_PERCENT:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if title != "loss":  # leave room for the number above the best epoch
            axes.margins(y=0.15)
        if title in ("loss", "correlation"):
            axes.legend(frameon=False)
        value = getattr(best, marked)
        if value is not None and marked in [name for name, *_ in lines]:
            above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
            text = format(value, ".2%" if title in _IN_PERCENT else figure.form)
            axes.annotate(text, (best.epoch, value), **above, color=_DEV, bbox=_ON_WHITE)
    replace_file(path, lambda partial: picture.savefig(partial, format="png", dpi=130))

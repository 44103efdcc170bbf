"""The report's plots: esim_fast in blue, its peers in gray, told apart by shade and marker, not by color alone."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_BLUES = ["#08306b", "#2171b5", "#6baed6", "#c6dbef"]
_GRAYS = ["#1a1a1a", "#4d4d4d", "#777777", "#999999", "#b8b8b8", "#d4d4d4", "#ececec"]
_MARKERS = "osD^vPX"
_MOST_BLOCKS = 8  # of bars in one picture; more become a picture for each pass
_MEMORY = ("memory", "memory of local_inference")
_CEILINGS = "ceilings"  # figures of the device, nothing to compare
_BATCH, _LENGTH = "growth with the batch", "growth with the length"

Comparison = dict[str, Any]  # as timing.Comparison is written in JSON


def draw_all(comparisons: list[Comparison], folder: Path) -> dict[str, list[str]]:
    """Writes every plot that there is something to draw for; returns their file names by group."""
    pictures: dict[str, list[str]] = {}
    for group in dict.fromkeys(comparison["group"] for comparison in comparisons):
        if group in ("", _CEILINGS):
            continue
        of_group = [comparison for comparison in comparisons if comparison["group"] == group]
        for name, figure in _figures(group, of_group):
            file = f"{name.replace(' ', '-').replace('+', 'and').replace(',', '')}.png"
            figure.savefig(folder / file, dpi=150, bbox_inches="tight")
            pyplot.close(figure)
            pictures.setdefault(group, []).append(file)
    return pictures


def _figures(group: str, comparisons: list[Comparison]) -> list[tuple[str, Figure]]:
    """The plots of one group, each with its name."""
    if group == _BATCH:
        return [(group, _token_figure(comparisons))]
    if group == _LENGTH:
        return [(group, _length_figure(comparisons))]
    figures = []
    for precision, of_precision in _split(comparisons, "precision").items():
        name = f"{group} {precision}".strip()
        if group in _MEMORY:
            figures.append((name, _bars(f"{name}: MB", of_precision, lambda c, v: c["values"][v] / 1e6, "{:,.1f}")))
            continue
        passes = _split(of_precision, "pass")
        for which, blocks in passes.items() if len(of_precision) > _MOST_BLOCKS else [("", of_precision)]:
            what = f"{name} {which}".strip()
            figures.append((what, _bars(f"{what}: times as fast as the first", blocks, _ratio, "{:.2f}")))
        for which, of_pass in passes.items():
            points = [c for c in of_pass if c["parameters"].get("lengths") == "SNLI" and "batch" in c["parameters"]]
            if len({c["parameters"]["batch"] for c in points}) > 1:
                what = " ".join(filter(None, (name, which)))
                figures.append((f"{what} against batch", _batch_figure(what, points)))
    return figures


def _split(comparisons: list[Comparison], parameter: str) -> dict[str, list[Comparison]]:
    parts: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        parts.setdefault(str(comparison["parameters"].get(parameter, "")), []).append(comparison)
    return parts


def _variants(comparisons: list[Comparison]) -> dict[str, tuple[str, str]]:
    """Color and marker of each variant, ours last."""
    names = list(dict.fromkeys(name for comparison in comparisons for name in comparison["values"]))
    peers = [name for name in names if not name.startswith("esim_fast")]
    ours = [name for name in names if name.startswith("esim_fast")]
    colors = {name: _GRAYS[i % len(_GRAYS)] for i, name in enumerate(peers)}
    colors |= {name: _BLUES[i % len(_BLUES)] for i, name in enumerate(ours)}
    return {name: (color, _MARKERS[i % len(_MARKERS)]) for i, (name, color) in enumerate(colors.items())}


def _ratio(comparison: Comparison, variant: str) -> float:
    return next(iter(comparison["values"].values())) / max(comparison["values"][variant], 1e-12)


def _bars(title: str, comparisons: list[Comparison], value, form: str) -> Figure:
    """Horizontal bars, a block for each comparison, with their values written beside them."""
    styles = _variants(comparisons)
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + sum(0.24 * len(c["values"]) + 0.3 for c in comparisons)))
    at, ticks, largest = 0.0, [], 0.0
    for comparison in comparisons:
        begin = at
        for name in (name for name in styles if name in comparison["values"]):
            length = value(comparison, name)
            largest = max(largest, length)
            axes.barh(at, length, height=0.9, color=styles[name][0], edgecolor="#444444", linewidth=0.4)
            text = axes.annotate(
                form.format(length), (length, at), (3, 0), textcoords="offset points", va="center", size=7
            )
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # over the dotted line
            at += 1
        ticks.append(((begin + at - 1) / 2, _circumstances(comparison)))
        at += 1
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks], size=8)
    axes.set_ylim(at - 0.8, -0.8)
    axes.set_xlim(0, 1.12 * largest)
    if "times" in title:
        axes.axvline(1, color="#444444", linewidth=0.8, linestyle=":", zorder=0.5)
    axes.set_title(title, size=10)
    _legend(axes, styles)
    return figure


def _circumstances(comparison: Comparison) -> str:
    """What tells this comparison from its neighbors, on two lines."""
    parameters = comparison["parameters"]
    first = ", ".join(filter(None, (str(parameters.get("lengths", "")), f"batch {parameters.get('batch', '')}")))
    return "\n".join(filter(None, (first, str(parameters.get("pass", "")))))


def _batch_figure(title: str, comparisons: list[Comparison]) -> Figure:
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    styles = _variants(comparisons)

    def milliseconds(comparison: Comparison, name: str) -> float:
        return 1e3 * comparison["values"][name] / comparison["parameters"].get("batches", 1)

    _lines(axes, comparisons, "batch", milliseconds, styles)
    axes.set(title=f"{title}, SNLI's lengths", xlabel="pairs in a batch", ylabel="ms a batch")
    _legend(axes, styles)
    return figure


def _token_figure(comparisons: list[Comparison]) -> Figure:
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    by_precision = _split(comparisons, "precision")
    shades = {precision: (_BLUES[i], _MARKERS[i]) for i, precision in enumerate(by_precision)}
    for precision, points in by_precision.items():
        name = next(iter(points[0]["values"]))
        style = {name: shades[precision]}
        _lines(axes, points, "batch", lambda c, name: 1e6 * c["values"][name], style)
    axes.set(title="forward + backward of esim_fast, SNLI's lengths", xlabel="pairs in a batch", ylabel="µs a token")
    _legend(axes, shades)
    return figure


def _length_figure(comparisons: list[Comparison]) -> Figure:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.5))
    styles = _variants(comparisons)

    def nanoseconds_a_score(comparison: Comparison, name: str) -> float:
        parameters = comparison["parameters"]
        return 1e9 * comparison["values"][name] / (parameters["batch"] * parameters["length"] ** 2)

    _lines(left, comparisons, "length", lambda c, name: 1e3 * c["values"][name], styles)
    _lines(right, comparisons, "length", nanoseconds_a_score, styles)
    pairs = comparisons[0]["parameters"]["batch"]
    left.set(title=f"local_inference, forward + backward, {pairs} pairs", ylabel="ms")
    right.set(title="for each score", ylabel="ns / (pairs · La · Lb)")
    for axes in (left, right):
        axes.set_xlabel("tokens of premise and of hypothesis")
    _legend(left, styles)
    figure.tight_layout()
    return figure


def _lines(axes: Axes, comparisons: list[Comparison], x: str, y, styles: dict[str, tuple[str, str]]) -> None:
    """One line for each variant, on logarithmic axes whose ticks are the points measured."""
    comparisons = sorted(comparisons, key=lambda comparison: comparison["parameters"][x])
    for name, (color, marker) in styles.items():
        points = [(c["parameters"][x], y(c, name)) for c in comparisons if name in c["values"]]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, linewidth=1.5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    places = [comparison["parameters"][x] for comparison in comparisons]
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes, styles: dict[str, tuple[str, str]]) -> None:
    """Below the axes, where it covers nothing."""
    bars = bool(axes.patches)
    handles = [
        matplotlib.patches.Patch(facecolor=color, edgecolor="#444444", linewidth=0.4, label=name)
        if bars
        else matplotlib.lines.Line2D([], [], color=color, marker=marker, markersize=5, label=name)
        for name, (color, marker) in styles.items()
    ]
    height = axes.figure.get_size_inches()[1] * axes.get_position().height
    below = -0.45 / height if bars else -0.16
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, below), ncols=2, fontsize=8, frameon=False)

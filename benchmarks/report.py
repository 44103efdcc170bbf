"""Turn the JSON of ``pytest benchmarks/ --benchmark-json FILE`` into a page with tables and figures.

``python -m benchmarks.report FILE ...`` writes report.md, its figures and results.json to the folder
benchmarks/results/<hardware>-<date>. All files must come from one machine; single rounds are left out. A file that is
broken is named and left out.
"""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from esim_fast.cli.options import Parser, UsageError

RESULTS = Path(__file__).parent / "results"


class Figure(NamedTuple):
    title: str
    groups: str  # regular expression
    variants: str = ".*"  # regular expression
    side_by_side: bool = False


FIGURES = {
    "summary.png": Figure(
        "ESIM: times as fast as eager PyTorch",
        r"training, 32 pairs, \w+|inference, (32|1) pairs, \w+",
        r"eager.*|coetaur0 style|torch.compile of eager|ONNX Runtime.*|esim_fast, (packed batches|int8|captured)",
        side_by_side=True,
    ),
    "models.png": Figure("ESIM, times as fast as eager PyTorch", r"(training|inference), \d+ pairs, \w+"),
    "ops.png": Figure(
        "Ops, times as fast as eager PyTorch", r"(masked pool|local inference|bilstm), .*forward \+ backward"
    ),
    "cross-encoders.png": Figure("ESIM beside cross-encoders, times as fast as eager ESIM", r"cross encoders, .*"),
}
# Key in extra_info, heading, scale and number format of each column.
COLUMNS = (
    ("times_as_fast", "times as fast", 1, ",.2f"),
    ("replay_seconds", "replay, ms", 1e3, ",.3f"),
    ("host_seconds", "on the host, ms", 1e3, ",.3f"),
    ("capture_seconds", "to capture, ms", 1e3, ",.1f"),
    ("graph_bytes", "memory of graphs, MB", 1e-6, ",.1f"),
    ("peak_bytes", "peak memory, MB", 1e-6, ",.1f"),
    ("saved_bytes", "kept for backward, MB", 1e-6, ",.1f"),
    ("file_bytes", "file, MB", 1e-6, ",.1f"),
    ("bytes_per_second", "GB/s", 1e-9, ",.1f"),
    ("share_of_copy", "of a copy's rate", 1, ".0%"),
    ("operations_per_second", "GFLOP/s", 1e-9, ",.0f"),
    ("share_of_product", "of a product's rate", 1, ".0%"),
)


class Row(NamedTuple):
    """The result of one variant; ``info`` is pytest-benchmark's extra_info."""

    variant: str
    seconds: float
    rounds: int
    info: dict[str, Any]


def read(files: list[Path]) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Merge files of one machine; return the merged JSON and the rows of each group, or raise UsageError.

    Broken files are left out: an interrupted process may leave half of one. At least one must be whole.
    """
    merged, groups, broken = {}, {}, []
    for file in files:
        try:
            run, rows = json.loads(file.read_text(encoding="utf-8")), []
            for found in run["benchmarks"]:
                stats = found["stats"]
                stats.pop("data", None)
                row = Row(found["params"]["variant"], float(stats["median"]), stats["rounds"], found["extra_info"])
                rows.append((found["group"], row))
            machines = hardware(run), hardware(merged or run)
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            broken.append(f"{file}: expected what pytest benchmarks/ --benchmark-json writes")
            continue
        if len(set(machines)) > 1:
            raise UsageError(f"{file}: measured on {machines[0]}, others on {machines[1]}")
        merged = {**run, **merged, "benchmarks": merged.get("benchmarks", []) + run["benchmarks"]}
        for group, row in rows:
            groups.setdefault(group, []).append(row)
    if not merged:
        raise UsageError("; ".join(broken))
    print(*(f"left out: {message}\n" for message in broken), sep="", end="", file=sys.stderr)
    return merged, groups


def hardware(run: dict[str, Any]) -> str:
    machine = run["machine_info"]
    return machine.get("gpu") or f"{machine['cpu']['brand_raw']}, {machine['threads']} threads"


def write(files: list[Path], folder: Path | None = None) -> Path:
    """Write tables, figures and a copy of the results; return the folder."""
    if not find_spec("matplotlib"):
        raise UsageError('figures need matplotlib (pip install "matplotlib>=3.8")')
    run, groups = read(files)
    folder = folder or RESULTS / re.sub(r"[^a-z0-9]+", "-", f"{hardware(run)} {run['datetime'][:10]}".lower())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = []
    for file, figure in FIGURES.items():
        chosen = {name: rows for name, rows in groups.items() if re.fullmatch(figure.groups, name) and rows[0].info}
        if chosen:
            draw(chosen, figure, folder / file)
            drawn.append(file)
    (folder / "report.md").write_text(page(run, groups, drawn), encoding="utf-8")
    return folder


def page(run: dict[str, Any], groups: dict[str, list[Row]], figures: list[str]) -> str:
    """Format the report in Markdown."""
    machine = run["machine_info"]
    names = ("esim_fast", "torch", "triton", "onnxruntime", "transformers", "cuda", "compiler", "python_version")
    versions = [f"{name} {machine[name]}" for name in names if name in machine]
    lines = [f"# {hardware(run)}, {run['datetime'][:10]}", "", ", ".join(versions), ""]
    lines += [line for file in figures for line in (f"![{FIGURES[file].title}]({file})", "")]
    lines += [line for name, rows in groups.items() for line in (f"## {name}", "", *table(rows), "")]
    return "\n".join(lines)


def table(rows: list[Row]) -> list[str]:
    """Format a group as a Markdown table that is also readable in a terminal."""
    columns = [column for column in COLUMNS if any(column[0] in row.info for row in rows)]
    cells = [["variant", "ms", *(heading for _, heading, *_ in columns), "rounds"]]
    for row in rows:
        info = [f"{scale * row.info[key]:{form}}" if key in row.info else "" for key, _, scale, form in columns]
        cells.append([row.variant, f"{1e3 * row.seconds:,.3f}", *info, str(row.rounds)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])])
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]
    return [f"| {' | '.join(line)} |" for line in aligned]


def draw(groups: dict[str, list[Row]], figure: Figure, path: Path) -> None:
    """Draw a bar chart for each group: the speed of each variant relative to the first."""
    import matplotlib.pyplot as plt

    panels = {
        name: [row for row in rows if re.fullmatch(figure.variants, row.variant)] for name, rows in groups.items()
    }
    sizes = [len(rows) for rows in panels.values()]
    if figure.side_by_side:
        shape = {"ncols": len(sizes), "figsize": (4.2 * len(sizes), 0.36 * max(sizes) + 0.75)}
    else:
        height = 0.32 * sum(sizes) + 0.75 * len(sizes)
        shape = {"nrows": len(sizes), "figsize": (8, height), "height_ratios": sizes}
    canvas, axes = plt.subplots(squeeze=False, **shape)
    canvas.set_layout_engine("constrained")
    for axis, (name, rows) in zip(axes.flat, panels.items(), strict=True):
        values = [row.info.get("times_as_fast", 0.0) for row in rows]
        colors = ["#1f6fb4" if row.variant.startswith("esim_fast") else "#b0b0b0" for row in rows]
        bars = axis.barh([row.variant for row in rows], values, color=colors)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.set_title(re.sub(r"\b1 pairs", "1 pair", name), loc="left", fontsize=10)
        axis.set_xlim(0, 1.15 * max(values))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(figure.title)
    canvas.savefig(path, dpi=120)
    plt.close(canvas)


def main() -> int:
    parser = Parser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a file written by --benchmark-json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of benchmarks/results/…")
    options = parser.parse_args()
    try:
        print(write(options.files, options.output))
    except (OSError, UsageError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the benchmarks measured as a page with tables and plots.

    pytest benchmarks/ --json measured.json && python -m benchmarks.report measured.json

run in the repository's root, makes a folder benchmarks/results/<hardware>-<date> with report.md, its plots and
results.json, a copy of what was measured. Of several files from one machine it makes one report.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.command import Parser

RESULTS = Path(__file__).parent / "results"
# How the units of timing.py are written in tables.
SCALES = {"s": (1e3, "ms"), "bytes": (1e-6, "MB"), "s/token": (1e6, "µs a token")}
_FIELDS = {"environment": str, "hardware": str, "date": str, "measured": list}
_COMPARISON = {"title": str, "values": dict, "notes": list, "unit": str, "group": str, "parameters": dict}


class ReportError(Exception):
    """A mistake of the user's; the message is one line."""


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what pytest benchmarks/ --json wrote")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the folder, instead of benchmarks/results/…")
    options = parser.parse_args(arguments)
    try:
        results = merged([read(file) for file in options.files])
        folder = options.output or RESULTS / f"{slug(results['hardware'])}-{slug(results['date'])}"
        write(results, folder)
    except (ReportError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


def read(file: Path) -> dict[str, Any]:
    """What a run of the benchmarks measured.

    Raises:
        ReportError: the file cannot be read, or holds something else.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{file}: not JSON: {error}") from error
    if not _fits(results, _FIELDS) or not all(_fits(comparison, _COMPARISON) for comparison in results["measured"]):
        raise ReportError(f"{file}: not what pytest benchmarks/ --json writes")
    for comparison in results["measured"]:
        numbers = all(isinstance(value, int | float) for value in comparison["values"].values())
        if comparison["unit"] not in SCALES or not comparison["values"] or not numbers:
            raise ReportError(f"{file}: {comparison['title']}: not what pytest benchmarks/ --json writes")
    return results


def _fits(found: object, fields: dict[str, type]) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in fields.items())


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs on one machine as one."""
    machines = {run["hardware"] for run in runs}
    if len(machines) > 1:
        raise ReportError(f"measured on different machines: {'; '.join(sorted(machines))}")
    return {**runs[-1], "measured": [comparison for run in runs for comparison in run["measured"]]}


def write(results: dict[str, Any], folder: Path) -> None:
    """Tables, plots and a copy of what was measured."""
    try:
        # Here, so that whoever lacks matplotlib is told so before anything is written.
        from benchmarks import plots
    except ImportError as error:
        raise ReportError(f"{error}: the plots need matplotlib (pip install matplotlib)") from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pictures = plots.draw_all(results["measured"], folder)
    (folder / "report.md").write_text(page(results, pictures), encoding="utf-8")


def page(results: dict[str, Any], pictures: dict[str, list[str]]) -> str:
    """The report in Markdown; ``pictures`` are the plots' file names by group."""
    lines = [f"# esim_fast on {results['hardware']}, {results['date']}", "", results["environment"], ""]
    groups: dict[str, list[dict[str, Any]]] = {}
    for comparison in results["measured"]:
        groups.setdefault(comparison["group"] or "others", []).append(comparison)
    for group, comparisons in groups.items():
        lines += [f"## {group}", ""]
        lines += [line for name in pictures.get(group, []) for line in (f"![{name}]({name})", "")]
        if all("per_second" in comparison["parameters"] for comparison in comparisons):
            lines += [*rates(comparisons), ""]
            continue
        if len(comparisons) > 1 and all(len(comparison["values"]) == 1 for comparison in comparisons):
            lines += [*series(comparisons), ""]
            continue
        for comparison in comparisons:
            lines += [*table(comparison), ""]
    return "\n".join(lines)


def table(comparison: dict[str, Any]) -> list[str]:
    """One line for each variant, with its ratio to the first."""
    scale, unit = SCALES[comparison["unit"]]
    first = next(iter(comparison["values"].values()))
    floor = comparison.get("floor")
    headings, rule = f"| variant | {unit} | against the first |", "| --- | ---: | ---: |"
    if floor:
        headings, rule = f"{headings} of the floor's speed |", f"{rule} ---: |"
    lines = [f"**{comparison['title']}**", "", headings, rule]
    for variant, value in comparison["values"].items():
        line = f"| {variant} | {scale * value:,.3f} | {first / max(value, 1e-12):.2f} x |"
        lines.append(f"{line} {floor / value:.0%} |" if floor else line)
    return lines + [line for note in comparison["notes"] for line in ("", f"- {note}")]


def series(comparisons: list[dict[str, Any]]) -> list[str]:
    """One line for each comparison of a single variant."""
    scale, unit = SCALES[comparisons[0]["unit"]]
    lines = [f"| {next(iter(comparisons[0]['values']))} | {unit} |", "| --- | ---: |"]
    for comparison in comparisons:
        lines.append(f"| {comparison['title']} | {scale * next(iter(comparison['values'].values())):,.3f} |")
    return lines


def rates(comparisons: list[dict[str, Any]]) -> list[str]:
    """One line for each ceiling: what moves bytes, and what computes."""
    lines = ["| | a second |", "| --- | ---: |"]
    for comparison in comparisons:
        unit = "TB" if comparison["parameters"]["what"] == "copy" else "TFLOP"
        lines.append(f"| {comparison['title']} | {comparison['parameters']['per_second'] / 1e12:,.2f} {unit} |")
    return lines


def slug(text: str) -> str:
    """In small letters, digits and hyphens: a name for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())

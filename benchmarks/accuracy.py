"""What recipes reach on a dev set, each trained from several seeds by `esim-fast train`.

    python -m benchmarks.accuracy --train F --dev F --vectors F [--words F] [--more F] --output DIR [--json FILE]

run in the repository's root. Each recipe adds one thing to the one before it. An interrupted command goes on where it
stopped; `--only NAME` trains one recipe, and several such commands may run at once.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.timing import environment

SMALL_DATA = ["--preset", "small-data", "--epochs", "6"]
# What each recipe adds, its options, and the further files that it needs.
RECIPES = {
    "paper": ("the default recipe", [], ()),
    "small-data": ("--preset small-data", SMALL_DATA, ()),
    "words": ("vectors for words that are not in training", SMALL_DATA, ("words",)),
    "more": ("more training pairs", SMALL_DATA, ("words", "more")),
}


def train(name: str, options: argparse.Namespace) -> None:
    """Trains one recipe from all seeds, or what is left of that."""
    _, recipe, needs = RECIPES[name]
    pairs = [options.train, options.more] if "more" in needs else [options.train]
    command = [sys.executable, "-m", "esim_fast", "train", "--train", *pairs, "--dev", options.dev]
    command += ["--vectors", options.vectors, *(["--extend-vocabulary", options.words] if "words" in needs else [])]
    command += [*recipe, "--seeds", str(options.seeds), "--output", str(options.output / name), "--resume"]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def result(name: str, folder: Path) -> dict | None:
    """What a recipe has reached, if it is done."""
    try:
        summary = json.loads((folder / name / "seeds.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    runs = []
    for seed in summary["seeds"]:
        lines = (folder / name / f"seed-{seed}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        runs.append([json.loads(line)["dev_accuracy"] for line in lines])
    return {"adds": RECIPES[name][0], **summary["dev"], "seeds": summary["seeds"], "dev_accuracy_by_epoch": runs}


def page(results: dict[str, dict]) -> str:
    """The figures as a small table."""
    lines = [f"  {'':<12}{'dev accuracy':>18}   {'gain':>7}   seeds"]
    before = None
    for name, figures in results.items():
        gain = "" if before is None else f"{100 * (figures['mean'] - before):+.2f}"
        accuracies = ", ".join(f"{100 * value:.2f}" for value in figures["accuracies"])
        accuracy = f"{100 * figures['mean']:.2f} ± {100 * figures['standard_deviation']:.2f} %"
        lines.append(f"  {name:<12}{accuracy:>18}   {gain:>7}   {accuracies}   ({figures['adds']})")
        before = figures["mean"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    for name, text in (("train", "training pairs"), ("dev", "dev pairs"), ("vectors", "word vectors")):
        parser.add_argument(f"--{name}", required=True, metavar="FILE", help=text)
    parser.add_argument("--words", metavar="FILE", help="words whose vectors are taken along, for 'words' and 'more'")
    parser.add_argument("--more", metavar="FILE", help="more training pairs, for 'more'")
    parser.add_argument("--only", choices=tuple(RECIPES), help="one recipe; default: all that there are files for")
    parser.add_argument("--seeds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of the runs")
    add_json(parser)
    options = parser.parse_args(arguments)
    wanted = [options.only] if options.only else list(RECIPES)
    print(environment(), flush=True)
    for name in wanted:
        missing = [need for need in RECIPES[name][2] if getattr(options, need) is None]
        if missing and options.only:
            parser.error(f"{name} needs --{missing[0]}")
        if missing or result(name, options.output):
            continue
        try:
            train(name, options)
        except subprocess.CalledProcessError:  # which has said why
            return 2
    results = {name: figures for name in RECIPES if (figures := result(name, options.output))}
    print(page(results))
    write_json(parser, options.json, {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())

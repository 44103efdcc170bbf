"""``esim-fast predict`` on a million pairs: pairs a second beside the bare network, and whether memory grows.

    python -m benchmarks.predicting [--pairs N] [--json FILE]

run in the repository's root. Sentences of SNLI's lengths are made of made-up words. The command reads, splits and looks
up, runs a small network and writes; the bare network gets the same batches ready-made and does nothing else, on as many
threads. They take turns, each on a part of the pairs. Then the command gets a tenth of the pairs, and all of them, and
the memory that it and its workers hold is watched.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import esim_fast
from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.corpus import draw_lengths
from benchmarks.preparing import watched
from benchmarks.timing import environment
from esim_fast import Classifier
from esim_fast.data import EncodedPairs, Vocabulary, batches
from esim_fast.data.preparing import ROWS

PAIRS, ROUNDS, BATCH = 1_000_000, 4, 256
HIDDEN, WIDTH, WORDS = 128, 100, 20_000


def small_model() -> Classifier:
    torch.manual_seed(0)
    vocabulary = Vocabulary(["<unk>", "<pad>", ".", *(f"word{index}" for index in range(WORDS))])
    net = esim_fast.ESIM(HIDDEN, WIDTH, len(vocabulary), 3, "cpu")
    return Classifier(net.eval(), vocabulary, ["contradiction", "entailment", "neutral"])


def write_pairs(path: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for begin in range(0, count, 10_000):
            rows = min(10_000, count - begin)
            sides = []
            for lengths in draw_lengths("SNLI", rows, rng).T:
                words = iter(rng.integers(WORDS, size=int(lengths.sum())).tolist())
                sides.append([" ".join(f"Word{next(words)}" for _ in range(n - 1)) + "." for n in lengths.tolist()])
            file.writelines(f"{premise}\t{hypothesis}\n" for premise, hypothesis in zip(*sides, strict=True))


def bare(model: Classifier, path: Path) -> float:
    """Seconds of the network alone, on batches of similar length, cut from as many pairs as the command looks at."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    made = []
    for begin in range(0, len(rows), ROWS):
        premises, hypotheses = ([model.encode(row[side]) for row in rows[begin : begin + ROWS]] for side in (0, 1))
        made += [batch.pairs for batch in batches(EncodedPairs(premises, hypotheses, None), BATCH, shuffle=False)]
    with torch.no_grad():
        model.net(made[0])
        begin = time.perf_counter()
        for pairs in made:
            model.net(pairs)
        return time.perf_counter() - begin


def command(model: Path, path: Path, answers: Path) -> tuple[float, int]:
    """Seconds from the command's start to its end, and the most memory that it and its workers held."""
    arguments = [sys.executable, "-m", "esim_fast", "predict", str(model), str(path), "--device", "cpu"]
    begin = time.perf_counter()
    with (
        open(answers, "wb") as file,
        subprocess.Popen([*arguments, "--batch-size", str(BATCH)], stdout=file) as process,
    ):
        peak = watched(process)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - begin, peak


def check(path: Path, answers: Path) -> None:
    """An answer to every pair, in their order."""
    with open(path, encoding="utf-8") as asked, open(answers, encoding="utf-8") as given:
        for number, (row, line) in enumerate(zip(asked, given, strict=True), start=1):
            answer = json.loads(line)
            if (answer["line"], f"{answer['premise']}\t{answer['hypothesis']}\n") != (number, row):
                raise SystemExit(f"{answers}:{number}: expected the answer to {row!r}, got {line!r}")


def measure(folder: Path, pairs: int) -> dict[str, object]:
    model = small_model()
    model.save_pretrained(folder / "model")
    part, seconds = pairs // ROUNDS, []
    for number in range(ROUNDS):
        write_pairs(folder / "part.tsv", part, seed=number)
        alone = bare(model, folder / "part.tsv")
        seconds.append((alone, command(folder / "model", folder / "part.tsv", folder / "part.jsonl")[0]))
        check(folder / "part.tsv", folder / "part.jsonl")
    peaks = {}
    for count in (pairs // 10, pairs):
        write_pairs(folder / "all.tsv", count, seed=ROUNDS)
        took, peak = command(folder / "model", folder / "all.tsv", folder / "all.jsonl")
        check(folder / "all.tsv", folder / "all.jsonl")
        peaks[str(count)] = {"seconds": took, "peak_bytes": peak}
    return {
        "pairs": pairs,
        "model": {"hidden_size": HIDDEN, "embedding_dim": WIDTH, "words": WORDS, "batch_size": BATCH},
        "bare_pairs_per_second": part / statistics.median(alone for alone, _ in seconds),
        "command_pairs_per_second": part / statistics.median(whole for _, whole in seconds),
        "ratio": statistics.median(alone / whole for alone, whole in seconds),
        "by_number_of_pairs": peaks,
    }


def page(result: dict) -> str:
    bare_rate = result["bare_pairs_per_second"]
    lines = [
        f"the bare network           {bare_rate:>8,.0f} pairs a second",
        f"esim-fast predict          {result['command_pairs_per_second']:>8,.0f} with its start, on a "
        f"{ROUNDS}th of the pairs, by turns: {result['ratio']:.2f} x",
    ]
    for count, figures in result["by_number_of_pairs"].items():
        peak, rate = figures["peak_bytes"] / 2**20, int(count) / figures["seconds"]
        lines.append(
            f"{int(count):>12,} pairs: {figures['seconds']:.1f} s, {rate:,.0f} a second, {rate / bare_rate:.2f} x, "
            f"{peak:,.0f} MiB at most"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.predicting", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=positive, default=PAIRS, help="default: %(default)s")
    add_json(parser)
    options = parser.parse_args(arguments)
    if options.pairs < 10 * ROUNDS:
        parser.error(f"--pairs: expected at least {10 * ROUNDS}, got {options.pairs}")
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.pairs)
    print(page(result))
    write_json(parser, options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A corpus of SNLI's size from its file to batches: seconds, memory and pairs a second; and the next start.

    python -m benchmarks.preparing [FILE ...] [--pairs N] [--json FILE]

run in the repository's root. The pairs are drawn with replacement from the files' rows (labeled, tab-separated; by
default the bundled sample's) and written to a temporary folder. The peer is one process that calls NLTK's tokenizer on
their sentences, already in memory, and does nothing else. Every measurement is a fresh process; memory is what it and
its workers hold, without counting twice what they share.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import numpy as np

from benchmarks import epoch
from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.timing import environment
from esim_fast.data import DataError, EncodedPairs, Vocabulary, batches, prepare, read_pairs

PAIRS = 550_000
TRAINING_PAIRS = 1_280  # that the CPU trains on, to compare rates
SIZES = {"32 pairs": {"batch_size": 32}, "512 pairs": {"batch_size": 512}, "1,000 words": {"max_tokens": 1000}}
PEER, FIRST, SECOND = "NLTK alone, one process", "esim_fast, first start", "esim_fast, second start"


def write_corpus(path: Path, sources: list[str], pairs: int) -> None:
    rows = [(p.label, p.premise, p.hypothesis) for source in sources for p in read_pairs(source) if p.label is not None]
    with open(path, "w", encoding="utf-8") as file:
        for index in np.random.default_rng(0).integers(len(rows), size=pairs).tolist():
            file.write("\t".join(rows[index]) + "\n")


def tokenize_with_nltk(path: Path) -> dict[str, float]:
    """The loop that everybody writes; its time is without reading files, looking words up and keeping them."""
    from nltk.tokenize import word_tokenize

    pairs = [(pair.premise, pair.hypothesis) for pair in read_pairs(path)]
    begin = time.perf_counter()
    for premise, hypothesis in pairs:
        [word.lower() for word in word_tokenize(premise, preserve_line=True)]
        [word.lower() for word in word_tokenize(hypothesis, preserve_line=True)]
    return {"seconds": time.perf_counter() - begin}


def start(path: Path, cache: Path) -> tuple[EncodedPairs, dict[str, float]]:
    """What a training run does until its first batch of 32."""
    begin = time.perf_counter()
    corpus = prepare(path, cache=cache)
    pairs = corpus.encode(Vocabulary.build(corpus.word_counts(labeled=True)), sorted(corpus.label_names))
    next(iter(batches(pairs, 32, shuffle=True)))
    return pairs, {"seconds": time.perf_counter() - begin, "at": time.time()}


def deliver(pairs: EncodedPairs) -> dict[str, float]:
    """Pairs a second that the loader delivers, epoch after epoch for a few seconds."""
    rates = {}
    for name, size in SIZES.items():
        seen, begin = 0, time.perf_counter()
        for epoch_number in range(100):
            seen += sum(len(batch) for batch in batches(pairs, **size, shuffle=True, epoch=epoch_number))
            if time.perf_counter() - begin > 3:
                break
        rates[name] = seen / (time.perf_counter() - begin)
    return rates


def measure(variant: str, folder: Path) -> dict[str, float]:
    """In its own process: the figures of one variant."""
    corpus, cache = folder / "corpus.tsv", folder / "cache"
    if variant == PEER:
        return tokenize_with_nltk(corpus)
    pairs, figures = start(corpus, cache)
    return figures | (deliver(pairs) if variant == SECOND else {})


def in_a_process(variant: str, folder: Path) -> dict[str, float]:
    """Its figures, its time with Python's start and imports, and the most memory that it and its workers had."""
    command = [sys.executable, "-m", "benchmarks.preparing", "--variant", variant, "--folder", str(folder)]
    begin = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = watched(process)
        if process.returncode:
            raise SystemExit(process.returncode)
        figures = json.loads(process.stdout.read())
    with_imports = {"seconds_with_imports": figures.pop("at") - begin} if "at" in figures else {}
    return {**figures, **with_imports, "peak_bytes": peak}


def watched(process: subprocess.Popen) -> int:
    """Waits for a process to end: the most bytes that it and its workers held."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(memory, family(process.pid))))
        time.sleep(0.25)  # looking takes a processor's time, too
    return peak


def family(pid: int) -> list[int]:
    """A process and all that it and its children started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(other for child in children for other in family(int(child)))]


def memory(pid: int) -> int:
    """Bytes that a process holds, shared ones divided among those that share them; 0 where Linux does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def page(result: dict) -> str:
    """The figures as a small table."""
    lines = [f"{result['pairs']:,} pairs, {result['bytes'] / 1e6:,.0f} MB"]
    peer = result["variants"][PEER]["seconds"]
    for name, figures in result["variants"].items():
        ratio = f"{peer / figures['seconds']:>8.1f} x"
        peak = f"{figures['peak_bytes'] / 2**20:>7,.0f} MiB at most" if figures["peak_bytes"] else ""
        whole = f"({figures['seconds_with_imports']:.1f} s from python's start)" if name != PEER else ""
        lines.append(f"  {name:<26} {figures['seconds']:>8.2f} s {ratio} {peak} {whole}".rstrip())
    lines.append(f"importing torch takes {result['import_seconds']:.2f} s of every process")
    train = result["training_rate"]
    lines.append(f"  training, batches of 32    {train:>10,.0f} pairs a second")
    for name, rate in result["variants"][SECOND].items():
        if name in SIZES:
            lines.append(f"  loader, {name:<18} {rate:>10,.0f} pairs a second, {rate / train:,.0f} x")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.preparing", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="rows to draw from; default: the bundled sample")
    parser.add_argument("--pairs", type=positive, default=PAIRS, help="default: %(default)s")
    add_json(parser)
    parser.add_argument("--variant", choices=(PEER, FIRST, SECOND), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.variant:
        print(json.dumps(measure(options.variant, options.folder)))
        return 0
    files = options.files or [str(resources.files("esim_fast.data") / "sample" / "train.tsv")]
    print(environment(), flush=True)
    imported = subprocess.run(
        [sys.executable, "-c", "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"],
        capture_output=True,
        text=True,
        check=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            write_corpus(folder / "corpus.tsv", files, options.pairs)
        except DataError as error:
            parser.error(str(error))
        result = {
            "pairs": options.pairs,
            "bytes": os.path.getsize(folder / "corpus.tsv"),
            "drawn_from": [Path(file).name for file in files],
            "import_seconds": float(imported.stdout),
            "variants": {variant: in_a_process(variant, folder) for variant in (FIRST, SECOND, PEER)},
        }
    trained = epoch.measure(TRAINING_PAIRS, 32, "fp32")
    result["training_rate"] = trained["pairs"] / trained["seconds"]
    print(page(result))
    write_json(parser, options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

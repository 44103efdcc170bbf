"""Word vectors for a vocabulary of SNLI's size from a file of GloVe 840B's: seconds and peak memory, and the next time.

    python -m benchmarks.vectors [--rows N] [--dimension N] [--repeats N] [--folder FOLDER] [--json FILE]

run in the repository's root. The peer parses every row in Python, as scripts do, and keeps those of the vocabulary, in
one process; esim_fast uses as many as it would for a user. The file is made up, about 6 GB, and removed at the end. It
has been written just before: as much of it as fits into memory is in the page cache, for everybody. Each measurement is
a fresh process, whose peak of memory includes importing torch and what its workers hold, and whose seconds do not
include importing.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.corpus import VOCABULARY
from benchmarks.preparing import family, memory
from benchmarks.timing import environment
from esim_fast.data import Vocabulary
from esim_fast.data.vectors import load_vectors

ROWS, DIMENSION = 2_200_000, 300
NUMBERS = 1_999  # rows of numbers that take turns: to draw and print billions of numbers takes many minutes
MISSING, CAPITALIZED = 0.05, 0.05  # parts of the vocabulary that the file lacks, and that it has as "Paris" only
WITH_SPACES = 10_000  # every so many-th other word is one with a space
PEER, FIRST, SECOND = "every row parsed in Python", "esim_fast, the first time", "esim_fast, the second time"


def draw_vocabulary(rows: int) -> tuple[Vocabulary, dict[int, str]]:
    """A vocabulary, and the spelling of its words that each row of a file of ``rows`` holds, if any.

    GloVe's rows go from frequent to rare words, and SNLI's words are frequent ones for the most part: evenly on a
    logarithmic scale, a third of them come within the first hundredth of 2.2 million rows, two thirds within the first
    tenth, and some near the end.
    """
    generator = np.random.default_rng(0)
    words = ["at", ".", *(f"word{index}" for index in range(VOCABULARY - 4))]
    draws = (rows ** generator.random(4 * len(words))).astype(np.int64) - 1
    places = islice(dict.fromkeys(draws.tolist()), round((1 - MISSING) * len(words)))
    cases = np.where(generator.random(len(words)) < CAPITALIZED, "capitalized", "as it is").tolist()
    held = {
        place: word.capitalize() if case == "capitalized" else word
        for place, word, case in zip(places, generator.permutation(words).tolist(), cases, strict=False)
    }
    return Vocabulary(["<unk>", "<pad>", *words]), held


def draw_numbers(dimension: int) -> list[bytes]:
    """What stands behind the words, such as `` 0.27204 -0.06203 ...``, in GloVe 840B's five digits."""
    numbers = np.random.default_rng(1).normal(0, 0.4, size=(NUMBERS, dimension))
    return [(" " + " ".join(f"{number:.5g}" for number in row) + "\n").encode() for row in numbers]


def file_rows(rows: int, numbers: list[bytes], held: dict[int, str]) -> Iterator[bytes]:
    for place in range(rows):
        other = f"at name{place}@domain.com" if place % WITH_SPACES == 7 else f"w{place}"
        yield held.get(place, other).encode() + numbers[place % len(numbers)]


def write_file(path: Path, rows: int, numbers: list[bytes], held: dict[int, str]) -> None:
    with open(path, "wb", buffering=2**20) as file:
        file.writelines(file_rows(rows, numbers, held))
        file.flush()
        os.fsync(file.fileno())  # or the disk would be busy with it while others are timed


def parse_every_row(path: Path, dimension: int, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The peer: what scripts do, with the faster one of numpy and ``map(float, ...)``, and words with spaces right."""
    wanted = {spelling for word in vocabulary.words for spelling in (word, word.capitalize())}
    vectors = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            fields = line.rstrip().split(" ")
            word, vector = " ".join(fields[:-dimension]), np.array(fields[-dimension:], dtype=np.float32)
            if word in wanted:
                vectors[word] = vector
    return vectors


def measure(variant: str, folder: Path, rows: int, dimension: int) -> None:
    """Run one variant in this process, print what it took, and leave the vectors of the words found in a file."""
    vocabulary, held = draw_vocabulary(rows)
    begin = time.perf_counter()
    if variant == PEER:
        vectors = parse_every_row(folder / "vectors.txt", dimension, vocabulary)
        seconds, peak = time.perf_counter() - begin, _peak_memory()
        found, matrix = len(vectors), np.stack([vectors[spelling] for spelling in held.values()])
    else:
        result = load_vectors(folder / "vectors.txt", vocabulary, cache=folder / "cache")
        seconds, peak = time.perf_counter() - begin, _peak_memory()
        found, matrix = result.found, result.matrix[result.vocabulary.encode(map(str.lower, held.values()))].numpy()
    np.save(folder / f"{variant}.npy", matrix)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "found": found}))


def _peak_memory() -> int:
    """Bytes that this process held at most; Linux's ``ru_maxrss`` may be those of the one that started it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(variant: str, folder: Path, rows: int, dimension: int) -> dict[str, float]:
    """What :func:`measure` prints, with its workers and their memory too; the process ends with this one."""
    code = "import pathlib, sys; from benchmarks import vectors as v; a = sys.argv[1:]"
    code += "; v.measure(a[0], pathlib.Path(a[1]), int(a[2]), int(a[3]))"
    command = [sys.executable, "-c", code, variant, str(folder), str(rows), str(dimension)]
    peak = processes = 0
    # In a session of its own Ctrl-C reaches this process only, which then ends the other.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while process.poll() is None:
                members = family(process.pid)
                peak, processes = max(peak, sum(map(memory, members))), max(processes, len(members))
                time.sleep(0.1)  # to look takes some milliseconds of a core
            output = process.stdout.read()
        finally:
            process.kill()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    figures = json.loads(output)
    # The process itself knows its peak between two looks, and counts whole what it shares with this one.
    return figures | {"peak_bytes": max(peak, figures["peak_bytes"]), "workers": processes - 1}


def compare(folder: Path, rows: int, dimension: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds and highest peak of each variant; they take turns, and who begins alternates.

    Raises:
        RuntimeError: they do not find the same words with the same vectors.
    """
    samples: dict[str, list[dict[str, float]]] = {PEER: [], FIRST: [], SECOND: []}
    expected = len(draw_vocabulary(rows)[1])
    for repeat in range(repeats):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for variant in (PEER, FIRST, SECOND) if repeat % 2 == 0 else (FIRST, SECOND, PEER):
            sample = in_a_process(variant, folder, rows, dimension)
            samples[variant].append(sample)
            print(f"  {variant}: {sample['seconds']:.2f} s", file=sys.stderr)
        peer = np.load(folder / f"{PEER}.npy")
        for variant in (FIRST, SECOND):
            if samples[variant][-1]["found"] != expected or not np.array_equal(
                np.load(folder / f"{variant}.npy"), peer
            ):
                raise RuntimeError(f"{variant}: not the vectors of the peer")
    return {
        variant: {
            "seconds": median(sample["seconds"] for sample in taken),
            "peak_bytes": max(sample["peak_bytes"] for sample in taken),
            "workers": max(sample["workers"] for sample in taken),
        }
        for variant, taken in samples.items()
    }


def page(result: dict) -> str:
    """The figures as a small table."""
    variants = result["variants"]
    lines = [
        f"{result['rows']:,} rows of {result['dimension']}, {result['file_bytes'] / 1e9:.2f} GB, "
        f"for {result['vocabulary']:,} words, {result['found']:,} of them found"
    ]
    lines += [
        f"  {variant:<28} {taken['seconds']:>8.2f} s {variants[PEER]['seconds'] / taken['seconds']:>8.1f} x "
        f"{taken['peak_bytes'] / 2**20:>8,.0f} MiB at most, "
        + (f"1 process and {taken['workers']} workers" if taken["workers"] else "1 process")
        for variant, taken in variants.items()
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.vectors", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=positive, default=ROWS)
    parser.add_argument("--dimension", type=positive, default=DIMENSION)
    parser.add_argument("--repeats", type=positive, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the file is put")
    add_json(parser)
    options = parser.parse_args(arguments)
    rows, dimension = options.rows, options.dimension
    vocabulary, held = draw_vocabulary(rows)
    numbers = draw_numbers(dimension)
    longest = max(map(len, numbers)) + len("at name@domain.com") + len(str(rows))
    needed = rows * longest + 4 * 4 * len(vocabulary) * dimension  # the file, and what is found in it: cache, results
    try:
        free = shutil.disk_usage(options.folder).free
        if free < needed:
            parser.error(f"{options.folder}: {needed / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")
        print(environment(), flush=True)
        with tempfile.TemporaryDirectory(prefix="esim_fast-vectors-", dir=options.folder) as folder:
            path = Path(folder, "vectors.txt")
            write_file(path, rows, numbers, held)
            result = {
                "rows": rows,
                "dimension": dimension,
                "file_bytes": path.stat().st_size,
                "vocabulary": len(vocabulary),
                "found": len(held),
                "repeats": options.repeats,
                "variants": compare(Path(folder), rows, dimension, options.repeats),
            }
        print(page(result))
        write_json(parser, options.json, {"numpy": np.__version__, **result})
    except OSError as error:
        parser.error(f"{error.filename or options.folder}: {error.strerror}")
    except (RuntimeError, subprocess.CalledProcessError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tools.soak``: thousands of training steps on little data, in memory that must not grow.

The trainer, checkpoints, evaluation and a new shape in nearly every batch are those of a real run; the sample corpus
is small enough for the steps to be many. Exits with 1 where memory grows.
"""

import tempfile
import time
from itertools import count
from pathlib import Path

import torch

from benchmarks.command import Parser, add_json, positive, write_json
from esim_fast import ESIM, Classifier, data, training
from esim_fast.memory import bound_caches

ALLOWED = 8.0  # MiB that the second half of a run may need beyond the first: the allocator's, not the run's
LOOKS = 200


def resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def allocated() -> float:
    """MiB of tensors on the GPU, 0 without one."""
    return torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def train(steps: int, directory: Path) -> list[tuple[int, float, float]]:
    """Trains for ``steps`` steps; what memory held, by the step, about 200 times."""
    bound_caches()  # as the command line does
    looks: list[tuple[int, float, float]] = []
    numbers = count(1)

    def look() -> bool:
        if (step := next(numbers)) % max(1, steps // LOOKS) == 0:
            looks.append((step, resident(), allocated()))
        return step >= steps

    sample = Path(data.__file__).parent / "sample"
    corpora = [data.prepare(sample / name) for name in ("train.tsv", "dev.tsv")]
    vocabulary = data.Vocabulary.build(corpora[0].word_counts(labelled=True))
    labels = ["contradiction", "entailment", "neutral"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Classifier(ESIM(32, 32, len(vocabulary), len(labels), device), vocabulary, labels)
    pairs = [corpus.encode(vocabulary, labels) for corpus in corpora]
    recipe = training.Recipe(epochs=steps, patience=None, batch_size=16, averaging=0.99)
    try:
        training.Trainer(model, *pairs, recipe, directory, should_stop=look).run()
    except KeyboardInterrupt:  # as a run ends that is told to
        return looks
    raise RuntimeError(f"the run ended by itself, before {steps} steps")


def main() -> None:
    parser = Parser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--steps", type=positive, default=10_000)
    add_json(parser)
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        looks = train(options.steps, Path(folder))
    half = len(looks) // 2
    figures: dict[str, object] = {"steps": options.steps, "seconds": round(time.perf_counter() - begin)}
    flat = True
    for column, name in ((1, "resident"), (2, "allocated on the GPU")):
        first, second = (max(look[column] for look in part) for part in (looks[:half], looks[half:]))
        if second:
            print(f"{name}: {first:.1f} MiB at most in the first half of the steps, {second:.1f} in the second")
            figures[name] = {"first half, MiB": round(first, 1), "second half, MiB": round(second, 1)}
            flat &= second - first <= ALLOWED
    figures["flat"] = flat
    write_json(parser, options.json, figures)
    print(f"{options.steps:,} steps in {figures['seconds']} s: memory is {'flat' if flat else 'growing'}")
    parser.exit(0 if flat else 1)


if __name__ == "__main__":
    main()

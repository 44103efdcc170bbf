"""Print how captured training steps (esim_fast/training/capture.py) would serve SNLI: graphs, padded rows, replays.

    ESIM_FAST_DATA=DIR python -m benchmarks.capacities

The lengths are those of the pairs in DIR/snli/train20k.tsv.gz, drawn with replacement until there are as many as SNLI
has. Nothing is trained, and nothing is timed.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from esim_fast.cli.options import Parser
from esim_fast.data import EncodedPairs, batches, prepare
from esim_fast.graphs import EAGER_USES
from esim_fast.training.capacities import Size, capacity_of, plan_capacities, step_sizes

PAIRS = 549_367  # in SNLI's training set
BATCHES = 32, 128, 512, 1024
EPOCHS = 2


def resampled(lengths: np.ndarray) -> EncodedPairs:
    """Pairs without words, with lengths drawn from these."""
    drawn = lengths[np.random.default_rng(0).integers(len(lengths), size=PAIRS)]
    return EncodedPairs.of_tokens(np.zeros(0, dtype=np.int64), None, np.zeros_like(drawn), drawn)


def line(pairs: EncodedPairs, batch: int) -> str:
    """A row of the table."""
    of_epochs = [step_sizes(batches(pairs, batch, shuffle=True, epoch=epoch)) for epoch in range(1, EPOCHS + 1)]
    capacities = plan_capacities(of_epochs[0])
    uses: Counter[Size | None] = Counter()
    rows = padded = replayed = 0
    for size in [size for sizes in of_epochs for size in sizes]:
        capacity = capacity_of(size, capacities)
        uses[capacity] += 1
        if capacity is not None:
            rows, padded = rows + size.rows, padded + capacity.rows - size.rows
            replayed += uses[capacity] > EAGER_USES
    graphs = sum(count > EAGER_USES for capacity, count in uses.items() if capacity is not None)
    sizes = len({capacity.rows for capacity in capacities})
    return (
        f"| {batch:,} | {len(of_epochs[0]):,} | {sizes} | {graphs} | {padded / rows:.1%} "
        f"| {replayed / uses.total():.1%} | {uses[None] / uses.total():.1%} |"
    )


def main() -> None:
    parser = Parser(prog="python -m benchmarks.capacities", description=__doc__.splitlines()[0])
    parser.parse_args()
    corpus = prepare(str(Path(os.environ["ESIM_FAST_DATA"], "snli", "train20k.tsv.gz")))
    pairs = resampled(corpus.lengths[corpus.labeled])
    print(f"{len(corpus):,} pairs drawn {PAIRS:,} times; {EPOCHS} epochs, planned from the first")
    print("| pairs per batch | steps per epoch | row capacities | graphs | padded rows | replayed | larger than all |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for batch in BATCHES:
        print(line(pairs, batch))


if __name__ == "__main__":
    main()

"""The least that each op must do, operations and bytes of memory: whichever takes longer is its floor.

    python -m benchmarks.floors [--batch 32 512 ...] [--lengths SNLI] [--precision bf16] [--bandwidth B] [--rate R]

run in the repository's root, prints both floors of every part of a training step, and the least time that they leave.
The ceilings, in TB/s and TFLOP/s, are those of NVIDIA's data sheet for an H100 SXM unless others are given, such as
`benchmarks/test_ceilings.py` measures. Operations are those of matrix products, a multiplication and an addition each.
Bytes are each input read once and each output written once, nothing of padding, and nothing that stays in a cache.
"""

import sys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

HIDDEN = WIDTH = 300
LABELS = 3
# Of an H100 SXM, dense: NVIDIA H100 Tensor Core GPU data sheet. Bytes a second, and operations a second by precision.
BANDWIDTH = 3.35e12
RATES = {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12}
ELEMENT = {"fp32": 4, "tf32": 4, "bf16": 2}  # bytes


class Floor(NamedTuple):
    """What an op cannot do without."""

    flops: int
    bytes: int

    def __add__(self, other: "Floor") -> "Floor":  # type: ignore[override]
        return Floor(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, bandwidth: float, rate: float) -> float:
        return max(self.bytes / bandwidth, self.flops / rate)


def local_inference(lengths: np.ndarray, width: int, element: int, *, backward: bool = False) -> Floor:
    """The floor of pairs with lengths ``[B, 2]`` and encodings of ``width`` features.

    Forward: scores and two alignments; reads a and b, writes four times as much. Backward: those again and a product
    for each operand of each, less those that are the same; reads a, b and the gradients of m, writes those of a and b.
    """
    tokens, scores = int(lengths.sum()), 2 * width * int(lengths.prod(1).sum())
    if backward:
        return Floor(9 * scores, 6 * tokens * width * element)
    return Floor(3 * scores, 5 * tokens * width * element)


def masked_pool(lengths: np.ndarray, width: int, element: int, *, backward: bool = False) -> Floor:
    """The floor of sentences with ``lengths``: each token once, both poolings, and where each maximum was."""
    del backward  # reads what forward wrote and writes what it read
    sentences = 2 * lengths.size * width * element + 4 * lengths.size * width
    return Floor(0, int(lengths.sum()) * width * element + sentences)


def bilstm(
    lengths: np.ndarray, inputs: int, hidden: int, element: int, *, backward: bool = False, training: bool = True
) -> Floor:
    """The floor of sentences with ``lengths``, both directions.

    The first step of a sentence has no state before it to multiply. For the backward pass the gates and the cells of
    each token are kept. Weights are read once: that they stay on the chip from step to step is part of the floor.
    """
    words, sentences = int(lengths.sum()), lengths.size
    product_in, product_state = 2 * 4 * hidden * inputs * words, 2 * 4 * hidden * hidden * (words - sentences)
    weights = 2 * 4 * hidden * (inputs + hidden + 2) * element
    kept = 2 * (4 + 1) * hidden * words * element  # gates and cells
    x, y = inputs * words * element, 2 * hidden * words * element
    if not backward:
        return Floor(2 * (product_in + product_state), x + y + weights + (kept if training else 0))
    # The gradient of the recurrent weights is a product over all rows, first steps too.
    flops = 2 * (2 * product_in + 2 * product_state + 2 * 4 * hidden * hidden * sentences)
    return Floor(flops, 2 * (x + y) + kept + 2 * weights)


def linear(rows: int, inputs: int, outputs: int, element: int, *, backward: bool = False) -> Floor:
    """The floor of a product with weights ``[outputs, inputs]`` and a bias; backward, of those with y's gradients."""
    flops, weights = 2 * rows * inputs * outputs, (inputs + 1) * outputs * element
    x, y = rows * inputs * element, rows * outputs * element
    return Floor(2 * flops, 2 * x + y + 2 * weights) if backward else Floor(flops, x + y + weights)


def embedding(words: int, width: int, vocabulary: int, *, backward: bool = False) -> Floor:
    """In fp32. Backward: the dense gradient is written, and the rows of the batch's words are added to it."""
    return Floor(0, 4 * width * (words + vocabulary)) if backward else Floor(0, 4 * 2 * width * words)


def optimizer(parameters: int) -> Floor:
    """Clipping, which reads all gradients for their norm, reads and writes them; Adam: four read and three written."""
    return Floor(0, 4 * (3 + 7) * parameters)


def step(lengths: np.ndarray, vocabulary: int, element: int, *, training: bool = True) -> dict[str, Floor]:
    """The floor of each part of a training step, or of a forward pass, for pairs with lengths ``[B, 2]``."""
    words, H = int(lengths.sum()), HIDDEN
    weights = 2 * 2 * 4 * H * (WIDTH + H + 4) + 2 * (8 * H + 1) * H + (H + 1) * LABELS
    forward = {
        "embedding": embedding(words, WIDTH, vocabulary),
        "encoder": bilstm(lengths, WIDTH, H, element, training=training),
        "local inference": local_inference(lengths, 2 * H, element),
        "projection": linear(words, 8 * H, H, element),
        "composition": bilstm(lengths, H, H, element, training=training),
        "pooling": masked_pool(lengths, 2 * H, element),
        "classifier": linear(len(lengths), 8 * H, H, element) + linear(len(lengths), H, LABELS, element),
    }
    if not training:
        return forward
    backward = {
        "embedding": embedding(words, WIDTH, vocabulary, backward=True),
        "encoder": bilstm(lengths, WIDTH, H, element, backward=True),
        "local inference": local_inference(lengths, 2 * H, element, backward=True),
        "projection": linear(words, 8 * H, H, element, backward=True),
        "composition": bilstm(lengths, H, H, element, backward=True),
        "pooling": masked_pool(lengths, 2 * H, element, backward=True),
        "classifier": linear(len(lengths), 8 * H, H, element, backward=True)
        + linear(len(lengths), H, LABELS, element, backward=True),
    }
    parts = {name: forward[name] + backward[name] for name in forward}
    return {**parts, "clipping and Adam": optimizer(weights + vocabulary * WIDTH)}


def table(floors: Mapping[str, Floor], bandwidth: float, rate: float) -> list[str]:
    """A line for each part and one for their sum, which no step can beat."""
    lines = [f"  {'':<20} {'GFLOP':>10} {'MB':>10} {'by FLOPs':>12} {'by bytes':>12} {'floor':>12}"]
    total = 0.0
    for name, floor in floors.items():
        by_flops, by_bytes = floor.flops / rate, floor.bytes / bandwidth
        total += max(by_flops, by_bytes)
        times = " ".join(f"{1e6 * seconds:>9.1f} µs" for seconds in (by_flops, by_bytes, max(by_flops, by_bytes)))
        lines.append(f"  {name:<20} {floor.flops / 1e9:>10.2f} {floor.bytes / 1e6:>10.1f} {times}")
    return [*lines, f"  {'together':<20} {'':>10} {'':>10} {'':>12} {'':>12} {1e6 * total:>9.1f} µs"]


def main(arguments: list[str] | None = None) -> int:
    from benchmarks.command import Parser, positive, positive_number
    from benchmarks.corpus import VOCABULARY, bucketed_lengths

    parser = Parser(prog="python -m benchmarks.floors", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=positive, nargs="+", default=[32, 512])
    parser.add_argument("--lengths", choices=("SNLI", "MultiNLI"), default="SNLI")
    parser.add_argument("--precision", choices=tuple(RATES), nargs="+", default=["tf32", "bf16"])
    parser.add_argument("--bandwidth", type=positive_number, metavar="TB/S", default=BANDWIDTH / 1e12)
    parser.add_argument(
        "--rate", type=positive_number, metavar="TFLOP/S", help="of the one precision that is asked for"
    )
    options = parser.parse_args(arguments)
    if options.rate and len(options.precision) > 1:
        parser.error("--rate is that of one precision: give --precision, too")
    bandwidth = options.bandwidth * 1e12
    for batch in options.batch:
        batches = bucketed_lengths(options.lengths, batch, 4, np.random.default_rng(0))
        lengths = batches[2]
        for precision in options.precision:
            rate = options.rate * 1e12 if options.rate else RATES[precision]
            print(
                f"training step, {options.lengths} at batch {batch} ({int(lengths.sum()):,} words, "
                f"{int(lengths.max())} time steps), {precision}; {bandwidth / 1e12:.2f} TB/s, {rate / 1e12:.0f} TFLOP/s"
            )
            print("\n".join(table(step(lengths, VOCABULARY, ELEMENT[precision]), bandwidth, rate)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

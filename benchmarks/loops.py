"""A training epoch of esim_fast beside one in the manner of coetaur0/ESIM, by turns, on a real corpus.

    python -m benchmarks.loops [FILE] [--pairs N] [--rounds N] [--json FILE]

run in the repository's root; without a file, on the bundled sample. Ours is ``Trainer``, as `esim-fast train` runs it.
The other is the published loop: batches of 32 drawn at random and padded, lengths sorted at each encoding, torch's
default Adam, the loss read after each step; its lengths are on the CPU, which spares it the waiting. Both see the same
pairs and evaluate the same ones after each epoch; the first round is not counted.
"""

import sys
import tempfile
import time
from importlib import resources
from statistics import median

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from benchmarks.baselines import PADDING, Coetaur0ESIM
from benchmarks.command import Parser, add_json, positive, write_json
from benchmarks.timing import environment
from esim_fast import ESIM, Classifier
from esim_fast.data import DataError, EncodedPairs, Vocabulary, prepare
from esim_fast.training import Recipe, Trainer, initialize

HIDDEN = WIDTH = 300
DEV_SHARE = 8  # one pair in so many is for evaluation, as if SNLI's dev set went with 80,000 training pairs
OURS, PEER = "esim_fast", "coetaur0 style"


class PeerLoop:
    """The published loop, epoch by epoch."""

    def __init__(self, words: int, labels: int, train: EncodedPairs, dev: EncodedPairs, sentences: list) -> None:
        self.net = Coetaur0ESIM(HIDDEN, WIDTH, words, labels)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=4e-4)
        self.random = np.random.default_rng(0)
        # Padded once, as its data set is; a batch is cut to its longest sentence.
        self.ids = [pad_sequence([torch.from_numpy(s) for s in side], True, PADDING) for side in sentences]
        self.lengths = torch.from_numpy(np.array([[len(s) for s in side] for side in sentences]))
        self.labels = torch.from_numpy(np.concatenate([train.labels, dev.labels]))
        self.train, self.dev = len(train), len(dev)

    def batch(self, indices: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
        index = torch.from_numpy(indices)
        lengths = [side[index] for side in self.lengths]
        ids = [side[index, : int(length.max())] for side, length in zip(self.ids, lengths, strict=True)]
        return [*ids, *lengths], self.labels[index]

    def epoch(self) -> float:
        """Trains and evaluates; returns the seconds that it took."""
        begin = time.perf_counter()
        self.net.train()
        running_loss = correct = 0.0
        order = self.random.permutation(self.train)
        for start in range(0, self.train, 32):
            inputs, labels = self.batch(order[start : start + 32])
            self.optimizer.zero_grad()
            logits = self.net(*inputs)
            loss = cross_entropy(logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
            self.optimizer.step()
            running_loss += loss.item()
            correct += int((logits.argmax(1) == labels).sum())
        self.net.eval()
        with torch.no_grad():
            for start in range(self.train, self.train + self.dev, 32):
                inputs, labels = self.batch(np.arange(start, min(start + 32, self.train + self.dev)))
                correct += int((self.net(*inputs).argmax(1) == labels).sum())
        return time.perf_counter() - begin


def measure(path: str, pairs: int, rounds: int) -> dict:
    """Seconds of an epoch of each, round by round."""
    corpus = prepare(path)
    vocabulary = Vocabulary.build(corpus.word_counts(labeled=True))
    names = sorted(corpus.label_counts())
    ids = np.array(vocabulary.encode(corpus.words))
    sentences = np.split(ids[corpus.tokens], corpus.ends[:-1])
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(corpus.labeled))[:pairs]
    numbers = np.array([names.index(corpus.label_names[label]) for label in corpus.labels[chosen]])
    sides = [[sentences[2 * index + side] for index in chosen] for side in (0, 1)]
    dev = len(chosen) // DEV_SHARE
    parts = [
        EncodedPairs(*([s.tolist() for s in side[part]] for side in sides), numbers[part].tolist())
        for part in (slice(None, -dev), slice(-dev, None))
    ]
    torch.manual_seed(0)
    net = ESIM(HIDDEN, WIDTH, len(vocabulary), len(names))
    initialize(net)
    peer = PeerLoop(len(vocabulary), len(names), *parts, sides)
    seconds = {OURS: [], PEER: []}

    def round_is_over(metrics) -> None:
        seconds[OURS].append(metrics.seconds)
        seconds[PEER].append(peer.epoch())

    with tempfile.TemporaryDirectory() as directory:
        recipe = Recipe(epochs=rounds + 1, patience=None)
        Trainer(Classifier(net, vocabulary, names), *parts, recipe, directory, on_epoch=round_is_over).run()
    return {
        "pairs": len(parts[0]),
        "evaluated": dev,
        "words": len(vocabulary),
        "threads": torch.get_num_threads(),
        "seconds": {name: values[1:] for name, values in seconds.items()},
    }


def page(result: dict) -> str:
    """The figures as a small table."""
    seconds = {name: median(values) for name, values in result["seconds"].items()}
    lines = [f"epochs of {result['pairs']:,} pairs, {result['words']:,} words, {result['threads']} threads, medians"]
    for name in (PEER, OURS):
        lines.append(f"  {name:<16}{seconds[name]:>8.2f} s {result['pairs'] / seconds[name]:>8,.0f} pairs a second")
    lines.append(f"an epoch of ours takes {seconds[OURS] / seconds[PEER]:.1%} of the other's time")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.loops", description=__doc__.splitlines()[0])
    sample = str(resources.files("esim_fast.data") / "sample" / "train.tsv")
    parser.add_argument(
        "file", nargs="?", default=sample, metavar="FILE", help="labeled pairs; default: the bundled sample"
    )
    parser.add_argument("--pairs", type=positive, default=3200, help="of the file; default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    add_json(parser)
    options = parser.parse_args(arguments)
    print(environment(), flush=True)
    try:
        result = measure(options.file, options.pairs, options.rounds)
    except (DataError, OSError) as error:
        parser.error(str(error))
    print(page(result))
    write_json(parser, options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

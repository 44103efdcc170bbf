"""Epochs of `esim-fast train` beside those of the published loop, by turns: pairs a second of each.

    python -m benchmarks.end_to_end [FILE] [--pairs N] [--rounds N] [--batch-size N] [--precision NAME] [--json FILE]

The loop is in coetaur0's manner: random batches, padded; lengths, on the CPU, sorted at each encoding; torch's default
Adam; the loss read after each step. Both evaluate after each epoch. The first round and written files do not count.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.baselines import PADDING, Coetaur0ESIM
from benchmarks.corpus import VOCABULARY, draw_pairs
from benchmarks.measure import DEVICE, FULL_SIZE, machine
from esim_fast import ESIM, Classifier, training
from esim_fast.cli.options import Parser, count
from esim_fast.config import autocast
from esim_fast.data import EncodedPairs, Vocabulary, prepare
from esim_fast.files import write_json

SNLI, SHARE = 549_367, 56  # SNLI's labeled training pairs, and how many of them there are for each dev pair
PEER_PAIRS = 32_000  # of an epoch of the loop, at most: its rate is known by then


def read(path, pairs):
    """Training and dev pairs, vocabulary and labels; made up where there is no file."""
    if path is None:
        parts = [draw_pairs("SNLI", size, np.random.default_rng(size)) for size in (pairs, 1 + pairs // SHARE)]
        return parts, Vocabulary.build(dict.fromkeys(map(str, range(VOCABULARY - 2)), 1)), ["E", "N", "C"]
    corpus = prepare(path)
    vocabulary = Vocabulary.build(corpus.word_counts(labeled=True))
    ids, begins = np.array(vocabulary.encode(corpus.words)), corpus.ends.reshape(-1, 2) - corpus.lengths
    usable = np.flatnonzero(corpus.labeled & corpus.lengths.all(1))[: pairs + 1 + pairs // SHARE]
    chosen = np.split(usable, [-1 - len(usable) // (SHARE + 1)])
    columns = [(begins[at], corpus.lengths[at], corpus.labels[at].astype(np.int64)) for at in chosen]
    return [EncodedPairs.of_tokens(corpus.tokens, ids, *each) for each in columns], vocabulary, corpus.label_names


def scored(net, pairs, indices):
    """The peer's logits of a batch, which is put together and padded as a DataLoader does it, and labels."""
    batch = pairs[indices]
    sides = batch.pairs.rows(1)[:2]
    sentences = [batch.pairs.tokens[torch.from_numpy(side.offsets)].split(side.lengths.tolist()) for side in sides]
    ids = [nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=PADDING).to(DEVICE) for each in sentences]
    return net(*ids, *(side.lengths for side in sides)), batch.labels.to(DEVICE)


def peer_epochs(net, train, dev, recipe):
    """Trains and evaluates, epoch by epoch, and yields training pairs a second."""
    optimizer, random = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate), np.random.default_rng(0)
    while True:
        begin, loss_sum, correct = time.perf_counter(), 0.0, 0
        order = random.permutation(len(train))[:PEER_PAIRS]
        for pairs, indices in ((train, order), (dev, np.arange(len(dev))[: 1 + len(order) // SHARE])):
            net.train(pairs is train)
            for start in range(0, len(indices), recipe.batch_size):
                with torch.set_grad_enabled(net.training), autocast(recipe.precision, DEVICE):
                    logits, labels = scored(net, pairs, indices[start : start + recipe.batch_size])
                    loss = nn.functional.cross_entropy(logits, labels)
                if net.training:
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(net.parameters(), recipe.max_grad_norm)
                    optimizer.step()
                loss_sum += loss.item()
                correct += int((logits.argmax(1) == labels).sum())
        yield len(order) / (time.perf_counter() - begin)


def compare(path, pairs, rounds, batch_size, precision, json):
    (train, dev), vocabulary, labels = read(path, pairs)
    torch.manual_seed(0)
    net, peer = (kind(300, 300, len(vocabulary), len(labels)).to(DEVICE).eval() for kind in (ESIM, Coetaur0ESIM))
    training.initialize(net)
    peer.load_state_dict(net.state_dict())
    some, tolerance = range(min(32, len(dev))), 1e-2 if DEVICE.type == "cuda" else 1e-5  # on a GPU LSTMs are in TF32
    torch.testing.assert_close(net(dev[some].pairs.to(DEVICE)), scored(peer, dev, some)[0], rtol=0, atol=tolerance)
    recipe = training.Recipe(epochs=rounds + 1, patience=None, batch_size=batch_size, precision=precision)
    rates, epochs = [], peer_epochs(peer, train, dev, recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.Trainer(Classifier(net, vocabulary, labels), train, dev, recipe, folder)
        trainer.on_epoch = lambda metrics: rates.append((next(epochs), len(train) / metrics.seconds))
        trainer.run()
    figures = {"pairs": len(train), "words": len(vocabulary), "batch_size": batch_size, "precision": precision}
    print(", ".join(f"{name} {value}" for name, value in {**figures, **machine()}.items()))
    rates = dict(zip(("coetaur0 style", "esim_fast"), zip(*rates[1:], strict=True), strict=True))
    for name, each in rates.items():
        rate, note = np.median(each), "" if name == "esim_fast" and len(train) == SNLI else ", extrapolated"
        print(f"  {name:<15} {rate:>8,.0f} pairs a second, {SNLI / rate:>8,.0f} s for SNLI's {SNLI:,}{note}")
    print(f"esim_fast is {rate / np.median(rates['coetaur0 style']):.2f} times as fast")
    if json:
        write_json(json, {"date": time.strftime("%Y-%m-%d"), **machine(), **figures, "pairs_per_second": rates})


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.end_to_end", description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", metavar="FILE", help="labeled pairs; default: made-up ones like SNLI's")
    for option, default in {"--pairs": SNLI if FULL_SIZE else 3200, "--rounds": 3, "--batch-size": 32}.items():
        parser.add_argument(option, type=count, default=default, metavar="N", help="default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    try:
        compare(**vars(parser.parse_args()))
    except (OSError, ValueError) as error:
        parser.error(str(error))

"""An epoch of `esim-fast train`, with its evaluation and its files, against an epoch of the published loop.

The pairs are made up, with SNLI's lengths and vocabulary size. The loop is in the style of coetaur0: random padded
batches, CPU lengths sorted in each encoding, torch's default Adam, and the loss read after every step.
"""

from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.baselines import PADDING, Coetaur0ESIM
from benchmarks.corpus import VOCABULARY, draw_pairs
from benchmarks.measure import DEVICE, FULL_SIZE, ON_GPU, Variant
from esim_fast import ESIM, Classifier, training
from esim_fast.config import autocast
from esim_fast.data import Vocabulary

SHARE = 56  # training pairs per dev pair, as in SNLI
PRECISIONS = ["fp32", *(["bf16"] if ON_GPU else [])]


def scored(net, pairs, indices):
    batch = pairs[indices]
    sides = batch.pairs.rows(1)[:2]
    sentences = [batch.pairs.tokens[torch.from_numpy(side.offsets)].split(side.lengths.tolist()) for side in sides]
    ids = [nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=PADDING).to(DEVICE) for each in sentences]
    return net(*ids, *(side.lengths for side in sides)), batch.labels.to(DEVICE)


def variants(pairs, batch_size, precision):
    train, dev = (draw_pairs(size, np.random.default_rng(size)) for size in (pairs, 1 + pairs // SHARE))
    vocabulary, labels = Vocabulary.build(dict.fromkeys(map(str, range(VOCABULARY - 2)), 1)), ["E", "N", "C"]
    torch.manual_seed(0)
    net, peer = (kind(300, 300, len(vocabulary), len(labels)).to(DEVICE) for kind in (ESIM, Coetaur0ESIM))
    training.initialize(net)
    peer.load_state_dict(net.state_dict())
    recipe = training.Recipe(epochs=1, batch_size=batch_size, precision=precision)
    optimizer, random = torch.optim.Adam(peer.parameters(), lr=recipe.learning_rate), np.random.default_rng(0)

    def check():
        some = range(min(32, len(dev)))
        logits = net.eval()(dev[some].pairs.to(DEVICE)), scored(peer.eval(), dev, some)[0]
        # The baseline's softmax is imprecise, and on a GPU the LSTMs use TF32.
        torch.testing.assert_close(*logits, rtol=0, atol=1e-2 if DEVICE.type == "cuda" else 1e-4)

    def ours():
        with TemporaryDirectory() as folder:
            training.Trainer(Classifier(net, vocabulary, labels), train, dev, recipe, folder).run()

    def published():
        for part, order in ((train, random.permutation(len(train))), (dev, np.arange(len(dev)))):
            peer.train(part is train)
            correct = loss_sum = 0.0
            for start in range(0, len(part), batch_size):
                with torch.set_grad_enabled(peer.training), autocast(precision, DEVICE):
                    logits, gold = scored(peer, part, order[start : start + batch_size])
                    loss = nn.functional.cross_entropy(logits, gold)
                if peer.training:
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(peer.parameters(), recipe.max_grad_norm)
                    optimizer.step()
                loss_sum += loss.item()
                correct += int((logits.argmax(1) == gold).sum())

    return {"coetaur0 style": Variant(published, check), "esim_fast": Variant(ours, check)}


@pytest.mark.full
@pytest.mark.parametrize("variant", ["coetaur0 style", "esim_fast"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size", [32])
@pytest.mark.parametrize("pairs", [32_000 if FULL_SIZE else 1_600])
def test_epoch(variant, pairs, batch_size, precision, race):
    race(variant, lambda: variants(pairs, batch_size, precision))

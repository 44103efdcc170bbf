"""Batches have every pair once, with its own words and little padding."""

import copy
import dataclasses
import pickle
import re
import threading
import time
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from esim_fast import ESIM
from esim_fast.data import Batch, Batches, EncodedPairs, Vocabulary, batches, prepare
from tests.data.files import vocabulary_of, write

LABELS = ["entailment", "neutral", "contradiction"]


def random_pairs(count: int, seed: int = 0) -> tuple[EncodedPairs, list[tuple[list[int], list[int]]]]:
    """Pairs of sentences with 0 to 30 random ids, as a dataset and as lists."""
    rng = np.random.default_rng(seed)
    pairs = [tuple(rng.integers(2, 1000, rng.integers(31)).tolist() for _ in range(2)) for _ in range(count)]
    return EncodedPairs([p for p, _ in pairs], [h for _, h in pairs], [i % 3 for i in range(count)]), pairs


def sentences(batch: Batch) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of a batch's premises and hypotheses, one list per sentence."""
    tokens = batch.pairs.tokens
    premises, hypotheses, _ = batch.pairs.rows(1)
    return tuple(
        [tokens[start + rows.step[:n]].tolist() for start, n in zip(rows.start, rows.lengths.tolist(), strict=True)]
        for rows in (premises, hypotheses)
    )


def padded_size(batch: Batch) -> int:
    """The number of ids if the batch were padded to its longest sentences."""
    return len(batch) * sum(batch.pairs.longest)


def test_several_datasets_are_one(tmp_path):
    (first, lists), (second, more) = random_pairs(40, 1), random_pairs(30, 2)
    path = write(tmp_path, "a.tsv", "label\tpremise\thypothesis\nneutral\ta b c\tb\n-\tx\ty\nentailment\tc\ta a\n")
    third = prepare(path, "whitespace").encode(vocabulary_of("a", "b", "c"), LABELS)
    whole = EncodedPairs.concatenated([first, third, second])
    expected = [*lists, ([2, 3, 4], [3]), ([4], [2, 2]), *more]
    assert whole.lengths.tolist() == [[len(p), len(h)] for p, h in expected]
    assert whole.labels.tolist() == [*first.labels, 1, 0, *second.labels]
    for indices in ([0, 39, 40, 41, 42, 71], list(range(72))):
        assert sentences(whole[indices]) == tuple([expected[index][side] for index in indices] for side in (0, 1))
    assert EncodedPairs.concatenated([first]) is first
    for wrong in ([], [first, EncodedPairs([[2]], [[3]], None)]):
        with pytest.raises(ValueError, match="expected one dataset or more, all with labels or all without"):
            EncodedPairs.concatenated(wrong)


def test_one_batch_by_hand():
    dataset = EncodedPairs([[5, 6, 7], [], [8]], [[9], [10, 11], []], [2, 0, 1])
    batch = dataset[[2, 0]]
    assert len(batch) == len(batch.pairs) == 2
    assert sentences(batch) == ([[8], [5, 6, 7]], [[], [9]])
    # Time-major, the longest sentence first, premises before hypotheses of the same length.
    assert batch.pairs.tokens.tolist() == [5, 8, 9, 6, 7]
    assert batch.pairs.batch_sizes.tolist() == [3, 1, 1]
    assert batch.pairs.longest == (3, 1)
    assert batch.pairs.words == (4, 1)
    assert batch.labels.tolist() == [1, 2]
    assert batch.indices.tolist() == [2, 0]
    for tensor in (batch.pairs.tokens, batch.pairs.addresses, batch.labels, batch.indices):
        assert tensor.dtype == torch.int64
    assert dataset.lengths.tolist() == [[3, 1], [0, 2], [1, 0]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_empty_sentences_and_no_pairs(shuffle):
    (batch,) = batches(EncodedPairs([[], []], [[], []], None), 4, shuffle=shuffle)
    assert sentences(batch) == ([[], []], [[], []])
    assert len(batch.pairs.tokens) == len(batch.pairs.batch_sizes) == 0
    assert batch.labels is None
    loader = batches(EncodedPairs([], [], []), 4, shuffle=shuffle)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize("shuffle", [False, True])
@given(count=st.integers(0, 400), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_pair_once_with_its_own_words(shuffle, count, batch_size, seed):
    dataset, pairs = random_pairs(count, seed)
    loader = batches(dataset, batch_size, shuffle=shuffle, seed=seed, epoch=1)
    found = list(loader)
    for batch in found:
        indices = batch.indices.tolist()
        assert sentences(batch) == tuple([pairs[i][side] for i in indices] for side in (0, 1))
        assert batch.labels.tolist() == [i % 3 for i in indices]
    assert sorted(chain.from_iterable(batch.indices.tolist() for batch in found)) == list(range(count))
    assert len(loader) == len(found) == -(-count // batch_size)
    assert sorted(map(len, found))[1:] == [batch_size] * (len(found) - 1)


def order(loader: Batches) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader]


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"max_tokens": 240}])
def test_shuffling_follows_from_seed_and_epoch(size):
    dataset, _ = random_pairs(2000)
    first = order(batches(dataset, **size, shuffle=True, seed=1, epoch=2))
    torch.manual_seed(5)
    np.random.seed(5)
    assert order(batches(dataset, **size, shuffle=True, seed=1, epoch=2)) == first
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = order(batches(dataset, **size, shuffle=True, seed=seed, epoch=epoch))
        assert other != first
        # Other pairs share a batch, and not only the order of batches changes.
        assert len({tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in other}) < 25


def test_the_order_is_by_length_only_without_shuffling():
    dataset, _ = random_pairs(3200)
    unshuffled = order(batches(dataset, 32, shuffle=False))
    lengths = dataset.lengths[list(chain.from_iterable(unshuffled))].tolist()
    assert lengths == sorted(lengths)
    assert order(batches(dataset, 32, shuffle=False, seed=9, epoch=9)) == unshuffled
    longest = np.array([batch.pairs.longest[0] for batch in batches(dataset, 32, shuffle=True)])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


@pytest.mark.parametrize("size", [{"batch_size": 32}, {"max_tokens": 1000}])
@pytest.mark.parametrize("shuffle", [False, True])
def test_bucketing_saves_padding(size, shuffle):
    dataset, _ = random_pairs(6400)
    words = int(dataset.lengths.sum())
    unbucketed = sum(padded_size(dataset[range(start, start + 32)]) for start in range(0, 6400, 32))
    bucketed = sum(map(padded_size, batches(dataset, **size, shuffle=shuffle)))
    assert bucketed - words < 0.35 * (unbucketed - words)


@pytest.mark.parametrize("labels", [[0, 1], None])
def test_moving_a_batch_keeps_launch_sizes_on_the_cpu(labels):
    batch = EncodedPairs([[2], [3, 4]], [[5], []], labels)[[0, 1]].to("meta")
    assert batch.pairs.tokens.device.type == batch.pairs.lengths.device.type == "meta"
    assert batch.pairs.batch_sizes.tolist() == [3, 1]
    assert batch.pairs.longest == (2, 1)
    assert batch.indices.tolist() == [0, 1]
    assert batch.labels is None if labels is None else batch.labels.device.type == "meta"


def same(one: Batch, other: Batch) -> bool:
    pairs = (torch.equal(getattr(one.pairs, name), getattr(other.pairs, name)) for name in ("tokens", "addresses"))
    return torch.equal(one.labels, other.labels) and torch.equal(one.indices, other.indices) and all(pairs)


def test_batches_made_ahead_are_the_same():
    dataset, _ = random_pairs(100)
    here = list(batches(dataset, 8, shuffle=True))
    for prefetch in (1, 3, 100):
        loader = batches(dataset, 8, shuffle=True, prefetch=prefetch)
        assert all(map(same, here * 2, chain(loader, loader)))


class Counting(EncodedPairs):
    """Counts its batches and fails at the tenth."""

    made = 0

    def __getitem__(self, indices: object) -> Batch:
        self.made += 1
        if self.made == 10:
            raise RuntimeError("broken")
        return super().__getitem__(indices)


def test_making_ahead_is_bounded_and_ends():
    dataset = Counting([[2]] * 1000, [[3]] * 1000, None)
    before = threading.active_count()
    iterator = iter(batches(dataset, 1, shuffle=False, prefetch=3))
    for _ in range(5):
        next(iterator)
    time.sleep(0.05)
    assert dataset.made <= 8
    iterator.close()
    assert threading.active_count() == before


def test_a_failure_while_making_ahead_arrives():
    with pytest.raises(RuntimeError, match=r"^broken$"):
        list(batches(Counting([[2]] * 20, [[3]] * 20, None), 1, shuffle=False, prefetch=2))


@pytest.mark.parametrize("size", [{"batch_size": 7}, {"max_tokens": 200}])
@pytest.mark.parametrize("shuffle", [False, True])
def test_resuming_in_the_middle_of_an_epoch(size, shuffle):
    dataset, _ = random_pairs(100)
    whole = order(batches(dataset, **size, shuffle=shuffle, seed=3, epoch=2))
    for start in (0, 1, 5, len(whole), len(whole) + 1):
        rest = batches(dataset, **size, shuffle=shuffle, seed=3, epoch=2, start=start)
        assert len(rest) == max(0, len(whole) - start)
        assert order(rest) == whole[start:]


@given(count=st.integers(0, 300), max_tokens=st.integers(1, 300), shuffle=st.booleans())
def test_batches_by_words(count, max_tokens, shuffle):
    dataset, _ = random_pairs(count)
    words = dataset.lengths.sum(1)
    cut = order(batches(dataset, max_tokens=max_tokens, shuffle=shuffle, seed=4))
    assert sorted(chain.from_iterable(cut)) == list(range(count))
    for batch in cut:
        assert len(batch) == 1 or words[batch].sum() <= max_tokens
    if not shuffle:  # no batch has room for the next one's first pair
        for batch, following in pairwise(cut):
            assert words[batch].sum() + words[following[0]] > max_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected batch_size or max_tokens, got neither"),
        ({"batch_size": 0}, "expected a positive integer as batch_size, got 0"),
        ({"batch_size": -1}, "expected a positive integer as batch_size, got -1"),
        ({"batch_size": 2.0}, "expected a positive integer as batch_size, got 2.0"),
        ({"batch_size": "32"}, "expected a positive integer as batch_size, got '32'"),
        ({"max_tokens": 0}, "expected a positive integer as max_tokens, got 0"),
        ({"batch_size": 1, "start": -1}, "expected a non-negative integer as start, got -1"),
        ({"batch_size": 1, "prefetch": 0.5}, "expected a non-negative integer as prefetch, got 0.5"),
        ({"batch_size": 1, "shard": (2, 2)}, "expected shard as (r, n) with 0 <= r < n, got (2, 2)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        batches(random_pairs(3)[0], shuffle=True, **options)


def test_words_numbered_in_their_own_way():
    tokens = np.array([0, 1, 2, 1, 3], dtype=np.int32)
    ids = np.array([20, 10, 0, 30])
    begins, lengths = np.array([[0, 2], [3, 4], [4, 4]]), np.array([[2, 1], [1, 1], [0, 0]])
    dataset = EncodedPairs.of_tokens(tokens, ids, begins, lengths, np.array([1, 0, 2]))
    assert len(dataset) == 3
    batch = dataset[[1, 0, 2]]
    assert sentences(batch) == ([[10], [20, 10], []], [[30], [0], []])
    assert batch.pairs.tokens.dtype == torch.int64
    assert batch.labels.tolist() == [0, 1, 2]


def test_real_corpus(real_data):
    corpus = prepare(real_data / "snli/dev.tsv.gz")
    vocabulary = Vocabulary.build(corpus.word_counts(labeled=True))
    assert vocabulary.words[:6] == ["<unk>", "<pad>", "a", ".", "the", "in"]
    known = [word for word in corpus.words if word in vocabulary]
    assert [vocabulary.words[index] for index in vocabulary.encode(known)] == known
    dataset = corpus.encode(vocabulary, LABELS)
    assert len(dataset) == 9842
    found = list(batches(dataset, 32, shuffle=True))
    assert sum(map(len, found)) == 9842
    # Without buckets, batches of 32 have more than twice as much padding as words.
    assert sum(map(padded_size, found)) < 1.35 * int(dataset.lengths.sum())


def applied(function, data):
    """Applies ``function`` to all tensors of a batch like Lightning, which sets the fields of a copy."""
    if isinstance(data, torch.Tensor):
        return function(data)
    if not dataclasses.is_dataclass(data):
        return data
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    result = copy.deepcopy(data, {id(value): value for value in values.values()})
    for name, value in values.items():
        setattr(result, name, applied(function, value))
    return result


@pytest.mark.parametrize("part", ["batch", "pairs"])
def test_frameworks_go_through_the_tensors(part):
    """With ``precision="64-true"``, Lightning converts all floating-point tensors in a batch to double."""
    dataset, _ = random_pairs(20)
    for batch in batches(dataset, 8, shuffle=False):
        sent = batch if part == "batch" else batch.pairs
        moved = applied(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor.clone(), sent)
        assert type(moved) is type(sent)
        assert len(moved) == len(sent)
        pairs, expected = (moved.pairs, batch.pairs) if part == "batch" else (moved, batch.pairs)
        assert pairs.tokens is not expected.tokens
        for field in dataclasses.fields(pairs):
            ours, theirs = getattr(pairs, field.name), getattr(expected, field.name)
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        if part == "batch":
            assert torch.equal(moved.labels, batch.labels)
            assert torch.equal(moved.indices, batch.indices)
            assert moved.whole == batch.whole
    assert applied(torch.clone, EncodedPairs([[2]], [[3]], None)[[0]]).labels is None


@pytest.mark.parametrize("part", ["batch", "pairs"])
def test_torchs_loader_hands_batches_over(part, monkeypatch):
    dataset, _ = random_pairs(20)
    made = [batch if part == "batch" else batch.pairs for batch in batches(dataset, 8, shuffle=False)]
    for found, sent in zip(DataLoader(made, batch_size=None), made, strict=True):
        assert found is sent
        assert len(pickle.loads(pickle.dumps(found))) == len(sent)  # like a batch from a worker process
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # the real one needs a GPU
    pinned = pin_memory(made[0])
    assert type(pinned) is type(made[0])
    assert pinned is not made[0]


@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-true"])
def test_lightning_trains_on_batches(precision):
    lightning = pytest.importorskip("pytorch_lightning")
    dataset, _ = random_pairs(20)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = ESIM(4, 4, 1000, 3, dropout=0.0)

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self.net(batch.pairs), batch.labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    before = module.net.linear.mlp[3].weight.detach().clone()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=1, precision=precision, accelerator="cpu", **quiet)
    trainer.fit(module, batches(dataset, 8, shuffle=True))
    assert trainer.global_step == 3
    after = module.net.linear.mlp[3].weight
    assert not torch.equal(after, before.to(after.dtype))

"""Batches: every pair once, its own words, little padding."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esim_fast.data import (
    Batch,
    Corpus,
    DataError,
    EncodedPairs,
    Pair,
    Vocabulary,
    batches,
    encode_pairs,
    get_tokeniser,
    read_pairs,
    tokenise_pairs,
)

LABELS = ["entailment", "neutral", "contradiction"]


def random_pairs(count: int, seed: int = 0) -> tuple[EncodedPairs, list[tuple[list[int], list[int]]]]:
    """Pairs of 0 to 30 random ids, as a dataset and as lists."""
    rng = np.random.default_rng(seed)
    pairs = [tuple(rng.integers(2, 1000, rng.integers(31)).tolist() for _ in range(2)) for _ in range(count)]
    return EncodedPairs([p for p, _ in pairs], [h for _, h in pairs], [i % 3 for i in range(count)]), pairs


def sentences(batch: Batch) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of a batch's premises and of its hypotheses, one list for each sentence."""
    tokens = batch.pairs.tokens
    premises, hypotheses, _ = batch.pairs.rows(1)
    return tuple(
        [tokens[start + rows.step[:n]].tolist() for start, n in zip(rows.start, rows.lengths.tolist(), strict=True)]
        for rows in (premises, hypotheses)
    )


def padded_size(batch: Batch) -> int:
    """How many ids there would be if the batch were padded to its longest sentences."""
    return len(batch) * sum(batch.pairs.longest)


def test_one_batch_by_hand() -> None:
    dataset = EncodedPairs([[5, 6, 7], [], [8]], [[9], [10, 11], []], [2, 0, 1])
    batch = dataset[[2, 0]]
    assert len(batch) == len(batch.pairs) == 2
    assert sentences(batch) == ([[8], [5, 6, 7]], [[], [9]])
    # Time-major, the longest sentence first, premises before hypotheses of the same length.
    assert batch.pairs.tokens.tolist() == [5, 8, 9, 6, 7]
    assert batch.pairs.batch_sizes.tolist() == [3, 1, 1]
    assert batch.pairs.longest == (3, 1)
    assert batch.pairs.words == (4, 1)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 2]
    assert batch.indices.tolist() == [2, 0]
    for tensor in (batch.pairs.tokens, batch.pairs.addresses, batch.labels, batch.indices):
        assert tensor.dtype == torch.int64
    assert dataset.premise_lengths.tolist() == [3, 0, 1]
    assert dataset.hypothesis_lengths.tolist() == [1, 2, 0]


@pytest.mark.parametrize("shuffle", [False, True])
def test_empty_sentences(shuffle: bool) -> None:
    (batch,) = batches(EncodedPairs([[], []], [[], []], None), 4, shuffle=shuffle)
    assert sentences(batch) == ([[], []], [[], []])
    assert len(batch.pairs.tokens) == len(batch.pairs.batch_sizes) == 0
    assert batch.labels is None


def test_no_pairs() -> None:
    loader = batches(EncodedPairs([], [], []), 4, shuffle=True)
    assert len(loader) == 0
    assert list(loader) == []


@pytest.mark.parametrize("shuffle", [False, True])
@given(count=st.integers(0, 400), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_pair_once_with_its_own_words(shuffle: bool, count: int, batch_size: int, seed: int) -> None:
    dataset, pairs = random_pairs(count, seed)
    loader = batches(dataset, batch_size, shuffle=shuffle, seed=seed, epoch=1)
    seen: list[int] = []
    sizes: list[int] = []
    for batch in loader:
        indices = batch.indices.tolist()
        seen += indices
        sizes.append(len(indices))
        assert sentences(batch) == tuple([pairs[i][side] for i in indices] for side in (0, 1))
        assert batch.labels is not None
        assert batch.labels.tolist() == [i % 3 for i in indices]
    assert sorted(seen) == list(range(count))
    assert len(loader) == len(sizes) == -(-count // batch_size)
    assert sorted(sizes)[1:] == [batch_size] * (len(sizes) - 1)


def order(loader: torch.utils.data.DataLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader]


def test_shuffling_follows_from_seed_and_epoch() -> None:
    dataset, _ = random_pairs(2000)
    first = order(batches(dataset, 8, shuffle=True, seed=1, epoch=2))
    torch.manual_seed(5)
    np.random.seed(5)
    assert order(batches(dataset, 8, shuffle=True, seed=1, epoch=2)) == first
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other = order(batches(dataset, 8, shuffle=True, seed=seed, epoch=epoch))
        assert other != first
        # Not the same batches in another order: other pairs meet.
        assert len({tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in other}) < 25


def test_batches_do_not_come_by_length_when_shuffled() -> None:
    dataset, _ = random_pairs(3200)
    lengths = np.array([batch.pairs.longest[0] for batch in batches(dataset, 32, shuffle=True)])
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.4


def test_without_shuffling_the_order_is_by_length() -> None:
    dataset, _ = random_pairs(500)
    indices = list(chain.from_iterable(order(batches(dataset, 32, shuffle=False))))
    lengths = list(zip(dataset.premise_lengths[indices], dataset.hypothesis_lengths[indices], strict=True))
    assert lengths == sorted(lengths)
    assert order(batches(dataset, 32, shuffle=False, seed=9, epoch=9)) == order(batches(dataset, 32, shuffle=False))


def test_bucketing_saves_padding() -> None:
    dataset, _ = random_pairs(6400)
    words = int(dataset.premise_lengths.sum() + dataset.hypothesis_lengths.sum())
    unbucketed = sum(padded_size(dataset[range(start, start + 32)]) for start in range(0, 6400, 32))
    for shuffle in (False, True):
        bucketed = sum(padded_size(batch) for batch in batches(dataset, 32, shuffle=shuffle))
        assert bucketed - words < 0.35 * (unbucketed - words)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "32", None])
def test_bad_batch_size(batch_size: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a positive integer as batch_size, got "):
        batches(random_pairs(3)[0], batch_size, shuffle=True)


@pytest.mark.parametrize("labels", [[0, 1], None])
def test_moving_a_batch_leaves_on_the_cpu_what_decides_launches(labels: list[int] | None) -> None:
    batch = EncodedPairs([[2], [3, 4]], [[5], []], labels)[[0, 1]].to("meta")
    assert batch.pairs.tokens.device.type == batch.pairs.lengths.device.type == "meta"
    assert batch.pairs.batch_sizes.tolist() == [3, 1]
    assert batch.pairs.longest == (2, 1)
    assert batch.indices.tolist() == [0, 1]
    if labels is None:
        assert batch.labels is None
    else:
        assert batch.labels is not None
        assert batch.labels.device.type == "meta"


def test_worker_processes_give_the_same_batches() -> None:
    dataset, _ = random_pairs(100)
    here = list(batches(dataset, 8, shuffle=True))
    there = list(batches(dataset, 8, shuffle=True, num_workers=2))
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        for name in ("tokens", "batch_sizes", "addresses"):
            assert torch.equal(getattr(one.pairs, name), getattr(other.pairs, name))


PAIRS = [Pair("a b", "c", "neutral", 2), Pair("b <pad>", "", "entailment", 3)]
VOCABULARY = Vocabulary(["<unk>", "<pad>", "a", "b"])


def test_encoding_a_corpus() -> None:
    tokens = tokenise_pairs(PAIRS, str.split)
    dataset = encode_pairs(Corpus("a.tsv", PAIRS, 0), tokens, VOCABULARY, LABELS)
    batch = dataset[[0, 1]]
    assert sentences(batch) == ([[2, 3], [3, 0]], [[0], []])
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0]
    assert encode_pairs(Corpus("a.tsv", PAIRS, 0), tokens, VOCABULARY, None).labels is None


@pytest.mark.parametrize(("label", "got"), [("maybe", "'maybe'"), (None, "no label")])
def test_unknown_label(label: str | None, got: str) -> None:
    pairs = [*PAIRS, Pair("a", "b", label, 17)]
    with pytest.raises(DataError) as caught:
        encode_pairs(Corpus("dev.tsv", pairs, 0), tokenise_pairs(pairs, str.split), VOCABULARY, LABELS)
    assert str(caught.value) == f"dev.tsv:17: expected a label among entailment, neutral, contradiction, got {got}"


def test_real_corpus(real_data: Path) -> None:
    corpus = read_pairs(real_data / "snli/dev.tsv.gz")
    tokens = tokenise_pairs(corpus.pairs, get_tokeniser())
    vocabulary = Vocabulary.build(chain.from_iterable(tokens))
    dataset = encode_pairs(corpus, tokens, vocabulary, LABELS)
    seen = 0
    padded = 0
    for batch in batches(dataset, 32, shuffle=True):
        seen += len(batch)
        padded += padded_size(batch)
        pairs = zip(*sentences(batch), strict=True)
        for row, (index, pair) in enumerate(zip(batch.indices.tolist(), pairs, strict=True)):
            assert tuple([vocabulary.words[i] for i in ids] for ids in pair) == tuple(tokens[index])
            assert LABELS[batch.labels[row]] == corpus.pairs[index].label
    assert seen == 9842
    # Unbucketed batches of 32 hold more than twice as much padding as words.
    words = int(dataset.premise_lengths.sum() + dataset.hypothesis_lengths.sum())
    assert padded < 1.35 * words

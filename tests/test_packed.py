"""Packing from token ids, against torch's packing of padded sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from esim_fast import Rows
from esim_fast.inputs import _left_align
from esim_fast.ops import local_inference, masked_pool
from esim_fast.packed import pack_pairs


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), max_size=6), seed=st.integers(0, 999))
def test_packs_like_torch(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths_p, lengths_h = torch.tensor(lengths, dtype=torch.int64).view(-1, 2).unbind(1)
    p = torch.randint(2, 99, (len(lengths), 8), generator=generator)
    h = torch.randint(2, 99, (len(lengths), 9), generator=generator)
    pairs = pack_pairs(p, h, lengths_p, lengths_h)

    both = torch.cat([torch.nn.functional.pad(p, (0, 1)), h])
    every_length = torch.cat([lengths_p, lengths_h])
    present = every_length > 0
    if present.any():
        expected = pack_padded_sequence(both[present], every_length[present], batch_first=True, enforce_sorted=False)
        assert torch.equal(pairs.tokens, expected.data)
        assert torch.equal(pairs.batch_sizes, expected.batch_sizes)
    else:
        assert len(pairs.tokens) == len(pairs.batch_sizes) == 0

    # The addressing rule finds every token, in elements of a tensor of any width.
    for width in (1, 5):
        rows = pairs.rows(width).all
        assert rows.max_length == int(every_length.max() if len(every_length) else 0)
        for b, length in enumerate(every_length.tolist()):
            found = pairs.tokens[(rows.start[b] + rows.step[:length]) // width]
            assert torch.equal(found, both[b, :length])
    *halves, every = pairs.rows(5)
    assert torch.equal(torch.cat([half.start for half in halves]), every.start)
    assert torch.equal(torch.cat([half.lengths for half in halves]), every.lengths)
    assert [half.tokens for half in halves] == [int(n.sum()) for n in (lengths_p, lengths_h)]
    assert len(pairs) == len(lengths)
    assert [half.max_length for half in halves] == [int(n.max()) if len(n) else 0 for n in (lengths_p, lengths_h)]


def test_mistakes():
    ids, good = torch.full((2, 3), 5), torch.tensor([3, 1])
    with pytest.raises(ValueError, match=r"^premises and hypotheses must be \[B, Lp\] and \[B, Lh\], got"):
        pack_pairs(ids, ids[:1], good, torch.tensor([3, 2]))
    for lengths in ([3, -1], [3]):
        with pytest.raises(ValueError, match=r"^hypothesis_lengths"):
            pack_pairs(ids, ids, good, torch.tensor(lengths))


@pytest.mark.gpu
def test_moves_from_pinned_memory():
    ids = torch.arange(2, 14).view(2, 6)
    pairs = pack_pairs(ids, ids, torch.tensor([6, 3]), torch.tensor([1, 0]))
    moved = pairs.pin_memory().to("cuda")
    on_gpu = pack_pairs(ids.cuda(), ids.cuda(), torch.tensor([6, 3]), torch.tensor([1, 0]))
    for name in ("tokens", "addresses", "rank", "first_row", "lengths"):
        assert torch.equal(getattr(moved, name).cpu(), getattr(pairs, name))
        assert torch.equal(getattr(on_gpu, name).cpu(), getattr(pairs, name))


def test_padding_comes_after_the_sentence():
    ids = torch.tensor([[5, 6, 1, 1], [1, 7, 1, 8], [1, 1, 1, 1], [2, 3, 4, 5]])
    aligned, lengths = _left_align("p", ids, ids, None, 1)
    assert lengths.tolist() == [2, 2, 0, 4]
    assert [row[:n].tolist() for row, n in zip(aligned, lengths, strict=True)] == [[5, 6], [7, 8], [], [2, 3, 4, 5]]
    _, lengths = _left_align("p", ids, ids, torch.tensor([1, 2, 4, 3]), 1)
    assert lengths.tolist() == [1, 1, 0, 3]
    aligned, lengths = _left_align("p", ids, ids, None, None)
    assert aligned is ids
    assert lengths.tolist() == [4, 4, 4, 4]


def some_pairs():
    ids = torch.arange(2, 26).view(4, 6)
    return pack_pairs(ids, ids[:, :5], torch.tensor([6, 0, 3, 1]), torch.tensor([2, 5, 0, 1]))


def test_moving_changes_nothing():
    pairs = some_pairs()
    for whole in (pairs, pairs.to("cpu")):
        for moved in (whole.rows(3), [rows.to("cpu") for rows in pairs.rows(3)]):
            for rows, expected in zip(moved, pairs.rows(3), strict=True):
                for name in ("start", "step", "lengths"):
                    assert torch.equal(getattr(rows, name), getattr(expected, name))
                assert rows.filled is expected.filled is None or torch.equal(rows.filled, expected.filled)
                assert (rows.max_length, rows.tokens) == (expected.max_length, expected.tokens)
    assert pairs.to("meta").tokens.is_meta
    assert pairs.to("meta").addresses.is_meta


@pytest.mark.parametrize("width", [1, 4])
def test_known_rows_equal_computed_ones(width):
    rows = some_pairs().rows(width)
    for known in rows:
        assert known.known
        found = Rows(known.start, known.step, known.lengths, known.max_length, known.tokens)
        assert not found.known
        assert known.extent.lowest <= found.extent.lowest <= found.extent.highest <= known.extent.highest
        assert found.extent.divisor % known.extent.divisor == 0
        assert known.extent.distinct
        assert found.extent.distinct
    found = Rows(rows.all.start, rows.all.step, rows.all.lengths, rows.all.max_length)
    assert rows.all.extent[:2] == found.extent[:2] == (0, (rows.all.tokens - 1) * width)
    assert rows.premises.is_apart_from(rows.hypotheses)
    assert not rows.premises.is_apart_from(rows.all)
    nothing = torch.zeros(2, dtype=torch.int64)
    assert all(rows.extent is None for rows in pack_pairs(torch.ones(2, 3), torch.ones(2, 3), nothing, nothing).rows(4))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=5),
    more=st.tuples(st.integers(0, 9), st.integers(0, 3)),
)
def test_a_capacity_only_adds_room(lengths, more):
    lengths_p, lengths_h = torch.tensor(lengths, dtype=torch.int64).view(-1, 2).unbind(1)
    ids = torch.arange(2, 2 + 29 * len(lengths)).view(-1, 29)
    pairs = pack_pairs(ids[:, :20], ids[:, 20:], lengths_p, lengths_h)
    rows, count = len(pairs.tokens) + more[0], len(pairs) + more[1]
    roomy = pairs.with_capacity(rows, count, padding_idx=0)
    assert roomy.tokens.tolist() == pairs.tokens.tolist() + [0] * more[0]
    assert len(roomy) == count
    assert roomy.longest == (32 if pairs.longest[0] > 16 else 16, 16)
    assert len(roomy.addresses) == 4 * count + max(roomy.longest) + 2
    assert roomy.rank.sort().values.tolist() == list(range(2 * count))
    for part in (roomy.rank, roomy.first_row, roomy.lengths):
        assert (part.storage_offset() - roomy.addresses.storage_offset()) % 2 == 0
    for ours, theirs in zip(roomy.rows(3), pairs.rows(3), strict=True):
        there = [*range(len(pairs)), *range(count, count + len(pairs))][: len(theirs.start)]
        assert torch.equal(ours.start[there], theirs.start)
        assert torch.equal(ours.lengths[there], theirs.lengths)
        assert ours.lengths.sum() == theirs.lengths.sum()
        assert torch.equal(ours.step[: theirs.max_length], theirs.step[: theirs.max_length])
        assert ours.tokens is None
    assert roomy.rows(3).all.filled.tolist() == [len(pairs.tokens)]
    # Step by step, the longest sentences come first.
    wanted = [r for size in pairs.batch_sizes.tolist() for r in range(size)]
    assert roomy.sentence[: len(wanted)].tolist() == pairs.sentence.tolist() == wanted
    assert (roomy.sentence < max(2 * count, 1)).all()


def test_capacities_that_do_not_fit():
    pairs = some_pairs()
    for rows, count in ((len(pairs.tokens) - 1, None), (99, 3)):
        with pytest.raises(ValueError, match=rf"^expected room for 18 rows and 4 pairs, got rows={rows} and pairs="):
            pairs.with_capacity(rows, count)
    with pytest.raises(ValueError, match=r"^these pairs already have a capacity"):
        pairs.with_capacity(20).with_capacity(30)


@pytest.mark.parametrize("longest", [4, 5])
def test_slices_of_addresses_are_aligned(longest):
    ids = torch.arange(2, 2 + 3 * longest).view(3, longest)
    pairs = pack_pairs(ids, ids, torch.tensor([1, longest, 2]), torch.tensor([0, 2, 1]))
    assert len(pairs.first_row) > longest
    assert pairs.first_row[longest:].tolist() == [len(pairs.tokens)] * (len(pairs.first_row) - longest)
    for part in (pairs.rank, pairs.first_row, pairs.lengths):
        assert (part.storage_offset() - pairs.addresses.storage_offset()) % 2 == 0
    assert pairs.lengths.tolist() == [1, longest, 2, 0, 2, 1]


@pytest.mark.parametrize("lengths", [[], torch.zeros(0, dtype=torch.int32), None], ids=["list", "tensor", "none"])
def test_no_lengths(lengths):
    x = torch.zeros(0, 3, 4)
    assert masked_pool(x, lengths).shape == (0, 8)
    assert [m.shape for m in local_inference(x, x[:, :2], lengths, lengths)] == [(0, 3, 16), (0, 2, 16)]
    assert len(pack_pairs(x[..., 0].long(), x[..., 0].long(), *[torch.zeros(0, dtype=torch.int64)] * 2)) == 0

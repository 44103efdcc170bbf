"""Packing straight from token ids, against torch's own packing of padded sequences."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from esim_fast.packed import left_align, pack_pairs


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), max_size=6), seed=st.integers(0, 999))
def test_packs_as_torch_does(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths_p = torch.tensor([p for p, _ in lengths], dtype=torch.int64)
    lengths_h = torch.tensor([h for _, h in lengths], dtype=torch.int64)
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

    # The addressing rule finds every token again, in elements of a tensor of any width.
    for width in (1, 5):
        rows = pairs.rows(width)
        assert rows.max_length == int(every_length.max() if len(every_length) else 0)
        for b, length in enumerate(every_length.tolist()):
            found = pairs.tokens[(rows.start[b] + rows.step[:length]) // width]
            assert torch.equal(found, both[b, :length])
    halves = pairs.premise_rows(5), pairs.hypothesis_rows(5)
    assert torch.equal(torch.cat([half.start for half in halves]), pairs.rows(5).start)
    assert [half.max_length for half in halves] == [int(n.max()) if len(n) else 0 for n in (lengths_p, lengths_h)]


def test_left_align():
    ids = torch.tensor([[5, 6, 1, 1], [1, 7, 1, 8], [1, 1, 1, 1], [2, 3, 4, 5]])
    aligned, lengths = left_align(ids, 1, None)
    assert lengths.tolist() == [2, 2, 0, 4]
    assert [row[:n].tolist() for row, n in zip(aligned, lengths, strict=True)] == [[5, 6], [7, 8], [], [2, 3, 4, 5]]
    _, lengths = left_align(ids, 1, torch.tensor([1, 2, 4, 3]))
    assert lengths.tolist() == [1, 1, 0, 3]
    aligned, lengths = left_align(ids, None, None)
    assert aligned is ids
    assert lengths.tolist() == [4, 4, 4, 4]

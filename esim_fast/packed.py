"""Pairs of sentences as one packed sequence, and the addressing rule that every kernel follows.

In every layout, the D values of a token are contiguous. Only the offset of token ``t`` of sequence ``b`` differs:

    offset(b, t) = start[b] + step[t]        (in elements)

This is ``b*L*D + t*D`` in a padded ``[B, L, D]``, ``cu_seqlens[b]*D + t*D`` in concatenated sequences, and
``rank(b)*D + sum(batch_sizes[:t])*D`` in a packed one (sorted by length and time-major, as cuDNN's LSTM expects).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Extent(NamedTuple):
    """The range of the offsets of Rows: lowest, highest, a common divisor, and whether all are distinct."""

    lowest: int
    highest: int
    divisor: int
    distinct: bool


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the tokens of each sequence lie in a row-addressed tensor ``[N, D]``.

    Token ``t`` of sequence ``b`` begins at element ``start[b] + step[t]`` of the contiguous tensor, so offsets are
    multiples of D. A row belongs to at most one sequence.

    Attributes:
        start: int64 ``[B]``, the sequence's part of the offset.
        step: int64 ``[T]`` with ``T >= max_length``, the time step's part of the offset.
        lengths: int64 ``[B]``, the number of tokens in each sequence, between 0 and ``max_length``.
        max_length: the longest length, or any upper bound; known without reading ``lengths`` back.
        tokens: the sum of ``lengths``, if it is known without reading them back. If that is every row of the tensor,
            results need no clearing before they are written.
        filled: int64 ``[1]``, how many rows the sentences fill, if they fill the first rows of the tensor without gaps.
            Kernels on a GPU then clear only the rows after them.

    Raises:
        TypeError: a tensor is not int64, or ``max_length`` or ``tokens`` is not an integer.
        ValueError: shapes or devices disagree, or ``max_length`` is negative or longer than ``step``.
    """

    start: Tensor
    step: Tensor
    lengths: Tensor
    max_length: int
    tokens: int | None = None
    filled: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("start", "step", "lengths", "filled"):
            tensor = getattr(self, name)
            if tensor is None and name == "filled":
                continue
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"Rows.{name} must be an int64 tensor, got {found}")
            if tensor.dim() != 1:
                raise ValueError(f"Rows.{name} must have one dimension, got shape {list(tensor.shape)}")
            if name == "filled" and len(tensor) != 1:
                raise ValueError(f"Rows.filled must have one entry, got {len(tensor)}")
            if tensor.device != self.start.device:
                raise ValueError(f"Rows.start is on {self.start.device}, but Rows.{name} is on {tensor.device}")
        if self.start.shape != self.lengths.shape:
            raise ValueError(
                f"Rows.start and Rows.lengths must have one entry for each sequence, "
                f"got {self.start.shape[0]} and {self.lengths.shape[0]}"
            )
        if not isinstance(self.max_length, int | torch.SymInt):  # SymInt: torch.export with a dynamic batch
            raise TypeError(f"Rows.max_length must be an int, got {type(self.max_length).__name__}")
        if not isinstance(self.tokens, int | None):
            raise TypeError(f"Rows.tokens must be an int or None, got {type(self.tokens).__name__}")
        if not 0 <= self.max_length <= self.step.shape[0]:
            raise ValueError(
                f"Rows.max_length = {self.max_length} must lie between 0 and the {len(self.step)} entries of Rows.step"
            )

    @classmethod
    def concatenated(cls, lengths: Tensor | Sequence[int], width: int) -> "Rows":
        """Address sequences that are concatenated in a tensor ``[sum(lengths), width]``.

        Args:
            lengths: integers ``[B]``. Their maximum and sum are read, so lengths on a GPU cause a sync.
            width: D, the number of elements in a row.
        """
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        max_length = int(lengths.max()) if len(lengths) else 0
        start = (lengths.cumsum(0) - lengths) * width
        step = torch.arange(max_length, device=lengths.device) * width
        return cls(start, step, lengths, max_length, int(lengths.sum()))

    @cached_property
    def offsets(self) -> np.ndarray:
        """The offset of each token, sequence by sequence (rows on the CPU only)."""
        lengths = self.lengths.numpy()
        step = self.step.numpy()[: lengths.max(initial=0)]
        return (self.start.numpy()[:, None] + step)[np.arange(len(step)) < lengths[:, None]]

    @cached_property
    def extent(self) -> Extent | None:
        """The range of the offsets (rows on the CPU only); None if there are no tokens."""
        lengths, offsets = self.lengths.numpy(), self.offsets
        if not len(offsets):
            return None
        parts = self.start.numpy()[lengths > 0], self.step.numpy()[: lengths.max()]
        return Extent(
            int(offsets.min()),
            int(offsets.max()),
            divisor=int(np.gcd.reduce(np.concatenate(parts))),
            distinct=len(np.unique(offsets)) == len(offsets),
        )

    # Checks are cached with the rows, because repeating them takes longer than a small batch.

    @property
    def known(self) -> bool:
        """Whether ``extent`` has been computed, which means that the lengths were valid."""
        return "extent" in vars(self)

    def is_apart_from(self, other: "Rows") -> bool:
        """Whether these rows are known to have no row in common with ``other``."""
        return vars(self).get("_apart_from") is other

    def remember_apart_from(self, other: "Rows") -> None:
        vars(self)["_apart_from"] = other

    def to(self, device: torch.device | str) -> "Rows":
        """Return the same rows with their tensors on ``device``."""
        start, step, lengths = (move(part, device) for part in (self.start, self.step, self.lengths))
        filled = None if self.filled is None else move(self.filled, device)
        return Rows(start, step, lengths, self.max_length, self.tokens, filled)


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Move a tensor: to a GPU without a sync, from a GPU with one."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


class PairRows(NamedTuple):
    """Where the sentences of packed pairs lie in a tensor: premises, hypotheses, and all (premises first)."""

    premises: Rows
    hypotheses: Rows
    all: Rows


# Not frozen: Lightning copies dataclasses in a batch and sets their fields to convert dtypes.
@dataclass(eq=False)
class PackedPairs:
    """The 2B sentences of B pairs as one packed sequence of N rows, so that one LSTM call covers them all.

    Attributes:
        tokens: int64 ``[N]``, the token ids, sorted by sentence length and time-major.
        batch_sizes: int64 ``[T]``, always on the CPU: how many sentences reach each time step. None with a capacity.
        addresses: int64 on the device of ``tokens``: ``rank``, ``first_row`` and ``lengths`` concatenated, each
            starting at an even index.
        longest: lengths of the longest premise and the longest hypothesis; with a capacity, the largest it has room
            for.
        words: numbers of tokens in all premises and in all hypotheses. None with a capacity.
        pairs: B.
    """

    tokens: Tensor
    batch_sizes: Tensor | None
    addresses: Tensor
    longest: tuple[int, int]
    words: tuple[int, int] | None
    pairs: int

    def __len__(self) -> int:
        return self.pairs

    @property
    def rank(self) -> Tensor:
        """int64 ``[2B]``, the position of each sentence in the sorted order: premises first, then hypotheses."""
        return self.addresses[: 2 * self.pairs]

    @property
    def first_row(self) -> Tensor:
        """int64, more than T numbers: the first row of each time step, then the number of rows that sentences fill."""
        return self.addresses[2 * self.pairs : len(self.addresses) - 2 * self.pairs]

    @property
    def lengths(self) -> Tensor:
        """int64 ``[2B]``, the number of tokens in each sentence: premises first, then hypotheses."""
        return self.addresses[len(self.addresses) - 2 * self.pairs :]

    @property
    def sentence(self) -> Tensor:
        """int64 ``[N]``, the position of each row's sentence in the sorted order; any position for an unused row."""
        row, first_row = torch.arange(len(self.tokens), device=self.addresses.device), self.first_row
        time = torch.searchsorted(first_row[1:], row, right=True)
        return (row - first_row[time]).clamp(max=2 * self.pairs - 1)

    def rows(self, width: int) -> PairRows:
        """Return the addressing of a tensor ``[N, width]`` with a row for each token."""
        # One multiplication for both, to launch one GPU kernel instead of two.
        lengths, filled = self.lengths, self.first_row[-1:] if self.words is None else None
        start, step = (self.addresses[: len(self.addresses) - len(lengths)] * width).tensor_split([len(lengths)])
        count, words = (None, (None, None)) if self.words is None else (len(self.tokens), self.words)
        every = Rows(start, step, lengths, max(self.longest), count, filled)
        sides = (slice(None, self.pairs), slice(self.pairs, None))
        premises, hypotheses = (
            Rows(start[these], step, lengths[these], longest, count)
            for these, longest, count in zip(sides, self.longest, words, strict=True)
        )
        rows = PairRows(premises, hypotheses, every)
        extent = Extent(0, (len(self.tokens) - 1) * width, divisor=width, distinct=True)
        for part in rows:  # valid by construction, so the checks can be skipped
            vars(part)["extent"] = None if part.tokens == 0 else extent
        rows.premises.remember_apart_from(rows.hypotheses)
        return rows

    def with_capacity(self, rows: int, pairs: int | None = None, *, padding_idx: int | None = 1) -> "PackedPairs":
        """Return the same pairs with room for more, so that tensors of different batches have the same shapes.

        Everything that differs between batches of one capacity is then in ``tokens`` and ``addresses``: on a GPU, a
        network reads nothing back and launches the same kernels for all of them. Logits and gradients are those of the
        pairs alone. Further pairs are empty; their logits mean nothing, and a loss must leave them out.

        The capacity also fixes the longest premise and hypothesis: 16 tokens, or the next power of 2. These are the
        tiles of local inference's kernels.

        Args:
            rows: the new N. Rows after the batch have no effect.
            pairs: the new B; None keeps it.
            padding_idx: the token id in rows after the batch, the network's ``padding_idx``.

        Raises:
            ValueError: the pairs do not fit, or already have a capacity.
        """
        if self.batch_sizes is None:
            raise ValueError("these pairs already have a capacity: call with_capacity on the original pairs")
        pairs = self.pairs if pairs is None else pairs
        if rows < len(self.tokens) or pairs < self.pairs:
            raise ValueError(
                f"expected room for {len(self.tokens)} rows and {self.pairs} pairs, got rows={rows} and pairs={pairs}"
            )
        longest = tuple(1 << max(4, (length - 1).bit_length()) for length in self.longest)
        (p_rank, h_rank), (p_lengths, h_lengths) = (part.tensor_split(2) for part in (self.rank, self.lengths))
        # The further sentences come last in the sorted order.
        p_more, h_more = torch.arange(2 * self.pairs, 2 * pairs, device=self.addresses.device).tensor_split(2)
        ranks = p_rank, p_more, h_rank, h_more
        steps = self.first_row, self.first_row[-1:].expand(max(longest) + 2 - len(self.first_row))
        lengths = p_lengths, torch.zeros_like(p_more), h_lengths, torch.zeros_like(h_more)
        tokens = functional.pad(self.tokens, (0, rows - len(self.tokens)), value=padding_idx or 0)
        return PackedPairs(tokens, None, torch.cat([*ranks, *steps, *lengths]), (longest[0], longest[1]), None, pairs)

    def to(self, device: torch.device | str) -> "PackedPairs":
        """Return the same pairs with tokens and addresses on ``device``; copies to a GPU cause no sync."""
        return replace(self, tokens=move(self.tokens, device), addresses=move(self.addresses, device))

    def pin_memory(self) -> "PackedPairs":
        """Return the same pairs in pinned memory, so that copies to a GPU overlap with work on the CPU."""
        return replace(self, tokens=self.tokens.pin_memory(), addresses=self.addresses.pin_memory())


def check_lengths(name: str, lengths: Tensor | Sequence[int], batch: int, longest: int) -> Tensor:
    """Return ``lengths`` as an int64 tensor ``[batch]``; lengths on the CPU are checked to lie in 0..``longest``."""
    if isinstance(lengths, Rows):
        raise TypeError(f"{name} must be integers, got Rows (pass them as rows=)")
    lengths = torch.as_tensor(lengths)
    # An empty list becomes a float tensor but is still valid.
    if lengths.numel() and (lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex()):
        hint = f" (pass a mask as {name.replace('lengths', 'mask')}=)" if lengths.dtype == torch.bool else ""
        raise TypeError(f"{name} must be integers, got {lengths.dtype}{hint}")
    if lengths.shape != (batch,):
        raise ValueError(f"{name} must have shape [{batch}], one for each sequence, got {list(lengths.shape)}")
    lengths = lengths.to(torch.int64).contiguous()
    if lengths.device.type == "cpu" and batch and not torch.compiler.is_compiling():
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > longest:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{name}[{int((lengths == wrong).nonzero()[0])}] = {wrong}, expected 0 to {longest} (the padded length)"
            )
    return lengths


def pack_pairs(
    premises: Tensor, hypotheses: Tensor, premise_lengths: Tensor, hypothesis_lengths: Tensor
) -> PackedPairs:
    """Pack padded token ids, without padded embeddings and without a loop over time steps.

    Args:
        premises: token ids ``[B, Lp]``, each sentence at the start of its row.
        hypotheses: token ids ``[B, Lh]``, each sentence at the start of its row.
        premise_lengths: integers ``[B]`` on the CPU. Layouts are computed there, so ids on a GPU cause no sync.
        hypothesis_lengths: integers ``[B]`` on the CPU.

    Raises:
        TypeError: lengths are not integers.
        ValueError: shapes disagree, or lengths lie outside 0..L.
    """
    if premises.dim() != 2 or hypotheses.dim() != 2 or len(premises) != len(hypotheses):
        raise ValueError(
            f"premises and hypotheses must be [B, Lp] and [B, Lh], got {list(premises.shape)} and "
            f"{list(hypotheses.shape)}"
        )
    sides = ("premise", premises, premise_lengths), ("hypothesis", hypotheses, hypothesis_lengths)
    lengths = [check_lengths(f"{name}_lengths", torch.as_tensor(given).cpu(), *ids.shape) for name, ids, given in sides]
    begins = [torch.arange(len(ids), device="cpu") * ids.shape[1] for _, ids, _ in sides]
    begins[1] += premises.numel()
    flat = torch.cat([premises.reshape(-1), hypotheses.reshape(-1)])
    return pack_flat(flat, *begins, *lengths)


def pack_flat(
    ids: Tensor, premise_begins: Tensor, hypothesis_begins: Tensor, premise_lengths: Tensor, hypothesis_lengths: Tensor
) -> PackedPairs:
    """Pack sentences of a flat array of token ids, given where each begins and how long it is.

    Args:
        ids: token ids of any number, on any device.
        premise_begins: int64 ``[B]`` on the CPU, like the following arguments.
        hypothesis_begins: where each hypothesis begins.
        premise_lengths: number of tokens in each premise.
        hypothesis_lengths: number of tokens in each hypothesis.
    """
    lengths = torch.cat([premise_lengths, hypothesis_lengths])
    # Sentences that reach step t are those longer than t; the lengths are sorted, so a binary search counts them.
    sorted_lengths, order = lengths.sort(descending=True, stable=True)
    steps = int(sorted_lengths[0]) if len(lengths) else 0
    time = torch.arange(steps, device="cpu")
    batch_sizes = torch.searchsorted(-sorted_lengths, -time)
    words = int(premise_lengths.sum()), int(hypothesis_lengths.sum())
    # Ends with the number of rows: twice if needed for an even length, so that the next part starts at an even index.
    first_row = torch.full((2 * (steps // 2 + 1),), sum(words), device="cpu")
    first_row[:steps] = batch_sizes.cumsum(0) - batch_sizes
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device="cpu")

    # Row (t, r) holds token t of the r-th longest sentence.
    row_time = time.repeat_interleave(batch_sizes)
    row_sentence = order[torch.arange(len(row_time), device="cpu") - first_row[row_time]]
    place = torch.cat([premise_begins, hypothesis_begins])[row_sentence] + row_time

    parts = [rank, first_row, lengths]
    if ids.device.type == "cpu":
        tokens, addresses = ids[place], torch.cat(parts)
    else:
        # A single copy from pinned memory moves everything to the GPU without a sync.
        everything = torch.cat([*parts, place])
        moved = move(everything.pin_memory() if ids.device.type == "cuda" else everything, ids.device)
        addresses, place = moved.split([len(moved) - len(place), len(place)])
        tokens = ids[place]
    longest = (int(premise_lengths.max()), int(hypothesis_lengths.max())) if len(premise_lengths) else (0, 0)
    return PackedPairs(tokens, batch_sizes, addresses, longest, words, len(premise_lengths))

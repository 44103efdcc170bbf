"""Pairs of sentences for a compiler, with as many rows for each sentence: no shape depends on what lengths hold."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .packed import PairRows, Rows


@dataclass(eq=False)
class PaddedPairs:
    """What :class:`esim_fast.PackedPairs` is outside of a compiled network. All 2B sentences have rows in all T time
    steps, so N = T * 2B; what lies behind a sentence's end has no influence.

    Attributes:
        tokens: int64 ``[N]``, time-major; any token stands behind the end of a sentence.
        padding: boolean ``[N]``, which rows lie behind the end of their sentence.
        lengths: int64 ``[2B]``, tokens in each sentence: premises first, then hypotheses.
        longest: how long a premise and a hypothesis may be; T is the larger of both.
        pairs: B.
    """

    tokens: Tensor
    padding: Tensor
    lengths: Tensor
    longest: tuple[int, int]
    pairs: int

    @property
    def steps(self) -> int:
        """T."""
        return torch.sym_max(*self.longest)

    @property
    def batch_sizes(self) -> Tensor:
        """int64 ``[T]`` on the CPU, 2B sentences in each time step."""
        return torch.full((self.steps,), 2 * self.pairs, dtype=torch.int64, device="cpu")

    @property
    def first_row(self) -> Tensor:
        """int64 ``[T]``, where each time step begins."""
        return torch.arange(self.steps, device=self.tokens.device) * (2 * self.pairs)

    def rows(self, width: int) -> PairRows:
        """The addressing rule of a tensor ``[N, width]`` with these rows."""
        start, step = torch.arange(2 * self.pairs, device=self.tokens.device) * width, self.first_row * width
        sides = (slice(None, self.pairs), slice(self.pairs, None))
        premises, hypotheses = (
            Rows(start[these], step, self.lengths[these], longest)
            for these, longest in zip(sides, self.longest, strict=True)
        )
        return PairRows(premises, hypotheses, Rows(start, step, self.lengths, self.steps))


def pad_pairs(p: Tensor, h: Tensor, p_lengths: Tensor, h_lengths: Tensor) -> PaddedPairs:
    """Brings sentences that begin in the first column to one length.

    Args:
        p, h: token ids ``[B, Lp]`` and ``[B, Lh]``. What stands behind a sentence's end need not be a token id.
        p_lengths, h_lengths: int64 ``[B]`` on the device of the ids. They are not checked: those below 0 count as
            0, those above L as L.
    """
    longest = p.shape[1], h.shape[1]
    steps = torch.sym_max(*longest)
    sides = (p_lengths, longest[0]), (h_lengths, longest[1])
    lengths = torch.cat([lengths.clamp(0, length) for lengths, length in sides])
    padding = torch.arange(steps, device=lengths.device)[:, None] >= lengths  # [T, 2B]
    tokens = torch.cat([functional.pad(ids.t(), (0, 0, 0, steps - ids.shape[1])) for ids in (p, h)], dim=1)
    return PaddedPairs(tokens.masked_fill(padding, 0).flatten(), padding.flatten(), lengths, longest, p.shape[0])

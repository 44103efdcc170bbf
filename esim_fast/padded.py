"""Padded pairs for compilers: every sentence has the same number of rows, so shapes do not depend on lengths."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from .packed import PairRows, Rows


@dataclass(eq=False)
class PaddedPairs:
    """The counterpart of ``esim_fast.PackedPairs`` in compiled networks.

    All 2B sentences have rows in all T time steps, so N = T * 2B. Rows after the end of a sentence have no effect.

    Attributes:
        tokens: int64 ``[N]``, time-major; tokens after the end of a sentence are arbitrary.
        padding: bool ``[N]``, which rows lie after the end of their sentence.
        lengths: int64 ``[2B]``, the number of tokens in each sentence: premises first, then hypotheses.
        longest: largest possible lengths of a premise and of a hypothesis; T is the larger one.
        pairs: B.
    """

    tokens: Tensor
    padding: Tensor
    lengths: Tensor
    longest: tuple[int, int]
    pairs: int

    @property
    def steps(self) -> int:
        """T, the number of time steps."""
        return cast(int, torch.sym_max(*self.longest))  # a SymInt while a compiler traces it

    @property
    def batch_sizes(self) -> Tensor:
        """int64 ``[T]`` on the CPU, 2B sentences in each time step."""
        return torch.full((self.steps,), 2 * self.pairs, dtype=torch.int64, device="cpu")

    @property
    def first_row(self) -> Tensor:
        """int64 ``[T + 1]``, the first row of each time step, then the number of rows."""
        return torch.arange(self.steps + 1, device=self.tokens.device) * (2 * self.pairs)

    @property
    def sentence(self) -> Tensor:
        """int64 ``[N]``, the number of each row's sentence: premises first, then hypotheses."""
        return torch.arange(2 * self.pairs, device=self.tokens.device).repeat(self.steps)

    def rows(self, width: int) -> PairRows:
        """Return the addressing of a tensor ``[N, width]`` with these rows."""
        start, step = torch.arange(2 * self.pairs, device=self.tokens.device) * width, self.first_row * width
        sides = (slice(None, self.pairs), slice(self.pairs, None))
        premises, hypotheses = (
            Rows(start[these], step, self.lengths[these], longest)
            for these, longest in zip(sides, self.longest, strict=True)
        )
        return PairRows(premises, hypotheses, Rows(start, step, self.lengths, self.steps))


def pad_pairs(p: Tensor, h: Tensor, p_lengths: Tensor, h_lengths: Tensor) -> PaddedPairs:
    """Pad left-aligned sentences to one length.

    Args:
        p: token ids ``[B, Lp]``; values after the end of a sentence may be anything.
        h: token ids ``[B, Lh]``.
        p_lengths: int64 ``[B]`` on the device of the ids. They are clamped to 0..L instead of checked.
        h_lengths: the same for hypotheses.
    """
    longest = p.shape[1], h.shape[1]
    steps = cast(int, torch.sym_max(*longest))
    sides = (p_lengths, longest[0]), (h_lengths, longest[1])
    lengths = torch.cat([lengths.clamp(0, length) for lengths, length in sides])
    padding = torch.arange(steps, device=lengths.device)[:, None] >= lengths  # [T, 2B]
    tokens = torch.cat([functional.pad(ids.t(), (0, 0, 0, steps - ids.shape[1])) for ids in (p, h)], dim=1)
    return PaddedPairs(tokens.masked_fill(padding, 0).flatten(), padding.flatten(), lengths, longest, p.shape[0])

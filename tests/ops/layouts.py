"""The layouts in which an op gets sentences, with NaN outside the sentences, which must have no effect."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esim_fast import Rows

LAYOUTS = ["lengths", "mask", "concatenated", "packed"]


def packed_rows(lengths: Tensor | list[int], width: int) -> tuple[Rows, int]:
    """Rows of sentences in a tensor, sorted and time-major as for a packed LSTM, and N."""
    lengths = torch.as_tensor(lengths)
    order = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    batch_sizes = (lengths[:, None] > torch.arange(int(lengths.max()))).sum(0)
    first = batch_sizes.cumsum(0) - batch_sizes
    words = int(lengths.sum())
    return Rows(rank * width, first * width, lengths, int(lengths.max()), words), words


@dataclass
class Layout:
    """The places of sentences' tokens in a tensor.

    Attributes:
        shape: the tensor's shape, without D.
        numbers: int64, each token's row in the tensor flattened to ``[N, D]``, sentence by sentence.
        given_as: the op's arguments, for instance ``{"lengths": ...}``.
    """

    shape: tuple[int, ...]
    numbers: Tensor
    lengths: list[int]
    given_as: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, name: str, lengths: list[int], width: int, seed: int = 0, padding: int = 2) -> "Layout":
        """One of LAYOUTS, with ``padding`` more tokens than the longest sentence, or than all sentences if packed."""
        if name in ("lengths", "mask"):
            length = max(lengths) + padding
            mask = torch.arange(length) < torch.tensor(lengths)[:, None]
            if name == "mask":  # in any pattern
                shuffled = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)
                mask = mask.gather(1, shuffled)
            given_as = {"mask": mask} if name == "mask" else {"lengths": torch.tensor(lengths)}
            return cls(mask.shape, mask.flatten().nonzero()[:, 0], lengths, given_as)
        if name == "packed":
            rows, words = packed_rows(lengths, width)
        else:
            rows, words = Rows.concatenated(lengths, width), sum(lengths)
        valid = torch.arange(rows.max_length) < rows.lengths[:, None]
        offset = (rows.start[:, None] + rows.step[: rows.max_length])[valid]
        return cls((words + padding * (name == "packed"),), offset // max(width, 1), lengths, {"rows": rows})

    def fill(self, sentences: list[Tensor], elsewhere: float = math.nan) -> Tensor:
        """Puts sentences ``[n, D]`` into a tensor ``[*shape, D]``."""
        width = sentences[0].shape[1]
        flat = sentences[0].new_full((math.prod(self.shape), width), elsewhere)
        flat[self.numbers] = torch.cat(sentences)
        return flat.view(*self.shape, width)

    def sentences(self, x: Tensor) -> list[Tensor]:
        """Reverses ``fill``, and checks that everything else is zero."""
        flat = x.detach().cpu().reshape(-1, x.shape[-1])
        elsewhere = torch.ones(len(flat), dtype=torch.bool).index_fill(0, self.numbers, False)
        assert not flat[elsewhere].any(), "something is left outside the sentences"
        return list(flat[self.numbers].split(self.lengths))

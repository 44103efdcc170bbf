"""The layouts in which sentences reach an op, with NaN wherever no sentence is: it must have no influence."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esim_fast import Rows

LAYOUTS = ["lengths", "mask", "concatenated", "packed"]


def packed_rows(lengths: Tensor | list[int], width: int) -> tuple[Rows, int]:
    """Rows of sentences scattered over a tensor: sorted and time-major, as an LSTM packs them. Returns N too."""
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
    """Where the tokens of some sentences lie.

    Attributes:
        shape: of a tensor that holds them, without D.
        numbers: int64, the row of each token, sentence by sentence, in that tensor flattened to ``[N, D]``.
        given_as: how an op is told, for instance ``{"lengths": ...}``.
    """

    shape: tuple[int, ...]
    numbers: Tensor
    lengths: list[int]
    given_as: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, name: str, lengths: list[int], width: int, seed: int = 0, padding: int = 2) -> "Layout":
        """One of LAYOUTS, with ``padding`` tokens more than the longest sentence, or "packed" rows than all have."""
        if name in ("lengths", "mask"):
            length = max(lengths) + padding
            mask = torch.arange(length) < torch.tensor(lengths)[:, None]
            if name == "mask":  # any pattern of as many ones
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
        """``[*shape, D]`` with the sentences ``[n, D]`` in their places."""
        width = sentences[0].shape[1]
        flat = sentences[0].new_full((math.prod(self.shape), width), elsewhere)
        flat[self.numbers] = torch.cat(sentences)
        return flat.view(*self.shape, width)

    def sentences(self, x: Tensor) -> list[Tensor]:
        """The reverse of :meth:`fill`; whatever lies elsewhere must be zero."""
        flat = x.detach().cpu().reshape(-1, x.shape[-1])
        elsewhere = torch.ones(len(flat), dtype=torch.bool).index_fill(0, self.numbers, False)
        assert not flat[elsewhere].any(), "something is left outside the sentences"
        return list(flat[self.numbers].split(self.lengths))

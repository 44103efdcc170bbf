"""The projection of enhanced tokens that lack the difference (equation 16 without its activation).

    F [x; x̃; x - x̃; x ⊙ x̃] = [F1 + F3, F2 - F3, F4] [x; x̃; x ⊙ x̃]

so a quarter of the enhancement is not written, read or multiplied.
"""

import torch
from torch import Tensor

from .packing import packed
from .products import can_order, linear, onednn_product, ordered_linear


def projection(m: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project ``m [N, 3D]``, as ``local_inference_packed(difference=False)`` returns it, to ``[N, H]``.

    Args:
        m: enhanced tokens in fp32.
        weight: ``[H, 4D]`` in fp32, the weight of the whole enhancement.
        bias: ``[H]`` in fp32.
    """
    if can_order(m, weight, bias, dtype=torch.float32):
        kept = packed(_ordered, weight, bias)
        if kept is not None:
            return onednn_product(m, *kept)
    return linear(m, without_difference(weight), bias)


def without_difference(weight: Tensor) -> Tensor:
    """Fold the columns ``[H, 4D]`` of a weight into those for tokens without the difference, ``[H, 3D]``."""
    of_word, of_aligned, of_difference, of_product = weight.unflatten(1, (4, -1)).unbind(1)
    return torch.cat([of_word + of_difference, of_aligned - of_difference, of_product], dim=1)


def _ordered(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return ordered_linear(without_difference(weight), bias)

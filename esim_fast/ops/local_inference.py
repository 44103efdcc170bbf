"""Local inference: masked co-attention, soft alignment and enhancement. Plain PyTorch, so far, on every device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..packed import Rows
from . import reference
from .checks import check_backend, tokens_of


def local_inference(
    a: Tensor,
    b: Tensor,
    a_lengths: Tensor | Sequence[int] | None = None,
    b_lengths: Tensor | Sequence[int] | None = None,
    *,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    a_rows: Rows | None = None,
    b_rows: Rows | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft alignment of two sentences and its enhancement (Chen et al. 2017, equations 11-15).

    Equivalent to, with ``a``, ``b`` the tokens of one pair alone (``[La, D]``, ``[Lb, D]``)::

        e = a @ b.T
        a_aligned, b_aligned = e.softmax(1) @ b, e.softmax(0).T @ a
        m_a = torch.cat([a, a_aligned, a - a_aligned, a * a_aligned], 1)
        m_b = torch.cat([b, b_aligned, b - b_aligned, b * b_aligned], 1)

    Args:
        a, b: ``[B, La, D]`` and ``[B, Lb, D]``, fp32, fp16, bf16 or fp64, any strides; or ``[N, D]`` with rows.
        a_lengths, b_lengths: integers ``[B]``, on any device: the first ``lengths[b]`` tokens count.
        a_mask, b_mask: ``[B, La]`` and ``[B, Lb]``, boolean or 0/1 of any dtype, any pattern.
        a_rows, b_rows: where the tokens of row-addressed (concatenated, packed) input lie. ``a`` and ``b`` may be the
            same tensor, with the rows of either in it.
        backend: "reference" (plain PyTorch) or None, the best one for the tensors at hand.

    Returns:
        m_a, m_b: ``[B, La, 4D]`` and ``[B, Lb, 4D]``, or ``[N, 4D]`` in the rows of ``a`` and ``b``; where ``a`` and
        ``b`` are the same row-addressed tensor, one tensor holds both and is returned twice. Exactly zero outside the
        sentences. The partner of a sentence of length 0 is aligned with zeros. Softmax is taken in fp32 (fp64 for
        fp64); results have the input's dtype, or autocast's for fp32 input under autocast.

    Raises:
        TypeError: a dtype or type is wrong.
        ValueError: shapes, dtypes or devices disagree, lengths lie outside 0..L (checked on the CPU), or ``backend``
            cannot run here.
    """
    a_lengths, a_mask = tokens_of("a", a, a_lengths, a_mask, a_rows)
    b_lengths, b_mask = tokens_of("b", b, b_lengths, b_mask, b_rows)
    _check_pair(a, b, a_rows, b_rows)
    check_backend(backend, "local_inference", ("reference",), a.device)
    options = {"a_mask": a_mask, "b_mask": b_mask, "a_rows": a_rows, "b_rows": b_rows}
    device = a.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast does not know tensors without values
        return reference.local_inference(a, b, a_lengths, b_lengths, **options)
    if a.dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
        a, b = (a.to(dtype),) * 2 if a is b else (a.to(dtype), b.to(dtype))
    with torch.autocast(device, enabled=False):
        return reference.local_inference(a, b, a_lengths, b_lengths, **options)


def _check_pair(a: Tensor, b: Tensor, a_rows: Rows | None, b_rows: Rows | None) -> None:
    if a.dtype != b.dtype:
        raise TypeError(f"a and b must have the same dtype, got {a.dtype} and {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"a is on {a.device}, but b on {b.device}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have the same width D, got {a.shape[-1]} and {b.shape[-1]}")
    pairs = [len(x) if rows is None else len(rows.start) for x, rows in ((a, a_rows), (b, b_rows))]
    if pairs[0] != pairs[1]:
        raise ValueError(f"a and b must hold as many sentences, got {pairs[0]} and {pairs[1]}")

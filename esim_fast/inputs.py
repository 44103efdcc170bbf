"""Check the inputs of a network, token ids or word vectors, and lay them out for the kernels."""

from collections.abc import Sequence
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from .ops.checks import autocast_dtype
from .packed import PackedPairs, check_lengths, pack_pairs
from .padded import PaddedPairs, pad_pairs
from .traps import warn_of_traps


def refuse_torchscript(*_: object) -> NoReturn:
    """Raise TypeError: ``torch.jit.trace`` would bake in one batch's lengths, and ``torch.jit.script`` cannot compile
    ESIM.
    """
    raise TypeError(
        "TorchScript does not support ESIM: use torch.export.export(net, …), or `esim-fast export` for ONNX"
    )


def pack_ids(
    p: Tensor | None,
    h: Tensor | None,
    p_lengths: Tensor | Sequence[int] | None,
    h_lengths: Tensor | Sequence[int] | None,
    *,
    padding_idx: int | None,
    embedding: nn.Embedding,
    embedded: tuple[Tensor, Tensor] | None = None,
) -> PackedPairs | PaddedPairs:
    """Pack padded token ids, with padding anywhere and with or without lengths.

    Ids on a GPU are read back only if no lengths are given. With lengths, the first ``lengths[b]`` ids on a GPU are the
    sentence. Under ``torch.compile`` the result is PaddedPairs, and no value is read.

    Args:
        p: premises, int64 or int32 ``[B, Lp]``.
        h: hypotheses, int64 or int32 ``[B, Lh]``.
        p_lengths: integers ``[B]``; the premise lies within the first ``p_lengths[b]`` ids.
        h_lengths: the same for hypotheses.
        padding_idx: the id that is never part of a sentence, or None.
        embedding: the layer that looks up the ids. They must be on its device and, where they can be read, below
            ``num_embeddings``.
        embedded: word vectors ``[B, Lp, E]`` and ``[B, Lh, E]`` to use instead of the embedding. Ids then only mark
            padding, and may be None if lengths are given. The tokens of the result are row numbers for ``look_up``.

    Raises:
        TypeError: ids or lengths are not integers, vectors do not have the embedding's dtype, or ``torch.jit.trace`` is
            running.
        ValueError: shapes or devices disagree, lengths lie outside 0..L, or ids are not rows of the embedding.
    """
    if torch.jit.is_tracing():
        refuse_torchscript()
    if embedded is None:
        p, h = rows = _checked_ids("p", p, embedding), _checked_ids("h", h, embedding)
        check_tokens("p", p, embedding)
        check_tokens("h", h, embedding)
    else:
        _check_embedded(embedded, (p, h), (p_lengths, h_lengths), embedding)
        rows = _rows_of(embedded)
    if rows[0].shape[0] != rows[1].shape[0]:
        raise ValueError(f"p and h must have the same batch size, got {len(rows[0])} and {len(rows[1])}")
    told_by_ids = p is not None and h is not None and p_lengths is None and h_lengths is None
    if told_by_ids and padding_idx is not None and rows[0].device.type == "cpu":
        warn_of_traps(cast(Tensor, p), cast(Tensor, h), padding_idx)
    p_rows, p_lengths = _left_align("p", rows[0], p, p_lengths, padding_idx)
    h_rows, h_lengths = _left_align("h", rows[1], h, h_lengths, padding_idx)
    return (pad_pairs if torch.compiler.is_compiling() else pack_pairs)(p_rows, h_rows, p_lengths, h_lengths)


def look_up(embedded: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    """Return ``[N, E]``: the given rows of the vectors ``[B, Lp, E]`` and ``[B, Lh, E]``, numbered consecutively."""
    return torch.cat([x.flatten(0, 1) for x in embedded]).index_select(0, rows)


def _rows_of(embedded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the row number for ``look_up`` of each position of ``[B, Lp]`` and ``[B, Lh]``."""
    p_shape, h_shape = (x.shape[:2] for x in embedded)
    p_count, h_count = p_shape.numel(), h_shape.numel()
    rows = torch.arange(p_count + h_count, device=embedded[0].device)
    return rows[:p_count].view(p_shape), rows[p_count:].view(h_shape)


def token_mask(name: str, ids: Tensor, lengths: Tensor | Sequence[int] | None, padding_idx: int | None) -> Tensor:
    """Return which of ``ids [B, L]`` (as for ``pack_ids``) are words and not padding: bool ``[B, L]``."""
    mask = torch.ones_like(ids, dtype=torch.bool) if padding_idx is None else ids != padding_idx
    if lengths is not None:
        lengths = check_lengths(f"{name}_lengths", lengths, *ids.shape).to(ids.device)
        mask &= torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return mask


def spread(weights: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Move the weights of a sentence's words along ``dim`` to the positions where ``mask [B, L]`` is True."""
    position = (mask.cumsum(1) - 1).clamp(min=0)  # index of the word within its sentence
    shape = [len(mask), 1, 1]
    shape[dim] = mask.shape[1]
    size = list(weights.shape)
    size[dim] = mask.shape[1]
    if weights.shape[dim] == 0:  # every sentence is empty
        return weights.new_zeros(size)
    return weights.gather(dim, position.view(shape).expand(size)) * mask.view(shape)


def check_tokens(name: str, ids: Tensor, embedding: nn.Embedding) -> None:
    """Check that ids are on the embedding's device and, if they can be read without a sync, are rows of it."""
    _check_device(name, ids, embedding)
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in ids.aminmax())
        words = embedding.num_embeddings
        if low < 0 or high >= words:
            wrong = low if low < 0 else high
            place = (ids == wrong).nonzero()[0].tolist()
            raise ValueError(f"{name}{place} = {wrong} is not a token id, expected 0 to {words - 1}")


def _check_device(name: str, x: Tensor, embedding: nn.Embedding) -> None:
    if x.device != embedding.weight.device:
        raise ValueError(f"{name} is on {x.device}, but the model is on {embedding.weight.device}")


def _checked_ids(name: str, ids: Tensor | None, embedding: nn.Embedding) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} must be a tensor of token ids, int64 or int32, got {found}")
    if ids.dim() != 2:
        raise ValueError(f"{name} must be [batch, length], got shape {list(ids.shape)}")
    _check_device(name, ids, embedding)
    return ids


def _check_embedded(
    embedded: tuple[Tensor, Tensor],
    ids: tuple[Tensor | None, Tensor | None],
    lengths: tuple[Tensor | Sequence[int] | None, Tensor | Sequence[int] | None],
    embedding: nn.Embedding,
) -> None:
    if not isinstance(embedded, tuple | list) or [isinstance(x, Tensor) for x in embedded] != [True, True]:
        raise TypeError("embedded must be two tensors, (premises, hypotheses)")
    width, dtype = embedding.weight.shape[1], embedding.weight.dtype
    for side, x in enumerate(embedded):
        name, ids_name = f"embedded[{side}]", "ph"[side]
        if not x.is_floating_point() or (x.dtype != dtype and autocast_dtype(x.device) is None):
            raise TypeError(f"{name} must be {dtype} like the model's parameters, got {x.dtype}")
        if x.dim() != 3 or x.shape[2] != width:
            raise ValueError(f"{name} must be [batch, length, {width}], got shape {list(x.shape)}")
        _check_device(name, x, embedding)
        if ids[side] is None:
            if lengths[side] is None:
                raise ValueError(f"{name} needs {ids_name} or {ids_name}_lengths to tell words from padding")
        elif (found := _checked_ids(ids_name, ids[side], embedding).shape) != x.shape[:2]:
            raise ValueError(f"{ids_name} has shape {list(found)}, but {name} has shape {list(x.shape)}")


def _left_align(
    name: str, rows: Tensor, ids: Tensor | None, lengths: Tensor | Sequence[int] | None, padding_idx: int | None
) -> tuple[Tensor, Tensor]:
    """Remove padding from ``rows [B, L]`` by moving each sentence's rows to the front.

    Args:
        name: ``p`` or ``h``, for messages.
        rows: ``[B, L]``.
        ids: ``[B, L]``, which mark padding in addition to lengths; None if nothing does.
        lengths: integers ``[B]``, or None.
        padding_idx: the id of padding, or None.

    Returns:
        Rows ``[B, L]``, and int64 lengths ``[B]`` on the CPU or, under a compiler, on the device of the rows.
    """
    compiled = torch.compiler.is_compiling()
    place = rows.device if compiled else torch.device("cpu")
    if ids is None:
        ids, padding_idx = rows, None
    if lengths is not None:  # packing needs them on the CPU anyway
        lengths = lengths.to(place) if isinstance(lengths, Tensor) else lengths
        if ids.device.type != "cpu" or padding_idx is None:
            return rows, check_lengths(f"{name}_lengths", lengths, *ids.shape).to(place)
    mask = token_mask(name, ids, lengths, padding_idx)
    counts = mask.sum(1)
    if compiled or not torch.equal(mask, torch.arange(ids.shape[1], device=ids.device) < counts[:, None]):
        rows = rows.gather(1, mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True))
    return rows, counts.to(place)

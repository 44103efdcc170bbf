"""The paper's equations in plain PyTorch: the reference for testing kernels, and the fallback without them.

Chen et al. 2017, *Enhanced LSTM for Natural Language Inference*: https://aclanthology.org/P17-1152

Arithmetic is fp32, or fp64 for fp64 input; results have the input's dtype. Values outside sentences have no effect, and
outputs and gradients there are exactly zero.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..packed import Rows


def local_inference(
    a: Tensor,
    b: Tensor,
    a_lengths: Tensor | None = None,
    b_lengths: Tensor | None = None,
    *,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    a_rows: Rows | None = None,
    b_rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the soft alignment of two sentences and its enhancement (equations 11-15).

    Arguments and results are those of ``esim_fast.ops.local_inference``; input is not checked.
    """
    a_padded, a_valid = _padded(a, a_lengths, a_mask, a_rows)
    b_padded, b_valid = _padded(b, b_lengths, b_mask, b_rows)
    m_a, m_b = _enhanced(a_padded, b_padded, a_valid, b_valid)
    return _as_given(m_a, a, a_valid, a_rows), _as_given(m_b, b, b_valid, b_rows)


def local_inference_packed(
    x: Tensor,
    a_rows: Rows,
    b_rows: Rows,
    *,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    difference: bool = True,
) -> Tensor:
    """Compute local inference on a tensor ``[N, D]`` that holds both sides.

    Arguments and results are those of ``esim_fast.ops.local_inference_packed``; input is not checked.
    """
    a, a_valid = _padded(x, None, a_mask, a_rows)
    b, b_valid = _padded(x, None, b_mask, b_rows)
    m_a, m_b = _enhanced(a, b, a_valid, b_valid)
    m = _scatter(m_a, x, a_valid, a_rows, onto=_scatter(m_b, x, b_valid, b_rows))
    if difference:
        return m
    of_word, aligned, _, product = m.chunk(4, dim=1)
    return torch.cat([of_word, aligned, product], dim=1)


def attention(a: Tensor, b: Tensor, *, a_rows: Rows | None = None, b_rows: Rows | None = None) -> tuple[Tensor, Tensor]:
    """Compute the soft alignment's weights (equations 11-13).

    Returns:
        ``(alpha, beta)``, both ``[B, La, Lb]``. Rows of alpha and columns of beta sum to one within the sentences and
        are zero outside.
    """
    a_padded, a_valid = _padded(a, None, None, a_rows)
    b_padded, b_valid = _padded(b, None, None, b_rows)
    alpha, beta = _weights(a_padded, b_padded, a_valid, b_valid)
    pairs = a_valid[:, :, None] & b_valid[:, None, :]
    return (alpha * pairs).to(a.dtype), (beta * pairs).to(a.dtype)


def enhance(x: Tensor, aligned: Tensor) -> Tensor:
    """Return ``[x; x̃; x - x̃; x ⊙ x̃]`` (equations 14 and 15): ``[..., D]`` twice to ``[..., 4D]``."""
    return torch.cat([x, aligned, x - aligned, x * aligned], dim=-1)


def masked_pool(
    x: Tensor, lengths: Tensor | None = None, *, mask: Tensor | None = None, rows: Rows | None = None
) -> Tensor:
    """Compute average and max pooling over the tokens of each sentence (equations 18-20).

    Arguments and results are those of ``esim_fast.ops.masked_pool``; input is not checked.
    """
    padded, valid = _padded(x, lengths, mask, rows)
    if padded.shape[1] == 0:
        return padded.sum(1).repeat(1, 2).to(x.dtype)  # zeros that still depend on x for autograd
    average = padded.sum(1) / valid.sum(1).clamp(min=1)[:, None]
    highest, first = padded.masked_fill(~valid[:, :, None], float("-inf")).max(1)
    # If all tokens are -inf, max() may have picked padding; the maximum is then the first token.
    first = torch.where(highest == float("-inf"), valid.to(torch.uint8).argmax(1)[:, None], first)
    maximum = padded.gather(1, first[:, None, :]).squeeze(1)
    return torch.cat([average, maximum], dim=1).to(x.dtype)


def quantized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize ``x [N, K]`` to int8 ``[N, K]`` and scale ``[N]``: ``x ≈ scale * int8`` with ``scale = max |x| / 127``
    of a row.

    A row of zeros, or of numbers close to fp32's smallest, becomes zeros. A row with NaN or infinity becomes zeros with
    the scale NaN, so that every result computed from it is NaN.
    """
    if x.shape[1] == 0:
        return x.to(torch.int8), x.new_zeros(len(x))
    magnitude = x.abs().amax(1)
    magnitude = torch.where(magnitude.isfinite(), magnitude, torch.nan)
    factor = torch.where(magnitude > 127 * torch.finfo(torch.float32).tiny, 127 / magnitude, 0.0)[:, None]
    return torch.where(factor > 0, (x * factor).round(), 0.0).to(torch.int8), magnitude / 127


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply ``x [N, K]`` by ``weight [M, K]``, both quantized by rows, and add ``bias [M]``: ``[N, M]`` in x's
    dtype.
    """
    (q_x, scale_x), (q_w, scale_w) = quantized_rows(x), quantized_rows(weight)
    sums = (q_x.double() @ q_w.double().t()).to(x.dtype)  # exact
    return sums * scale_w * scale_x[:, None] + bias


def int8_bilstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """Compute ``esim_fast.ops.bilstm`` with inputs, states and weights quantized by rows: ``[N, D]`` to ``[N, 2H]``."""
    sizes, first = batch_sizes.tolist(), (batch_sizes.cumsum(0) - batch_sizes).tolist()
    y = x.new_zeros(len(x), 2 * lstm.hidden_size)
    orders = range(len(sizes)), range(len(sizes))[::-1]  # time steps of the forward and the backward direction
    for (w_ih, w_hh, b_ih, b_hh), order, half in zip(lstm.all_weights, orders, y.chunk(2, dim=1), strict=True):
        gates, nothing = int8_linear(x, w_ih, b_ih + b_hh), torch.zeros_like(b_hh)
        h = c = x.new_zeros(0, lstm.hidden_size)
        for t in order:
            rows = slice(first[t], first[t] + sizes[t])
            # Append zero states for sentences that begin here, and drop the states of those that have ended.
            h, c = (functional.pad(state, (0, 0, 0, sizes[t] - len(state))) for state in (h, c))
            gates_t = gates[rows] + int8_linear(h, w_hh, nothing)
            i, f, g, o = gates_t.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            half[rows] = h = o.sigmoid() * c.tanh()
    return y


def _enhanced(a: Tensor, b: Tensor, a_valid: Tensor, b_valid: Tensor) -> tuple[Tensor, Tensor]:
    alpha, beta = _weights(a, b, a_valid, b_valid)
    return enhance(a, alpha @ b), enhance(b, beta.transpose(1, 2) @ a)  # eq. 12 and 14, 13 and 15


def _weights(a: Tensor, b: Tensor, a_valid: Tensor, b_valid: Tensor) -> tuple[Tensor, Tensor]:
    scores = a @ b.transpose(1, 2)  # eq. 11: [B, La, Lb]
    return _masked_softmax(scores, b_valid[:, None, :], dim=2), _masked_softmax(scores, a_valid[:, :, None], dim=1)


def _masked_softmax(scores: Tensor, valid: Tensor, dim: int) -> Tensor:
    """Softmax over valid positions. Without any, the weights are meaningless but finite, and multiply zeros only."""
    outside = ~valid & valid.any(dim, keepdim=True)
    return scores.masked_fill(outside, float("-inf")).softmax(dim)


def _padded(x: Tensor, lengths: Tensor | None, mask: Tensor | None, rows: Rows | None) -> tuple[Tensor, Tensor]:
    """Return ``x`` as ``[B, L, D]`` in the dtype of the arithmetic, zero outside the sentences, and bool ``[B, L]``."""
    if rows is not None:
        position = torch.arange(rows.max_length, device=x.device)
        valid = position < rows.lengths[:, None]
    else:
        position = torch.arange(x.shape[1], device=x.device)
        valid = (
            position < (x.new_full((len(x),), x.shape[1], dtype=torch.int64) if lengths is None else lengths)[:, None]
        )
    if mask is not None:
        valid = valid & (mask != 0)
    if rows is not None:
        x = _gather(x, valid, rows)
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.where(valid[:, :, None], x, 0.0), valid


def _row_numbers(valid: Tensor, rows: Rows, width: int, outside: int) -> Tensor:
    """Return each token's row in ``[N, D]`` as ``[B, L]``; ``outside`` where there is no token."""
    offset = rows.start[:, None] + rows.step[: rows.max_length]
    return torch.where(valid, offset // max(width, 1), outside)


def _gather(x: Tensor, valid: Tensor, rows: Rows) -> Tensor:
    if len(x) == 0:
        return x.sum(0).expand(*valid.shape, -1)  # zeros that still depend on x for autograd
    return x[_row_numbers(valid, rows, x.shape[1], outside=0)]


def _scatter(m: Tensor, x: Tensor, valid: Tensor, rows: Rows, onto: Tensor | None = None) -> Tensor:
    """Write the tokens of ``m [B, L, 4D]`` to their rows of ``[N, 4D]``, on top of ``onto`` or zeros.

    Non-tokens go to a spare row, so shapes do not depend on ``valid`` and there is no GPU sync.
    """
    count, width = x.shape
    out = x.new_zeros(count, 4 * width) if onto is None else onto
    numbers = _row_numbers(valid, rows, width, outside=count)
    with_spare = torch.cat([out, out.new_zeros(1, 4 * width)])
    return with_spare.index_put((numbers.reshape(-1),), m.reshape(-1, 4 * width).to(x.dtype))[:count]


def _as_given(m: Tensor, x: Tensor, valid: Tensor, rows: Rows | None) -> Tensor:
    if rows is None:
        return torch.where(valid[:, :, None], m, 0.0).to(x.dtype)
    return _scatter(m, x, valid, rows)

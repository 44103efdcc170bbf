"""The paper's equations in plain PyTorch: what the kernels are tested against, and what runs where none exists.

Chen et al. 2017, *Enhanced LSTM for Natural Language Inference*: https://aclanthology.org/P17-1152

Arithmetic is fp32, or fp64 for fp64 input; results have the input's dtype. Nothing outside a sentence has any
influence, whatever it holds: outputs and gradients there are exactly zero.
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
    """Soft alignment of two sentences and its enhancement, equations 11-15.

    Arguments and results are those of :func:`esim_fast.ops.local_inference`; input is not checked.
    """
    a_padded, a_valid = _padded(a, a_lengths, a_mask, a_rows)
    b_padded, b_valid = _padded(b, b_lengths, b_mask, b_rows)
    m_a, m_b = _enhanced(a_padded, b_padded, a_valid, b_valid)
    return _as_given(m_a, a, a_valid, a_rows), _as_given(m_b, b, b_valid, b_rows)


def local_inference_packed(
    x: Tensor, a_rows: Rows, b_rows: Rows, *, a_mask: Tensor | None = None, b_mask: Tensor | None = None
) -> Tensor:
    """The same of a tensor ``[N, D]`` that holds both sides.

    Arguments and results are those of :func:`esim_fast.ops.local_inference_packed`; input is not checked.
    """
    a, a_valid = _padded(x, None, a_mask, a_rows)
    b, b_valid = _padded(x, None, b_mask, b_rows)
    m_a, m_b = _enhanced(a, b, a_valid, b_valid)
    return _scatter(m_a, x, a_valid, a_rows, onto=_scatter(m_b, x, b_valid, b_rows))


def attention(a: Tensor, b: Tensor, *, a_rows: Rows | None = None, b_rows: Rows | None = None) -> tuple[Tensor, Tensor]:
    """The weights of the soft alignment, equations 11-13.

    Returns:
        alpha, beta ``[B, La, Lb]``: rows of alpha and columns of beta sum to one within the sentences, and are zero
        outside.
    """
    a_padded, a_valid = _padded(a, None, None, a_rows)
    b_padded, b_valid = _padded(b, None, None, b_rows)
    alpha, beta = _weights(a_padded, b_padded, a_valid, b_valid)
    pairs = a_valid[:, :, None] & b_valid[:, None, :]
    return (alpha * pairs).to(a.dtype), (beta * pairs).to(a.dtype)


def enhance(x: Tensor, aligned: Tensor) -> Tensor:
    """``[x; x̃; x - x̃; x ⊙ x̃]``, equations 14 and 15: ``[..., D]`` twice to ``[..., 4D]``."""
    return torch.cat([x, aligned, x - aligned, x * aligned], dim=-1)


def masked_pool(
    x: Tensor, lengths: Tensor | None = None, *, mask: Tensor | None = None, rows: Rows | None = None
) -> Tensor:
    """Average and max pooling over the tokens of each sentence, equations 18-20.

    Arguments and results are those of :func:`esim_fast.ops.masked_pool`; input is not checked.
    """
    padded, valid = _padded(x, lengths, mask, rows)
    if padded.shape[1] == 0:
        return padded.sum(1).repeat(1, 2).to(x.dtype)  # zeros, and still a function of x
    average = padded.sum(1) / valid.sum(1).clamp(min=1)[:, None]
    highest, first = padded.masked_fill(~valid[:, :, None], float("-inf")).max(1)
    # Where all tokens are -inf, so is the padding: the first token is the maximum.
    first = torch.where(highest == float("-inf"), valid.to(torch.uint8).argmax(1)[:, None], first)
    maximum = padded.gather(1, first[:, None, :]).squeeze(1)
    return torch.cat([average, maximum], dim=1).to(x.dtype)


def quantized_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x [N, K]`` as int8 ``[N, K]`` and scale ``[N]``: ``x ≈ scale * int8``, with ``scale = max |x| / 127`` of a row.

    A row of zeros, or of numbers that are hardly larger than fp32's smallest, is zeros. One that holds something else
    than finite numbers is zeros with the scale NaN: all that is made of it is NaN.
    """
    if x.shape[1] == 0:
        return x.to(torch.int8), x.new_zeros(len(x))
    magnitude = x.abs().amax(1)
    magnitude = torch.where(magnitude.isfinite(), magnitude, torch.nan)
    factor = torch.where(magnitude > 127 * torch.finfo(torch.float32).tiny, 127 / magnitude, 0.0)[:, None]
    return torch.where(factor > 0, (x * factor).round(), 0.0).to(torch.int8), magnitude / 127


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x [N, K]`` by ``weight [M, K]``, both quantized by rows, plus ``bias [M]``: ``[N, M]`` in x's dtype."""
    (q_x, scale_x), (q_w, scale_w) = quantized_rows(x), quantized_rows(weight)
    sums = (q_x.double() @ q_w.double().t()).to(x.dtype)  # exact
    return sums * scale_w * scale_x[:, None] + bias


def int8_bilstm(lstm: nn.LSTM, x: Tensor, batch_sizes: Tensor) -> Tensor:
    """:func:`esim_fast.ops.bilstm` (equations 1 and 2) with inputs, states and weights quantized by rows wherever they
    are multiplied: ``x [N, D]`` to ``[N, 2H]``."""
    sizes, first = batch_sizes.tolist(), (batch_sizes.cumsum(0) - batch_sizes).tolist()
    y = x.new_zeros(len(x), 2 * lstm.hidden_size)
    orders = range(len(sizes)), range(len(sizes))[::-1]  # of the steps, forward and backward
    for (w_ih, w_hh, b_ih, b_hh), order, half in zip(lstm.all_weights, orders, y.chunk(2, dim=1), strict=True):
        gates, nothing = int8_linear(x, w_ih, b_ih + b_hh), torch.zeros_like(b_hh)
        h = c = x.new_zeros(0, lstm.hidden_size)
        for t in order:
            rows = slice(first[t], first[t] + sizes[t])
            # Sentences that begin here have zeros for a state, those that have ended lose theirs.
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
    """Softmax over valid positions. With none at all the weights are meaningless but finite; what they weigh is 0."""
    outside = ~valid & valid.any(dim, keepdim=True)
    return scores.masked_fill(outside, float("-inf")).softmax(dim)


def _padded(x: Tensor, lengths: Tensor | None, mask: Tensor | None, rows: Rows | None) -> tuple[Tensor, Tensor]:
    """``x`` as ``[B, L, D]`` in the dtype of the arithmetic, zero outside the sentences, and boolean ``[B, L]``."""
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
    """Which row of ``[N, D]`` each token is: ``[B, L]``, ``outside`` where there is none."""
    offset = rows.start[:, None] + rows.step[: rows.max_length]
    return torch.where(valid, offset // max(width, 1), outside)


def _gather(x: Tensor, valid: Tensor, rows: Rows) -> Tensor:
    if len(x) == 0:
        return x.sum(0).expand(*valid.shape, -1)  # zeros, and still a function of x
    return x[_row_numbers(valid, rows, x.shape[1], outside=0)]


def _scatter(m: Tensor, x: Tensor, valid: Tensor, rows: Rows, onto: Tensor | None = None) -> Tensor:
    """Puts the tokens of ``m [B, L, 4D]`` into their rows of ``[N, 4D]``, zero elsewhere or what ``onto`` has there.

    Shapes do not depend on what ``valid`` holds, so a GPU is not waited for: what is no token goes to a row too many.
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

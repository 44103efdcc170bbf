"""The peers that esim_fast is tested and timed against: ESIM as people write it eagerly in PyTorch.

The notebook's model, in our own words, with two defects put right, because unequal mathematics cannot be compared:
its LSTMs run along each sentence (``batch_first=True``), and padding is kept out of their recurrence.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PADDING = 1


@cache
def compiled(function):
    """The function under ``torch.compile``, for batches of any shape."""
    return torch.compile(function, dynamic=True)


def eager_pool(x: Tensor, mask: Tensor) -> Tensor:
    """Average and max pooling of ``x [B, L, D]`` with ``mask [B, L]``, 0 at padding: ``[B, 2D]``."""
    expanded = mask.unsqueeze(-1).expand(x.shape)
    average = (x * expanded.to(x.dtype)).sum(1) / mask.sum(-1, keepdim=True).to(x.dtype)
    maximum = x.masked_fill(expanded == 0, torch.finfo(x.dtype).min).max(1).values
    return torch.cat([average, maximum], dim=1)


def segment_pool(x: Tensor, lengths: Tensor) -> Tensor:
    """The same through ``torch.segment_reduce``, which takes the sentences concatenated: ``[sum(lengths), D]``."""
    average = torch.segment_reduce(x, "mean", lengths=lengths, unsafe=True)
    maximum = torch.segment_reduce(x, "max", lengths=lengths, unsafe=True)
    return torch.cat([average, maximum], dim=1)


def eager_local_inference(p: Tensor, h: Tensor, p_mask: Tensor, h_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Co-attention with a large negative fill, and enhancement."""
    scores = p @ h.transpose(1, 2)
    pairs = p_mask.unsqueeze(2).float() @ h_mask.unsqueeze(1).float()
    scores = scores.masked_fill(pairs < 0.5, -1e7)
    return enhance(p, scores.softmax(2) @ h), enhance(h, scores.softmax(1).transpose(1, 2) @ p)


def enhance(x: Tensor, aligned: Tensor) -> Tensor:
    return torch.cat([x, aligned, x - aligned, x * aligned], dim=-1)


def sdpa_local_inference(p: Tensor, h: Tensor, p_mask: Tensor, h_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two calls of PyTorch's attention with the roles swapped, in the backend that takes this width on a GPU."""

    def look(x: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        mask = y_mask.bool()[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        x, y = x[:, None], y[:, None]
        return scaled_dot_product_attention(x, y, y, attn_mask=mask, scale=1.0)[:, 0]

    backend = SDPBackend.EFFICIENT_ATTENTION if p.is_cuda else SDPBackend.MATH
    with sdpa_kernel(backend):
        return enhance(p, look(p, h, h_mask)), enhance(h, look(h, p, p_mask))


def flex_local_inference(p: Tensor, h: Tensor, p_mask: Tensor, h_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two calls of FlexAttention, compiled, because it is slow otherwise."""
    if not p.is_cuda:
        raise NotImplementedError("FlexAttention has no backward pass on the CPU")

    def look(x: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        def outside(score, batch, head, x_index, y_index):
            return torch.where(y_mask[batch, y_index], score, -float("inf"))

        return compiled(flex_attention)(x[:, None], y[:, None], y[:, None], score_mod=outside, scale=1.0)[:, 0]

    return enhance(p, look(p, h, h_mask.bool())), enhance(h, look(h, p, p_mask.bool()))


class NotebookESIM(nn.Module):
    """The notebook's ESIM put right; its module names, so that state dicts can be exchanged with ``esim_fast.ESIM``."""

    def __init__(self, hidden_size: int, embedding_dim: int, vocab_size: int, num_labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.encoder = nn.ModuleDict({"lstm": _bilstm(embedding_dim, hidden_size)})
        composition = {"F": nn.Linear(8 * hidden_size, hidden_size), "lstm": _bilstm(hidden_size, hidden_size)}
        self.infercomposition = nn.ModuleDict({"composition": nn.ModuleDict(composition)})
        self.dropout = nn.Dropout(0.5)
        classifier = (nn.Dropout(0.5), nn.Linear(8 * hidden_size, hidden_size), nn.ReLU())
        self.linear = nn.ModuleDict({"mlp": nn.Sequential(*classifier, nn.Linear(hidden_size, num_labels))})

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        """Token ids ``[B, Lp]`` and ``[B, Lh]``, padded behind with 1, to logits ``[B, num_labels]``."""
        p_mask, h_mask = (p != PADDING).long(), (h != PADDING).long()
        p_encoded = _run(self.encoder["lstm"], self.embedding(p), p_mask)
        h_encoded = _run(self.encoder["lstm"], self.embedding(h), h_mask)
        m_p, m_h = eager_local_inference(p_encoded, h_encoded, p_mask, h_mask)
        v_p, v_h = self._compose(m_p, p_mask), self._compose(m_h, h_mask)
        return self.linear["mlp"](torch.cat([v_p, v_h], dim=1))

    def _compose(self, m: Tensor, mask: Tensor) -> Tensor:
        layers = self.infercomposition["composition"]
        return eager_pool(_run(layers["lstm"], self.dropout(layers["F"](m)), mask), mask)


def _bilstm(input_size: int, hidden_size: int) -> nn.LSTM:
    return nn.LSTM(input_size, hidden_size, bidirectional=True, batch_first=True)


def _run(lstm: nn.LSTM, x: Tensor, mask: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]

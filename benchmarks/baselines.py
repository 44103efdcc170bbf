"""Baselines that esim_fast is tested and timed against: ESIM in eager PyTorch.

There are two, both written from scratch: the notebook's ESIM, and one in the style of coetaur0/ESIM, whose encoder,
attention and dropout most other repositories have adopted. Module names match those of ``esim_fast.ESIM``, so all
models load each other's state dicts.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

EAGER = "eager, as in the notebook"  # the reference of all comparisons
PADDING = 1
BiLSTM = partial(nn.LSTM, bidirectional=True, batch_first=True)


def eager_pool(x: Tensor, mask: Tensor) -> Tensor:
    """Average and max pooling of ``x [B, L, D]`` with ``mask [B, L]``, 0 at padding, to ``[B, 2D]``."""
    expanded = mask.unsqueeze(-1).expand(x.shape)
    average = (x * expanded.to(x.dtype)).sum(1) / mask.sum(-1, keepdim=True).to(x.dtype)
    maximum = x.masked_fill(expanded == 0, torch.finfo(x.dtype).min).max(1).values
    return torch.cat([average, maximum], dim=1)


def segment_pool(x: Tensor, lengths: Tensor) -> Tensor:
    """The same with ``torch.segment_reduce``, which takes concatenated sentences ``[sum(lengths), D]``."""
    average = torch.segment_reduce(x, "mean", lengths=lengths, unsafe=True)
    maximum = torch.segment_reduce(x, "max", lengths=lengths, unsafe=True)
    return torch.cat([average, maximum], dim=1)


def eager_local_inference(p: Tensor, h: Tensor, p_mask: Tensor, h_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Co-attention, with padding filled by a large negative number, and enhancement."""
    scores = p @ h.transpose(1, 2)
    pairs = p_mask.unsqueeze(2).float() @ h_mask.unsqueeze(1).float()
    scores = scores.masked_fill(pairs < 0.5, -1e7)
    return enhance(p, scores.softmax(2) @ h), enhance(h, scores.softmax(1).transpose(1, 2) @ p)


def enhance(x: Tensor, aligned: Tensor) -> Tensor:
    return torch.cat([x, aligned, x - aligned, x * aligned], dim=-1)


def sdpa_local_inference(p: Tensor, h: Tensor, p_mask: Tensor, h_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two calls of PyTorch's attention with swapped roles, on a GPU in the backend that supports this width."""

    def look(x: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        mask = y_mask.bool()[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        x, y = x[:, None], y[:, None]
        return scaled_dot_product_attention(x, y, y, attn_mask=mask, scale=1.0)[:, 0]

    backend = SDPBackend.EFFICIENT_ATTENTION if p.is_cuda else SDPBackend.MATH
    with sdpa_kernel(backend):
        return enhance(p, look(p, h, h_mask)), enhance(h, look(h, p, p_mask))


class _Peer(nn.Module):
    def __init__(self, hidden_size, embedding_dim, vocab_size, num_labels, dropout, classifier):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.encoder = nn.ModuleDict({"lstm": BiLSTM(embedding_dim, hidden_size)})
        composition = {"F": nn.Linear(8 * hidden_size, hidden_size), "lstm": BiLSTM(hidden_size, hidden_size)}
        self.infercomposition = nn.ModuleDict({"composition": nn.ModuleDict(composition)})
        layers = nn.Dropout(dropout), nn.Linear(8 * hidden_size, hidden_size), classifier
        self.linear = nn.ModuleDict({"mlp": nn.Sequential(*layers, nn.Linear(hidden_size, num_labels))})


class NotebookESIM(_Peer):
    """The notebook's ESIM, except that its LSTMs run along each sentence (``batch_first=True``), not across the batch.

    With ``packed``, padding also stays out of the recurrence, as in ``esim_fast.ESIM(variant="notebook")``. Without it,
    the LSTMs run over padded embeddings like the notebook's, which is equivalent if nothing is padded.
    """

    def __init__(self, *sizes, packed=True, dropout=0.5):
        super().__init__(*sizes, dropout, nn.ReLU())
        self.packed, self.dropout = packed, nn.Dropout(dropout)

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        """Token ids ``[B, Lp]`` and ``[B, Lh]``, right-padded with 1, to logits ``[B, num_labels]``."""
        p_composed, h_composed = self.compose(p, h)
        v_p, v_h = eager_pool(p_composed, (p != PADDING).long()), eager_pool(h_composed, (h != PADDING).long())
        return self.linear["mlp"](torch.cat([v_p, v_h], dim=1))

    def compose(self, p: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The states before pooling: ``[B, Lp, 2H]`` and ``[B, Lh, 2H]``."""
        masks = [(ids != PADDING).long() for ids in (p, h)]
        encoded = map(partial(self._run, self.encoder["lstm"]), map(self.embedding, (p, h)), masks)
        enhanced, layers = eager_local_inference(*encoded, *masks), self.infercomposition["composition"]
        projected = [self.dropout(layers["F"](m)) for m in enhanced]
        return tuple(map(partial(self._run, layers["lstm"]), projected, masks))

    def _run(self, lstm: nn.LSTM, x: Tensor, mask: Tensor) -> Tensor:
        return packed_lstm(lstm, x, mask.sum(1).cpu()) if self.packed else lstm(x)[0]


class Coetaur0ESIM(_Peer):
    """ESIM in the style of https://github.com/coetaur0/ESIM; ``variant="notebook"`` has the notebook's mathematics.

    Each call of its encoder sorts the batch by length, packs, pads and restores the order. Its softmax multiplies by
    the mask, which is imprecise for scores far below zero. Its dropout on embeddings and projections drops the same
    elements at all time steps.
    """

    def __init__(self, *sizes, dropout=0.5, variant="paper"):
        paper = variant == "paper"
        super().__init__(*sizes, dropout, nn.Sequential(nn.Tanh() if paper else nn.ReLU(), nn.Dropout(dropout)))
        self.time_dropout, self.activation = TimeDropout(dropout), nn.ReLU() if paper else nn.Identity()

    def forward(self, p: Tensor, h: Tensor, p_lengths: Tensor, h_lengths: Tensor) -> Tensor:
        """Token ids ``[B, Lp]`` and ``[B, Lh]`` and CPU lengths to logits; the original copies them from the GPU."""
        p_mask, h_mask = (p != PADDING).float(), (h != PADDING).float()
        p_embedded, h_embedded = self.time_dropout(self.embedding(p)), self.time_dropout(self.embedding(h))
        a = sorted_lstm(self.encoder["lstm"], p_embedded, p_lengths)
        b = sorted_lstm(self.encoder["lstm"], h_embedded, h_lengths)

        scores = a @ b.transpose(1, 2).contiguous()
        alpha = multiplied_softmax(scores, h_mask)
        beta = multiplied_softmax(scores.transpose(1, 2).contiguous(), p_mask)
        a_aligned, b_aligned = (alpha @ b) * p_mask[:, :, None], (beta @ a) * h_mask[:, :, None]

        layers = self.infercomposition["composition"]
        pooled = []
        for x, aligned, mask, lengths in ((a, a_aligned, p_mask, p_lengths), (b, b_aligned, h_mask, h_lengths)):
            projected = self.time_dropout(self.activation(layers["F"](enhance(x, aligned))))
            composed = sorted_lstm(layers["lstm"], projected, lengths)
            outside = 1 - mask[:, :, None]
            average = (composed * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            pooled += [average, (composed * (1 - outside) - 1e7 * outside).max(1).values]
        return self.linear["mlp"](torch.cat(pooled, dim=1))


class TimeDropout(nn.Dropout):
    """Dropout that drops the same elements of ``[B, L, D]`` at all time steps."""

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.dropout(torch.ones_like(x[:, :1]), self.p, self.training)


def multiplied_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension of ``[B, Lx, Ly]`` with ``mask [B, Ly]``: multiplies and renormalizes."""
    mask = mask[:, None, :].expand_as(scores)
    weights = (scores * mask).softmax(-1) * mask
    return weights / (weights.sum(-1, keepdim=True) + 1e-13)


def packed_lstm(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """``[B, L, D]`` with lengths on the CPU to ``[B, L, 2H]``, the usual way in PyTorch: pack, run, pad."""
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def sorted_lstm(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """The same, sorting by hand."""
    lengths, order = lengths.sort(descending=True)
    order = order.to(x.device)
    packed = pack_padded_sequence(x.index_select(0, order), lengths, batch_first=True)
    y, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True)
    return y.index_select(0, order.argsort())

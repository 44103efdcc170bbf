"""Other people's ESIMs, whose state dicts esim_fast loads, rewritten with their module names and their mathematics.

* ``Notebook``: its LSTMs run across the batch; ``batch_first=True`` corrects that.
* ``Coetaur0``: https://github.com/coetaur0/ESIM; its softmax multiplies by the mask.
* ``AllenNLP``: ESIM of allennlp_models with its published configuration; the same softmax, ReLU in the classifier.
"""

import torch
from torch import Tensor, nn

from benchmarks.baselines import (
    TimeDropout,
    eager_local_inference,
    eager_pool,
    enhance,
    multiplied_softmax,
    packed_lstm,
    sorted_lstm,
)


class Notebook(nn.Module):
    def __init__(self, hidden_size, embedding_dim, vocab_size, num_labels, *, batch_first=False):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        options = {"bidirectional": True, "batch_first": batch_first}
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(embedding_dim, hidden_size, **options)})
        composition = {
            "F": nn.Linear(8 * hidden_size, hidden_size),
            "lstm": nn.LSTM(hidden_size, hidden_size, **options),
        }
        self.infercomposition = nn.ModuleDict({"composition": nn.ModuleDict(composition)})
        layers = (nn.Dropout(0.5), nn.Linear(8 * hidden_size, hidden_size), nn.ReLU())
        self.linear = nn.ModuleDict({"mlp": nn.Sequential(*layers, nn.Linear(hidden_size, num_labels))})

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        encode, compose = self.encoder["lstm"], self.infercomposition["composition"]
        masks = [(ids != 1).long() for ids in (p, h)]
        encoded = [encode(self.embedding(ids))[0] for ids in (p, h)]
        enhanced = eager_local_inference(*encoded, *masks)
        composed = [compose["lstm"](compose["F"](m))[0] for m in enhanced]
        return self.linear["mlp"](torch.cat([eager_pool(x, mask) for x, mask in zip(composed, masks, strict=True)], 1))


class _Padded(nn.Module):
    """The common part of coetaur0's and AllenNLP's: padding id 0, ReLU after the projection."""

    def attend(self, a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> tuple[Tensor, Tensor]:
        scores = a @ b.transpose(1, 2)
        a_aligned = multiplied_softmax(scores, b_mask) @ b
        b_aligned = multiplied_softmax(scores.transpose(1, 2), a_mask) @ a
        return enhance(a, a_aligned), enhance(b, b_aligned)

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        inside = mask[:, :, None]
        average = (x * inside).sum(1) / mask.sum(1, keepdim=True)
        return torch.cat([average, (x * inside - 1e7 * (1 - inside)).max(1).values], 1)


class Coetaur0(_Padded):
    def __init__(self, vocab_size, embedding_dim, hidden_size, dropout=0.5, num_classes=3):
        super().__init__()
        self._word_embedding = nn.Embedding(vocab_size, embedding_dim, padding_idx=0)
        self._rnn_dropout = TimeDropout(dropout)
        self._encoding = nn.ModuleDict({"_encoder": _lstm(embedding_dim, hidden_size)})
        self._projection = nn.Sequential(nn.Linear(8 * hidden_size, hidden_size), nn.ReLU())
        self._composition = nn.ModuleDict({"_encoder": _lstm(hidden_size, hidden_size)})
        layers = (nn.Dropout(dropout), nn.Linear(8 * hidden_size, hidden_size), nn.Tanh(), nn.Dropout(dropout))
        self._classification = nn.Sequential(*layers, nn.Linear(hidden_size, num_classes))

    def forward(self, premises, premises_lengths, hypotheses, hypotheses_lengths):
        lengths = premises_lengths, hypotheses_lengths
        ids = [side[:, : int(length.max())] for side, length in zip((premises, hypotheses), lengths, strict=True)]
        masks = [(side != 0).float() for side in ids]
        embedded = [self._rnn_dropout(self._word_embedding(side)) for side in ids]
        encoded = [sorted_lstm(self._encoding["_encoder"], *side) for side in zip(embedded, lengths, strict=True)]
        projected = [self._rnn_dropout(self._projection(m)) for m in self.attend(*encoded, *masks)]
        composed = [sorted_lstm(self._composition["_encoder"], *side) for side in zip(projected, lengths, strict=True)]
        logits = self._classification(torch.cat([self.pool(*side) for side in zip(composed, masks, strict=True)], 1))
        return logits, logits.softmax(-1)


class AllenNLP(_Padded):
    def __init__(self, vocab_size, embedding_dim, hidden_size, num_labels=3, dropout=0.5):
        super().__init__()
        embedder = {"token_embedder_tokens": nn.Embedding(vocab_size, embedding_dim)}
        self._text_field_embedder = nn.ModuleDict(embedder)
        self.rnn_input_dropout = TimeDropout(dropout)
        self.dropout = nn.Dropout(dropout)
        self._encoder = nn.ModuleDict({"_module": _lstm(embedding_dim, hidden_size)})
        self._projection_feedforward = _feedforward(8 * hidden_size, hidden_size)
        self._inference_encoder = nn.ModuleDict({"_module": _lstm(hidden_size, hidden_size)})
        self._output_feedforward = _feedforward(8 * hidden_size, hidden_size)
        self._output_logit = _feedforward(hidden_size, num_labels)

    def forward(self, premise: Tensor, hypothesis: Tensor) -> Tensor:
        masks = [(ids != 0).float() for ids in (premise, hypothesis)]
        lengths = [(ids != 0).sum(1) for ids in (premise, hypothesis)]
        embed = self._text_field_embedder["token_embedder_tokens"]
        embedded = [self.rnn_input_dropout(embed(ids)) for ids in (premise, hypothesis)]
        encoded = [packed_lstm(self._encoder["_module"], *side) for side in zip(embedded, lengths, strict=True)]
        projected = [
            self.rnn_input_dropout(self._projection_feedforward["_linear_layers"][0](m).relu())
            for m in self.attend(*encoded, *masks)
        ]
        composed = [
            packed_lstm(self._inference_encoder["_module"], *side) for side in zip(projected, lengths, strict=True)
        ]
        pooled = self.dropout(torch.cat([self.pool(*side) for side in zip(composed, masks, strict=True)], 1))
        return self._output_logit["_linear_layers"][0](
            nn.functional.dropout(self._output_feedforward["_linear_layers"][0](pooled).relu(), 0.5, self.training)
        )


def _lstm(input_size: int, hidden_size: int) -> nn.LSTM:
    return nn.LSTM(input_size, hidden_size, bidirectional=True, batch_first=True)


def _feedforward(input_size: int, output_size: int) -> nn.ModuleDict:
    return nn.ModuleDict({"_linear_layers": nn.ModuleList([nn.Linear(input_size, output_size)])})

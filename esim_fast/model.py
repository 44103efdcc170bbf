"""ESIM (Chen et al. 2017), on packed rows from the token ids to the pooled vector.

Modules carry the names that the model's best-known notebook gave them, so that its state dicts load as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import ops, state_dicts
from .layers import Dropout, Embedding, Linear, VariationalDropout
from .ops import reference
from .packed import PackedPairs, PairRows, Rows, check_lengths, left_align, pack_pairs, token_mask

# What a variant leaves open: the projection's and the classifier's activation, and dropout on embeddings and within
# the classifier. "notebook" is the notebook's mathematics with its recurrence put right.
_VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"projection": "relu", "classifier": "tanh", "feedforward_dropout": True},
    "notebook": {"projection": None, "classifier": "relu", "feedforward_dropout": False},
}
_ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {None: nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}
_FROM_VARIANT = "variant"
_BACKENDS = (None, "triton", "cpp", "reference")


class ESIM(nn.Module):
    """The enhanced LSTM for sentence pairs: natural language inference, paraphrase, question matching.

    ``load_state_dict`` takes the state dicts of the notebook's ESIM, coetaur0's and AllenNLP's as they are
    (state_dicts.py has the table of names). It warns where this network's options are not those of the mathematics that
    the names stand for.

    Args:
        hidden_size: of each direction of both LSTMs, and of the projection.
        embedding_dim: width of the word vectors.
        vocab_size: rows of the embedding.
        num_labels: classes.
        device: where the parameters are created.
        padding_idx: the id that fills sentences up; None if there is no such id. It is never part of a sentence.
        dropout: probability, on embeddings (variant "paper"), after the projection and in the classifier.
        embedding_dropout: probability on embeddings, instead of that.
        variational_dropout: dropout on embeddings and after the projection drops the same elements of all words of a
            sentence, as coetaur0's and AllenNLP's do.
        variant: "paper" (ReLU after the projection, tanh classifier) or "notebook" (no activation, ReLU classifier).
        projection_activation, classifier_activation: None, "relu" or "tanh", instead of the variant's.
        freeze_embedding: word vectors are not trained.
        backend: of the ops, or None, the best ones for the tensors at hand. "triton" is local inference on Triton,
            and the rest on what is best; "cpp" is the C++ kernels, on a CPU in fp32; "reference" is plain PyTorch for
            the BiLSTMs, local inference and pooling.

    Raises:
        TypeError: a size or ``padding_idx`` is no integer, or another option is of the wrong type.
        ValueError: a size is not positive, ``padding_idx`` is no row of the embedding, ``dropout`` lies outside 0..1,
            or a name is unknown.
    """

    def __init__(
        self,
        hidden_size: int,
        embedding_dim: int,
        vocab_size: int,
        num_labels: int,
        device: torch.device | str | None = None,
        *,
        padding_idx: int | None = 1,
        dropout: float = 0.5,
        embedding_dropout: float | None = None,
        variational_dropout: bool = False,
        variant: str = "paper",
        projection_activation: str | None = _FROM_VARIANT,
        classifier_activation: str | None = _FROM_VARIANT,
        freeze_embedding: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"hidden_size": hidden_size, "embedding_dim": embedding_dim, "vocab_size": vocab_size}
        for name, size in {**sizes, "num_labels": num_labels}.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {size!r}")
            if size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if padding_idx is not None and (isinstance(padding_idx, bool) or not isinstance(padding_idx, int)):
            raise TypeError(f"padding_idx must be an int or None, got {padding_idx!r}")
        if padding_idx is not None and not 0 <= padding_idx < vocab_size:
            raise ValueError(f"padding_idx = {padding_idx} must lie between 0 and vocab_size - 1 = {vocab_size - 1}")
        for name, choice in (("freeze_embedding", freeze_embedding), ("variational_dropout", variational_dropout)):
            if not isinstance(choice, bool):
                raise TypeError(f"{name} must be True or False, got {choice!r}")
        _check_choice("variant", variant, tuple(_VARIANTS))
        _check_choice("backend", backend, _BACKENDS)
        chosen = _VARIANTS[variant]
        feedforward_dropout = dropout if chosen["feedforward_dropout"] else 0.0
        if embedding_dropout is None:
            embedding_dropout = feedforward_dropout
        for name, value in (("dropout", dropout), ("embedding_dropout", embedding_dropout)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        if projection_activation == _FROM_VARIANT:
            projection_activation = chosen["projection"]
        if classifier_activation == _FROM_VARIANT:
            classifier_activation = chosen["classifier"]
        _check_choice("projection_activation", projection_activation, tuple(_ACTIVATIONS))
        _check_choice("classifier_activation", classifier_activation, tuple(_ACTIVATIONS))
        # What a saved model needs to be built again.
        self.config = {
            "hidden_size": hidden_size,
            "embedding_dim": embedding_dim,
            "vocab_size": vocab_size,
            "num_labels": num_labels,
            "padding_idx": padding_idx,
            "dropout": dropout,
            "embedding_dropout": embedding_dropout,
            "variational_dropout": variational_dropout,
            "variant": variant,
            "projection_activation": projection_activation,
            "classifier_activation": classifier_activation,
            "freeze_embedding": freeze_embedding,
        }
        self.padding_idx = padding_idx
        self.embedding = Embedding(vocab_size, embedding_dim, padding_idx=padding_idx)
        sequence_dropout = VariationalDropout if variational_dropout else Dropout
        self.embedding_dropout = sequence_dropout(embedding_dropout)
        self.encoder = InputEncoding(embedding_dim, hidden_size, backend)
        self.inference = LocalInference(backend)
        projection_dropout = sequence_dropout(dropout)
        self.infercomposition = InferenceComposition(hidden_size, projection_dropout, projection_activation, backend)
        self.linear = MLP(hidden_size, num_labels, dropout, classifier_activation, feedforward_dropout)
        self.register_load_state_dict_pre_hook(_rename_entries)
        if freeze_embedding:
            self.embedding.weight.requires_grad_(False)
        if device is not None:
            self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embedding.weight.device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``torch.nn.Module.load_state_dict``, from any of the state dicts that the class's description names.

        Raises:
            RuntimeError: entries are missing, unexpected or misshapen; they have the names that they have there.
        """
        names = state_dicts.LAYOUTS[state_dicts.recognized(state_dict) or "notebook"]
        return names.loaded(partial(super().load_state_dict, state_dict, strict, assign))

    def forward(
        self,
        p: Tensor | PackedPairs,
        h: Tensor | None = None,
        p_lengths: Tensor | Sequence[int] | None = None,
        h_lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of a batch of pairs.

        Args:
            p, h: token ids of premises ``[B, Lp]`` and hypotheses ``[B, Lh]``. Padding to the left of or inside a
                sentence is removed; the sentence is what remains, and may be empty. Or the batch as
                :func:`esim_fast.pack_pairs` made it, alone: packed where it is collated, nothing is left to do here.
            p_lengths, h_lengths: integers ``[B]``, best on the CPU: the sentence lies within the first ``lengths[b]``
                ids. With them, ids on a GPU are not waited for, and must then have their padding behind.

        Returns:
            ``[B, num_labels]``, raw scores.

        Raises:
            TypeError: ids or lengths are not integers.
            ValueError: shapes or devices disagree, lengths lie outside 0..L, or ids on the CPU are not rows of the
                embedding.
        """
        pairs = self._pack(p, h, p_lengths, h_lengths)
        if len(pairs) == 0:
            return self.linear(self.embedding.weight.new_zeros(0, self.linear.input_size))
        x = self.encode(pairs)  # [N, 2H], a row for each token of the batch
        rows = pairs.rows(x.shape[1])
        m, _ = self.inference(x, x, p_rows=rows.premises, h_rows=rows.hypotheses)  # [N, 8H]
        v = self.infercomposition(m, pairs, rows)  # [B, 8H]
        return self.linear(v)

    def encode(self, pairs: PackedPairs) -> Tensor:
        """Embedding and BiLSTM, equations 1 and 2: ``[N, 2H]``."""
        x = self.embedding_dropout(self.embedding(pairs.tokens), pairs.batch_sizes)  # [N, embedding_dim]
        return self.encoder(x, pairs)

    def attention(
        self,
        p: Tensor,
        h: Tensor,
        p_lengths: Tensor | Sequence[int] | None = None,
        h_lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The soft alignment's weights, equations 12 and 13; arguments as in :meth:`forward`, but for packed pairs.

        Returns:
            alpha, beta ``[B, Lp, Lh]``: how much each word of the premise looks at each of the hypothesis (rows of
            alpha sum to one), and the other way round (columns of beta do). Zero at padding.
        """
        if isinstance(p, PackedPairs):
            raise TypeError("attention is given where the words stand in padded ids: p must be a tensor of them")
        pairs = self._pack(p, h, p_lengths, h_lengths)
        if len(p) == 0:
            nothing = self.embedding.weight.new_zeros(0, p.shape[1], h.shape[1])
            return nothing, nothing.clone()
        x = self.encode(pairs)
        rows = pairs.rows(x.shape[1])
        weights = reference.attention(x, x, a_rows=rows.premises, b_rows=rows.hypotheses)
        p_mask = token_mask(p, self.padding_idx, self._lengths("p", p, p_lengths))
        h_mask = token_mask(h, self.padding_idx, self._lengths("h", h, h_lengths))
        alpha, beta = (_spread(_spread(of, p_mask, 1), h_mask, 2) for of in weights)
        return alpha, beta

    def _lengths(self, name: str, ids: Tensor, lengths: Tensor | Sequence[int] | None) -> Tensor | None:
        if lengths is None:
            return None
        # What is on a GPU has to come here anyway.
        on_cpu = lengths.cpu() if isinstance(lengths, Tensor) else lengths
        return check_lengths(f"{name}_lengths", on_cpu, *ids.shape)

    def _pack(self, p: Tensor | PackedPairs, h: Tensor | None, p_lengths, h_lengths) -> PackedPairs:
        if isinstance(p, PackedPairs):
            if h is not None or p_lengths is not None or h_lengths is not None:
                raise TypeError("packed pairs are the whole batch: give them alone")
            self._check_values("tokens", p.tokens)
            return p
        self._check_ids("p", p)
        h = self._check_ids("h", h)
        if len(p) != len(h):
            raise ValueError(f"p and h must hold as many sentences, got {len(p)} and {len(h)}")
        p, p_lengths = left_align(p, self.padding_idx, self._lengths("p", p, p_lengths))
        h, h_lengths = left_align(h, self.padding_idx, self._lengths("h", h, h_lengths))
        return pack_pairs(p, h, p_lengths, h_lengths)

    def _check_ids(self, name: str, ids: Tensor | None) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
            found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"{name} must be a tensor of token ids, int64 or int32, got {found}")
        if ids.dim() != 2:
            raise ValueError(f"{name} must be [batch, length], got shape {list(ids.shape)}")
        self._check_values(name, ids)
        return ids

    def _check_values(self, name: str, ids: Tensor) -> None:
        if ids.device != self.device:
            raise ValueError(f"{name} is on {ids.device}, but the model on {self.device}")
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(value) for value in ids.aminmax())
            words = self.embedding.num_embeddings
            if low < 0 or high >= words:
                wrong = low if low < 0 else high
                place = (ids == wrong).nonzero()[0].tolist()
                raise ValueError(f"{name}{place} = {wrong} is no token id: the vocabulary has {words} words")


class InputEncoding(nn.Module):
    """A BiLSTM over each sentence, all of them in one packed call."""

    def __init__(self, input_size: int, hidden_size: int, backend: str | None = None) -> None:
        super().__init__()
        self.backend = _elsewhere_than_triton(backend)
        self.lstm = nn.LSTM(input_size, hidden_size, bidirectional=True)

    def forward(self, x: Tensor, pairs: PackedPairs) -> Tensor:
        """``x [N, input_size]`` to ``[N, 2H]``, forward and backward state of each token."""
        return ops.bilstm(self.lstm, x, pairs.batch_sizes, first_row=pairs.first_row, backend=self.backend)


class LocalInference(nn.Module):
    """:func:`esim_fast.ops.local_inference` as a layer, in the notebook's words."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(
        self,
        p: Tensor,
        h: Tensor,
        p_mask: Tensor | None = None,
        h_mask: Tensor | None = None,
        *,
        p_rows: Rows | None = None,
        h_rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Soft alignment and enhancement of premise and hypothesis.

        Args:
            p, h: encoded ``[B, Lp, 2H]`` and ``[B, Lh, 2H]``, or ``[N, 2H]`` with rows.
            p_mask, h_mask: ``[B, Lp]`` and ``[B, Lh]``, 0 at padding.

        Returns:
            m_p, m_h: ``[B, Lp, 8H]`` and ``[B, Lh, 8H]``, or ``[N, 8H]``.
        """
        return ops.local_inference(
            p, h, a_mask=p_mask, b_mask=h_mask, a_rows=p_rows, b_rows=h_rows, backend=self.backend
        )


class Pooling(nn.Module):
    """:func:`esim_fast.ops.masked_pool` as a layer: average; maximum."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = _elsewhere_than_triton(backend)

    def forward(self, x: Tensor, x_mask: Tensor | None = None, *, rows: Rows | None = None) -> Tensor:
        """``x [B, L, 2H]`` with ``x_mask [B, L]``, 0 at padding, or ``[N, 2H]`` with rows, to ``[B, 4H]``."""
        return ops.masked_pool(x, mask=x_mask, rows=rows, backend=self.backend)


class InferenceComposition(nn.Module):
    """Projection, BiLSTM and pooling, equations 16-20."""

    def __init__(self, hidden_size: int, dropout: Dropout, activation: str | None, backend: str | None) -> None:
        super().__init__()
        self.composition = CompositionLayer(hidden_size, dropout, activation, backend)
        self.pooling = Pooling(backend)

    def forward(self, m: Tensor, pairs: PackedPairs, rows: PairRows) -> Tensor:
        """``m [N, 8H]`` to ``[B, 8H]``: average and maximum of the premise, then of the hypothesis."""
        y = self.composition(m, pairs)  # [N, 2H]
        v = self.pooling(y, rows=rows.all)  # [2B, 4H]
        v_p, v_h = v.chunk(2)
        return torch.cat([v_p, v_h], dim=1)


class CompositionLayer(nn.Module):
    """Projection and BiLSTM, equations 16 and 17."""

    def __init__(self, hidden_size: int, dropout: Dropout, activation: str | None, backend: str | None) -> None:
        super().__init__()
        self.backend = _elsewhere_than_triton(backend)
        self.F = Linear(8 * hidden_size, hidden_size)
        self.activation = _ACTIVATIONS[activation]()
        self.dropout = dropout
        self.lstm = nn.LSTM(hidden_size, hidden_size, bidirectional=True)

    def forward(self, m: Tensor, pairs: PackedPairs) -> Tensor:
        """``m [N, 8H]`` to ``[N, 2H]``."""
        y = self.dropout(self.activation(self.F(m)), pairs.batch_sizes)  # [N, H]
        return ops.bilstm(self.lstm, y, pairs.batch_sizes, first_row=pairs.first_row, backend=self.backend)


class MLP(nn.Module):
    """The classifier: one hidden layer of H units."""

    def __init__(
        self, hidden_size: int, num_labels: int, dropout: float, activation: str | None, inner_dropout: float
    ) -> None:
        super().__init__()
        self.input_size = 8 * hidden_size
        self.mlp = nn.Sequential(
            Dropout(dropout),
            Linear(self.input_size, hidden_size),
            nn.Sequential(_ACTIVATIONS[activation](), Dropout(inner_dropout)),
            Linear(hidden_size, num_labels),
        )

    def forward(self, v: Tensor) -> Tensor:
        """``v [B, 8H]`` to logits ``[B, num_labels]``."""
        return self.mlp(v)


def _elsewhere_than_triton(backend: str | None) -> str | None:
    """Asked for by name it is local inference's: beside it, everything else runs on the best there is."""
    return None if backend == "triton" else backend


def _check_choice(name: str, value: str | None, known: Sequence[str | None]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def _spread(weights: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Moves the weights of a sentence's words along ``dim`` to where ``mask [B, L]`` says that the words stand."""
    position = (mask.cumsum(1) - 1).clamp(min=0)  # which word of its sentence stands here
    shape = [len(mask), 1, 1]
    shape[dim] = mask.shape[1]
    size = list(weights.shape)
    size[dim] = mask.shape[1]
    if weights.shape[dim] == 0:  # every sentence is empty
        return weights.new_zeros(size)
    return weights.gather(dim, position.view(shape).expand(size)) * mask.view(shape)


def _rename_entries(net: ESIM, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: gives its entries our names."""
    source = state_dicts.rename(state_dict, prefix)
    if source not in (None, "notebook"):  # whose names ours are as well
        state_dicts.warn_of_differences(source, net.config)

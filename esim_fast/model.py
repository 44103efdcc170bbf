"""ESIM (Chen et al. 2017), on packed rows from the token ids to the pooled vector.

Modules carry the names that the model's best-known notebook gave them, so that its state dicts load as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import ops, state_dicts
from .config import FROM_VARIANT, ESIMConfig
from .inputs import check_tokens, look_up, pack_ids, refuse_torchscript, spread, token_mask
from .layers import (
    Dropout,
    Embedding,
    Pooling,
    Sequential,
    VariationalDropout,
    bilstm,
    drop,
    project,
    side_by_side,
)
from .ops import reference
from .ops.backends import backends_of_ops
from .ops.checks import is_hooked
from .packed import PackedPairs, PairRows
from .padded import PaddedPairs

_ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {None: nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


class ESIM(nn.Module):
    """The enhanced LSTM for sentence pairs: natural language inference, paraphrase, question matching::

        net = ESIM(hidden_size=300, embedding_dim=300, vocab_size=len(vocab), num_labels=3)
        logits = net(premise_ids, hypothesis_ids)  # int64 [batch, length] each, padded with id 1 -> float32 [batch, 3]

    The model of Chen et al. 2017 (https://aclanthology.org/P17-1152): embedding and BiLSTM (equations 1 and 2), local
    inference (11-15), projection and BiLSTM (16 and 17), average and max pooling (18-20), and a classifier.

    ``load_state_dict`` also takes the state dicts of the course notebook's ESIM, of coetaur0/ESIM and of AllenNLP, also
    where DataParallel, ``torch.compile``, Lightning or AveragedModel held the network. It warns if the options of this
    network differ from those that the weights were trained with.

    Args:
        hidden_size: units of each direction of both LSTMs, and width of the projection.
        embedding_dim: width of the word vectors.
        vocab_size: rows of the embedding.
        num_labels: classes.
        device: where the parameters are created; None is PyTorch's default device.
        padding_idx: the id that pads sentences. It is never part of a sentence. None if there is no such id.
        dropout: probability of dropout on embeddings (variant "paper"), after the projection and in the classifier.
        embedding_dropout: probability of dropout on embeddings, if it is another one.
        variational_dropout: dropout on embeddings and after the projection drops the same elements of all words of a
            sentence, as in coetaur0/ESIM and AllenNLP.
        variant: "paper" (ReLU after the projection, tanh classifier) or "notebook" (no activation, ReLU classifier).
        projection_activation, classifier_activation: None, "relu" or "tanh"; by default those of the variant.
        freeze_embedding: True keeps the word vectors as they are.
        backend: "cpp" (C++ kernels, on a CPU), "cuda" (CUDA kernels: pooling), "triton" (Triton kernels: BiLSTMs and
            local inference), "cudnn" (BiLSTMs) or "reference" (plain PyTorch: everything). What a backend does not
            have runs on the best one for the tensors at hand. None is the best one for everything.

    Attributes:
        config: the options, as an :class:`esim_fast.config.ESIMConfig`; a saved model keeps them.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: a size is not positive, ``padding_idx`` is not below ``vocab_size``, a dropout lies outside 0..1, a
            name is unknown, or ``backend`` cannot run here.
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
        projection_activation: str | None = FROM_VARIANT,
        classifier_activation: str | None = FROM_VARIANT,
        freeze_embedding: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.config = config = ESIMConfig(
            hidden_size=hidden_size,
            embedding_dim=embedding_dim,
            vocab_size=vocab_size,
            num_labels=num_labels,
            padding_idx=padding_idx,
            dropout=dropout,
            embedding_dropout=embedding_dropout,
            variational_dropout=variational_dropout,
            variant=variant,
            projection_activation=projection_activation,
            classifier_activation=classifier_activation,
            freeze_embedding=freeze_embedding,
        )
        backends = backends_of_ops(backend, device)
        sequence_dropout = VariationalDropout if variational_dropout else Dropout
        self.embedding = Embedding(vocab_size, embedding_dim, padding_idx=padding_idx)
        self.embedding_dropout = sequence_dropout(cast(float, config.embedding_dropout))
        self.encoder = InputEncoding(embedding_dim, hidden_size, backends["bilstm"])
        self.inference = PackedLocalInference(backends["local_inference"])
        self.infercomposition = InferenceComposition(config, sequence_dropout(dropout), backends)
        self.linear = MLP(config)
        self.register_load_state_dict_pre_hook(_rename_entries)
        self.embedding.weight.requires_grad_(not freeze_embedding)
        if device is not None:
            self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embedding.weight.device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As :meth:`torch.nn.Module.load_state_dict`, for the state dicts of all networks that :class:`ESIM` names.

        Raises:
            RuntimeError: entries are missing, unexpected or misshapen, or ``state_dict`` is a whole checkpoint. The
                message has the names of ``state_dict``.
        """
        return state_dicts.loaded(partial(super().load_state_dict, state_dict, strict, assign), state_dict, "notebook")

    def forward(
        self,
        p: Tensor | PackedPairs | None = None,
        h: Tensor | None = None,
        p_lengths: Tensor | Sequence[int] | None = None,
        h_lengths: Tensor | Sequence[int] | None = None,
        *,
        embedded: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits of a batch of pairs.

        Where the embedding has hooks, it is called with padded ids, ``[B, Lp + Lh]``, and not with packed ones ``[N]``:
        tools that explain a network by its layers need a row for each pair.

        Args:
            p, h: token ids, int64 or int32, of premises ``[B, Lp]`` and hypotheses ``[B, Lh]``. Padding may stand
                anywhere: it is removed, and the sentence is what remains. A sentence may be empty. Instead of both,
                ``p`` may be the batch as :func:`esim_fast.pack_pairs` returns it. Ids on the CPU, without lengths, that
                look as if another id padded them, or as if they were ``[L, B]``, give a warning.
            p_lengths, h_lengths: integers ``[B]``, on the CPU if possible: the sentence lies within the first
                ``lengths[b]`` ids. With lengths, nothing waits for ids on a GPU, and their padding must be at the end.
            embedded: word vectors ``[B, Lp, E]`` and ``[B, Lh, E]`` in the dtype of the parameters, E is
                ``embedding_dim``, in place of those of the embedding: from another model, or to have gradients with
                respect to them (zero at padding). Dropout is applied to them as to the embedding's. ``p`` and ``h``
                then only say where padding is, whatever vocabulary they are of; with lengths they may be left out.

        Returns:
            Logits ``[B, num_labels]``, in the dtype of the parameters, or autocast's under autocast.

        Raises:
            TypeError: ids or lengths are not integers, ``embedded`` has another dtype, or ``torch.jit.trace`` is at
                work.
            ValueError: shapes or devices disagree, lengths lie outside 0..L, or ids on the CPU are not below
                ``vocab_size``.
        """
        pairs = self._pack(p, h, p_lengths, h_lengths, embedded)
        if isinstance(p, Tensor) and h is not None and embedded is None and is_hooked(self.embedding):
            embedded = self.embedding(torch.cat([p, h], dim=1)).split([p.shape[1], h.shape[1]], dim=1)
            pairs = self._pack(p, h, p_lengths, h_lengths, embedded)
        if pairs.pairs == 0:
            return self.linear(self.embedding.weight.new_zeros(0, self.linear.input_size))
        x = self.encode(pairs, embedded)  # [N, 2H], a row for each token of the batch
        rows = pairs.rows(x.shape[1])
        m = self.inference(x, rows)  # [N, 8H]
        v = self.infercomposition(m, pairs, rows)  # [B, 8H]
        return self.linear(v)

    def encode(self, pairs: PackedPairs | PaddedPairs, embedded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Embedding and BiLSTM, equations 1 and 2: a row for each token of packed pairs, ``[N, 2H]``."""
        x = self.embedding(pairs.tokens) if embedded is None else look_up(embedded, pairs.tokens)  # [N, embedding_dim]
        return self.encoder(drop(self.embedding_dropout, x, pairs), pairs)

    def attention(
        self,
        p: Tensor,
        h: Tensor,
        p_lengths: Tensor | Sequence[int] | None = None,
        h_lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weights of the soft alignment, equations 12 and 13.

        Args:
            p, h, p_lengths, h_lengths: as in :meth:`forward`, but not packed.

        Returns:
            alpha, beta ``[B, Lp, Lh]``: how much each word of the premise attends to each word of the hypothesis (rows
            of alpha sum to one), and each word of the hypothesis to each of the premise (columns of beta sum to one).
            Zero at padding.

        Raises:
            TypeError, ValueError: as :meth:`forward`, or ``p`` is packed.
        """
        if isinstance(p, PackedPairs):
            raise TypeError("attention is laid out as the padded ids are: p must be a tensor of ids, not packed pairs")
        pairs = self._pack(p, h, p_lengths, h_lengths)
        if len(p) == 0:
            nothing = self.embedding.weight.new_zeros(0, p.shape[1], h.shape[1])
            return nothing, nothing.clone()
        x = self.encode(pairs)
        rows = pairs.rows(x.shape[1])
        weights = reference.attention(x, x, a_rows=rows.premises, b_rows=rows.hypotheses)
        p_mask = token_mask("p", p, p_lengths, self.config.padding_idx)
        h_mask = token_mask("h", h, h_lengths, self.config.padding_idx)
        alpha, beta = (spread(spread(weight, p_mask, 1), h_mask, 2) for weight in weights)
        return alpha, beta

    # What torch.jit.script asks of a module before it compiles it.
    __prepare_scriptable__ = refuse_torchscript

    def _pack(
        self, p: Tensor | PackedPairs | None, h: Tensor | None, p_lengths: Any, h_lengths: Any, embedded: Any = None
    ) -> PackedPairs | PaddedPairs:
        if not isinstance(p, PackedPairs):
            options = {"padding_idx": self.config.padding_idx, "embedding": self.embedding, "embedded": embedded}
            return pack_ids(p, h, p_lengths, h_lengths, **options)
        if any(given is not None for given in (h, p_lengths, h_lengths, embedded)):
            raise TypeError("packed pairs are the whole batch: give them alone")
        check_tokens("tokens", p.tokens, self.embedding)
        return p


class InputEncoding(nn.Module):
    """A BiLSTM over each sentence, all of them in one packed call: equation 1 for premises, 2 for hypotheses."""

    def __init__(self, input_size: int, hidden_size: int, backend: str | None) -> None:
        super().__init__()
        self.backend = backend
        self.lstm = nn.LSTM(input_size, hidden_size, bidirectional=True)

    def forward(self, x: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """``x [N, input_size]`` to ``[N, 2H]``, forward and backward state of each token."""
        return bilstm(self, "lstm", x, pairs, self.backend)


class PackedLocalInference(nn.Module):
    """Soft alignment and enhancement of packed pairs: equations 11-15."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, rows: PairRows) -> Tensor:
        """``x [N, 2H]`` to ``[N, 8H]``."""
        return ops.local_inference_packed(x, rows.premises, rows.hypotheses, backend=self.backend)


class InferenceComposition(nn.Module):
    """Projection, BiLSTM and pooling: equations 16-20."""

    def __init__(self, config: ESIMConfig, dropout: Dropout, backends: Mapping[str, str | None]) -> None:
        super().__init__()
        self.composition = CompositionLayer(config, dropout, backends["bilstm"])
        self.pooling = Pooling(backends["masked_pool"])

    def forward(self, m: Tensor, pairs: PackedPairs | PaddedPairs, rows: PairRows) -> Tensor:
        """``m [N, 8H]`` to ``[B, 8H]``: average and maximum of the premise, then of the hypothesis."""
        return self.pool(self.composition(m, pairs), rows)

    def pool(self, y: Tensor, rows: PairRows) -> Tensor:
        """``y [N, 2H]`` to ``[B, 8H]``."""
        return side_by_side(self.pooling(y, rows=rows.all))


class CompositionLayer(nn.Module):
    """Projection and BiLSTM: equations 16 and 17."""

    def __init__(self, config: ESIMConfig, dropout: Dropout, backend: str | None) -> None:
        super().__init__()
        H = self.hidden_size = config.hidden_size
        self.backend = backend
        self.F = nn.Linear(8 * H, H)
        self.activation = _ACTIVATIONS[config.projection_activation]()
        self.dropout = dropout
        self.lstm = nn.LSTM(H, H, bidirectional=True)

    def forward(self, m: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """``m [N, 8H]`` to ``[N, 2H]``."""
        return self.compose(project(self.F, m), pairs)

    def compose(self, y: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """What follows the projection: ``y [N, H]`` to ``[N, 2H]``."""
        y = drop(self.dropout, self.activation(y), pairs)
        return bilstm(self, "lstm", y, pairs, self.backend)


class MLP(nn.Module):
    """The classifier: one hidden layer of H units."""

    def __init__(self, config: ESIMConfig) -> None:
        super().__init__()
        self.input_size = 8 * config.hidden_size
        self.mlp = Sequential(
            Dropout(config.dropout),
            nn.Linear(self.input_size, config.hidden_size),
            nn.Sequential(_ACTIVATIONS[config.classifier_activation](), Dropout(config.feedforward_dropout)),
            nn.Linear(config.hidden_size, config.num_labels),
        )

    @property
    def dropout(self) -> nn.Module:
        """The notebook's, before the hidden layer."""
        return self.mlp[0]

    @property
    def activation(self) -> nn.Module:
        """The notebook's, of the hidden layer."""
        return cast(nn.Sequential, self.mlp[2])[0]

    def forward(self, v: Tensor) -> Tensor:
        """``v [B, 8H]`` to logits ``[B, num_labels]``."""
        return self.mlp(v)


def is_as_made(net: ESIM) -> bool:
    """Whether the network does what its parts do, as they were made: nobody has given them hooks or a forward pass of
    their own."""
    composition = net.infercomposition
    made = ((net, ESIM), (net.encoder, InputEncoding), (net.inference, PackedLocalInference), (net.linear, MLP))
    if any(type(part).forward is not kind.forward for part, kind in (*made, (composition, InferenceComposition))):
        return False
    if type(composition.composition).forward is not CompositionLayer.forward:
        return False
    return not any(is_hooked(module) or "forward" in vars(module) for module in net.modules())


def _rename_entries(net: ESIM, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: gives its entries our names."""
    source = state_dicts.rename(state_dict, prefix or None)
    if source not in (None, "notebook"):  # whose names ours are as well
        state_dicts.warn_of_differences(source, net.config)

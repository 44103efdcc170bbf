"""ESIM (Chen et al. 2017), on packed rows from the token ids to the pooled vector.

Modules have the names of the course notebook's ESIM, so its state dicts load unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import direct, ops, state_dicts
from .config import FROM_VARIANT, ESIMConfig
from .inputs import check_tokens, look_up, pack_ids, refuse_torchscript, spread, token_mask
from .layers import (
    ActivationAndDropout,
    Dropout,
    Embedding,
    Pooling,
    Sequential,
    VariationalDropout,
    bilstm,
    drop,
    has_global_hooks,
    is_changed,
    project,
    side_by_side,
)
from .ops import reference
from .ops.backends import backends_of_ops
from .ops.checks import autocast_dtype, is_hooked, transforming
from .ops.projection import projection
from .packed import PackedPairs, PairRows
from .padded import PaddedPairs

_ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {None: nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


class ESIM(nn.Module):
    """The enhanced LSTM for sentence pairs: natural language inference, paraphrase, question matching.

        net = ESIM(hidden_size=300, embedding_dim=300, vocab_size=len(vocab), num_labels=3)
        logits = net(premise_ids, hypothesis_ids)  # int64 [batch, length] each, padded with id 1 -> float32 [batch, 3]

    The model of Chen et al. 2017 (https://aclanthology.org/P17-1152): embedding and BiLSTM (equations 1 and 2), local
    inference (11-15), projection and BiLSTM (16 and 17), average and max pooling (18-20), and a classifier.

    ``load_state_dict`` also accepts state dicts of the course notebook's ESIM, of coetaur0/ESIM and of AllenNLP, with
    or without the prefixes of DataParallel, ``torch.compile``, Lightning or AveragedModel. It warns if this network's
    options differ from those that the weights were trained with.

    Args:
        hidden_size: units of each direction of both LSTMs, and width of the projection.
        embedding_dim: width of the word vectors.
        vocab_size: rows of the embedding.
        num_labels: number of classes.
        device: where the parameters are created; None is PyTorch's default device.
        padding_idx: the id that pads sentences; it is never part of a sentence. None if there is no such id.
        dropout: dropout probability on embeddings (variant ``"paper"``), after the projection and in the classifier.
        embedding_dropout: dropout probability on embeddings, if it differs from ``dropout``.
        variational_dropout: use one dropout mask per sentence, shared by all its words, on embeddings and after the
            projection, as coetaur0/ESIM and AllenNLP do.
        variant: ``"paper"`` (ReLU after the projection, tanh classifier) or ``"notebook"`` (no activation, ReLU
            classifier).
        projection_activation: None, ``"relu"`` or ``"tanh"``; by default the variant's.
        classifier_activation: None, ``"relu"`` or ``"tanh"``; by default the variant's.
        freeze_embedding: whether to keep the word vectors fixed during training.
        backend: ``"cpp"`` (C++ kernels, on CPUs), ``"cuda"`` (CUDA kernels for pooling), ``"triton"`` (Triton kernels
            for BiLSTMs and local inference), ``"cudnn"`` (BiLSTMs) or ``"reference"`` (plain PyTorch for everything).
            Ops that a backend does not implement use the best one for the tensors at hand, as does None.
        bilstm_backend: a backend for the BiLSTMs alone, instead of ``backend``: one of the above, where ``"cuda"`` is a
            kernel that keeps the weights on the GPU's chip. No GPU has run it yet, so it must be named here.

    Attributes:
        config: the options, an ``esim_fast.config.ESIMConfig``, which is saved with a model.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: a size is not positive, ``padding_idx`` is not below ``vocab_size``, a dropout lies outside 0..1, a
            name is unknown, or a backend cannot run here.
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
        bilstm_backend: str | None = None,
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
        backends = backends_of_ops(backend, device, bilstm_backend)
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
        """The device of the parameters."""
        return self.embedding.weight.device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict of any network that ``ESIM`` supports, otherwise like ``torch.nn.Module.load_state_dict``.

        Raises:
            RuntimeError: entries are missing, unexpected or have the wrong shape, or ``state_dict`` is a whole
                checkpoint. The message uses the names in ``state_dict``.
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
        """Compute the logits of a batch of pairs.

        If the embedding has hooks, it is called with padded ids ``[B, Lp + Lh]`` instead of packed ones ``[N]``,
        because tools that attribute predictions to layers need one row per pair.

        Args:
            p: token ids of premises, int64 or int32 ``[B, Lp]``, or a whole batch from ``esim_fast.pack_pairs`` (then
                ``h`` is None). Padding may be anywhere; it is removed, and the rest is the sentence, which may be
                empty. For ids on the CPU without lengths, a warning is raised if they seem to be padded with another id
                or to have shape ``[L, B]``.
            h: token ids of hypotheses, int64 or int32 ``[B, Lh]``.
            p_lengths: integers ``[B]``, preferably on the CPU; the premise lies within the first ``p_lengths[b]`` ids.
                With lengths there is no GPU sync, and ids on a GPU must have their padding at the end.
            h_lengths: the same for hypotheses.
            embedded: word vectors ``[B, Lp, E]`` and ``[B, Lh, E]``, where E is ``embedding_dim``, in the dtype of the
                parameters. They replace the embedding: to use another model's vectors, or to get gradients with respect
                to them (zero at padding). Embedding dropout still applies. ``p`` and ``h`` then only mark padding and
                may come from any vocabulary; with lengths you can omit them.

        Returns:
            Logits ``[B, num_labels]`` in the dtype of the parameters, or in autocast's dtype under autocast.

        Raises:
            TypeError: ids or lengths are not integers, ``embedded`` has another dtype, or ``torch.jit.trace`` is
                running.
            ValueError: shapes or devices disagree, lengths lie outside 0..L, or ids on the CPU are not below
                ``vocab_size``.
        """
        pairs = self._pack(p, h, p_lengths, h_lengths, embedded)
        if isinstance(p, Tensor) and h is not None and embedded is None and is_hooked(self.embedding):
            embedded = self.embedding(torch.cat([p, h], dim=1)).split([p.shape[1], h.shape[1]], dim=1)
            pairs = self._pack(p, h, p_lengths, h_lengths, embedded)
        if pairs.pairs == 0:
            return self.linear(self.embedding.weight.new_zeros(0, self.linear.input_size))
        if embedded is None and isinstance(pairs, PackedPairs) and self._runs_directly(pairs):
            return direct.comparison(self, direct.encoding(self, pairs, direct.FP32), pairs, direct.FP32)
        x = self.encode(pairs, embedded)  # [N, 2H], a row for each token of the batch
        rows = pairs.rows(x.shape[1])
        if self._absorbs_difference(x):
            composition = self.infercomposition.composition
            m = self.inference(x, rows, difference=False)  # [N, 6H]
            y = projection(m, composition.F.weight, composition.F.bias)  # [N, H]
            v = self.infercomposition.pool(composition.compose(y, pairs), rows)  # [B, 8H]
        else:
            m = self.inference(x, rows)  # [N, 8H]
            v = self.infercomposition(m, pairs, rows)  # [B, 8H]
        return self.linear(v)

    def encode(self, pairs: PackedPairs | PaddedPairs, embedded: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Compute embedding and BiLSTM (equations 1 and 2): ``[N, 2H]``, a row for each token of the packed pairs."""
        x = self.embedding(pairs.tokens) if embedded is None else look_up(embedded, pairs.tokens)  # [N, embedding_dim]
        return self.encoder(drop(self.embedding_dropout, x, pairs), pairs)

    def attention(
        self,
        p: Tensor,
        h: Tensor,
        p_lengths: Tensor | Sequence[int] | None = None,
        h_lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the soft alignment's weights (equations 12 and 13).

        Args:
            p: token ids of premises ``[B, Lp]``, as in ``forward`` but not packed.
            h: token ids of hypotheses ``[B, Lh]``.
            p_lengths: as in ``forward``.
            h_lengths: as in ``forward``.

        Returns:
            ``(alpha, beta)``, both ``[B, Lp, Lh]`` and zero at padding. ``alpha`` is how much each premise word attends
            to each hypothesis word (rows sum to one); ``beta`` is how much each hypothesis word attends to each premise
            word (columns sum to one).

        Raises:
            TypeError: as in ``forward``, or ``p`` is packed.
            ValueError: as in ``forward``.
        """
        if isinstance(p, PackedPairs):
            raise TypeError("attention returns padded maps, so p must be a tensor of padded ids, got packed pairs")
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

    def _runs_directly(self, pairs: PackedPairs) -> bool:
        """Whether the operators may be called without the layers (direct.py)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or pairs.batch_sizes is None:
            return False
        fits = pairs.tokens.device.type == "cpu" and len(pairs.tokens) > 0 and direct.can_address(pairs)
        return fits and is_as_made(self) and direct.can_run_directly(self)

    def _absorbs_difference(self, x: Tensor) -> bool:
        """Whether the projection can do without ``a - ã`` (ops/projection.py): in fp32, with the C++ kernel of local
        inference. Hooks and replaced layers still get all four parts, as does a compiler.
        """
        if x.device.type != "cpu" or x.dtype != torch.float32 or autocast_dtype(x.device) is not None:
            return False
        if torch.compiler.is_compiling() or transforming() or has_global_hooks() or not is_as_made(self):
            return False
        F = self.infercomposition.composition.F
        if type(F) is not nn.Linear or F.bias is None or F.in_features != 4 * x.shape[1]:
            return False
        return F.weight.dtype == torch.float32 and self.inference.backend in (None, "cpp")

    # torch.jit.script calls this before it compiles a module.
    __prepare_scriptable__ = refuse_torchscript

    def _pack(
        self, p: Tensor | PackedPairs | None, h: Tensor | None, p_lengths: Any, h_lengths: Any, embedded: Any = None
    ) -> PackedPairs | PaddedPairs:
        if not isinstance(p, PackedPairs):
            options = {"padding_idx": self.config.padding_idx, "embedding": self.embedding, "embedded": embedded}
            return pack_ids(p, h, p_lengths, h_lengths, **options)
        if any(given is not None for given in (h, p_lengths, h_lengths, embedded)):
            raise TypeError("packed pairs are the whole batch: pass no other arguments")
        check_tokens("tokens", p.tokens, self.embedding)
        return p


class InputEncoding(nn.Module):
    """A BiLSTM over every sentence in one packed call: equation 1 for premises, 2 for hypotheses."""

    def __init__(self, input_size: int, hidden_size: int, backend: str | None) -> None:
        super().__init__()
        self.backend = backend
        self.lstm = nn.LSTM(input_size, hidden_size, bidirectional=True)

    def forward(self, x: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """Map ``x [N, input_size]`` to ``[N, 2H]``, the forward and backward state of each token."""
        return bilstm(self, "lstm", x, pairs, self.backend)


class PackedLocalInference(nn.Module):
    """Soft alignment and enhancement of packed pairs (equations 11-15)."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, rows: PairRows, *, difference: bool = True) -> Tensor:
        """Map ``x [N, 2H]`` to ``[N, 8H]``, or to ``[N, 6H]`` without the difference."""
        filled, backend = rows.all.filled, self.backend
        return ops.local_inference_packed(
            x, rows.premises, rows.hypotheses, filled=filled, difference=difference, backend=backend
        )


class InferenceComposition(nn.Module):
    """Projection, BiLSTM and pooling (equations 16-20)."""

    def __init__(self, config: ESIMConfig, dropout: Dropout, backends: Mapping[str, str | None]) -> None:
        super().__init__()
        self.composition = CompositionLayer(config, dropout, backends["bilstm"])
        self.pooling = Pooling(backends["masked_pool"])

    def forward(self, m: Tensor, pairs: PackedPairs | PaddedPairs, rows: PairRows) -> Tensor:
        """Map ``m [N, 8H]`` to ``[B, 8H]``: average and maximum of the premise, then of the hypothesis."""
        return self.pool(self.composition(m, pairs), rows)

    def pool(self, y: Tensor, rows: PairRows) -> Tensor:
        """Map ``y [N, 2H]`` to ``[B, 8H]``."""
        return side_by_side(self.pooling(y, rows=rows.all))


class CompositionLayer(nn.Module):
    """Projection and BiLSTM (equations 16 and 17)."""

    def __init__(self, config: ESIMConfig, dropout: Dropout, backend: str | None) -> None:
        super().__init__()
        H = self.hidden_size = config.hidden_size
        self.backend = backend
        self.F = nn.Linear(8 * H, H)
        self.activation = _ACTIVATIONS[config.projection_activation]()
        self.dropout = dropout
        self.lstm = nn.LSTM(H, H, bidirectional=True)

    def forward(self, m: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """Map ``m [N, 8H]`` to ``[N, 2H]``."""
        return self.compose(project(self.F, m), pairs)

    def compose(self, y: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """Run everything after the projection: ``y [N, H]`` to ``[N, 2H]``."""
        y = drop(self.dropout, y, pairs, self.activation)
        return bilstm(self, "lstm", y, pairs, self.backend)


class MLP(nn.Module):
    """The classifier, with one hidden layer of H units."""

    def __init__(self, config: ESIMConfig) -> None:
        super().__init__()
        self.input_size = 8 * config.hidden_size
        self.mlp = Sequential(
            Dropout(config.dropout),
            nn.Linear(self.input_size, config.hidden_size),
            ActivationAndDropout(_ACTIVATIONS[config.classifier_activation](), Dropout(config.feedforward_dropout)),
            nn.Linear(config.hidden_size, config.num_labels),
        )

    @property
    def dropout(self) -> nn.Module:
        """The dropout before the hidden layer, under the notebook's name."""
        return self.mlp[0]

    @property
    def activation(self) -> nn.Module:
        """The activation of the hidden layer, under the notebook's name."""
        return cast(nn.Sequential, self.mlp[2])[0]

    def forward(self, v: Tensor) -> Tensor:
        """Map ``v [B, 8H]`` to logits ``[B, num_labels]``."""
        return self.mlp(v)


def is_as_made(net: ESIM) -> bool:
    """Whether no part of the network has hooks or methods of its own, so its ops may be called directly."""
    inner, classifier = net.infercomposition, net.linear
    if type(net).forward is not ESIM.forward or type(net).encode is not ESIM.encode or "encode" in vars(net):
        return False
    if type(inner) is not InferenceComposition or type(classifier) is not MLP or "pool" in vars(inner):
        return False
    parts: tuple[tuple[object, type], ...] = (
        (net.encoder, InputEncoding),
        (net.inference, PackedLocalInference),
        (inner.composition, CompositionLayer),
        (inner.pooling, Pooling),
        (classifier.mlp, Sequential),
    )
    if any(type(part) is not kind for part, kind in parts) or "compose" in vars(inner.composition):
        return False
    # As a loop, because this runs before each prediction and net.modules() takes twice as long.
    modules: list[nn.Module | None] = [net]
    while modules:
        module = modules.pop()
        if module is None:
            continue
        if is_changed(module):
            return False
        modules.extend(module._modules.values())
    return True


def _rename_entries(net: ESIM, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of a state dict before it is loaded."""
    source = state_dicts.rename(state_dict, prefix or None)
    if source not in (None, "notebook"):  # we share the notebook's names, so they tell nothing about options
        state_dicts.warn_of_differences(source, net.config)

"""Drop-in replacement for the model of https://github.com/coetaur0/ESIM: same constructor, arguments, results and state
dict.

Differences: the softmax over the words of a sentence is exact, while the original multiplies scores by a mask and loses
all precision for scores far below zero; a padding id within a sentence is skipped instead of going through the LSTMs;
lengths may be 0; and nothing is sorted, padded or reordered in each call.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import model, ops, state_dicts
from ..inputs import pack_ids, refuse_torchscript
from ..layers import Sequential, bilstm, drop, side_by_side
from ..packed import PackedPairs
from ..padded import PaddedPairs
from ..training.initialization import initialize

_NAMES = state_dicts.NAMING_SCHEMES["coetaur0"]
_LAYERS = {  # our names to theirs: layers with parameters from the table of names, then the others
    **{ours: theirs for theirs, ours in _NAMES.modules.items()},
    "embedding_dropout": "_rnn_dropout",
    "inference": "_attention",
    "infercomposition.composition.activation": "_projection.1",
    "infercomposition.composition.dropout": "_rnn_dropout",
    "linear.mlp.0": "_classification.0",
    "linear.mlp.2.0": "_classification.2",
    "linear.mlp.2.1": "_classification.3",
}


class ESIM(nn.Module):
    """``esim_fast.ESIM`` as a drop-in replacement for ``esim.model.ESIM`` of coetaur0/ESIM.

    Modules and parameters have their original names: ``_word_embedding``, ``_rnn_dropout``, ``_encoding._encoder``,
    ``_attention``, ``_projection``, ``_composition._encoder`` and ``_classification``. Replacing or hooking them works,
    but they get the packed rows of all sentences, ``[N, D]``, instead of padded ones. ``load_state_dict`` accepts the
    same state dicts as ``esim_fast.ESIM``.

    Args:
        vocab_size: rows of the embedding.
        embedding_dim: width of the word vectors.
        hidden_size: units of each direction of both LSTMs, and width of the projection.
        embeddings: initial word vectors ``[vocab_size, embedding_dim]``; None initializes them at random.
        padding_idx: the id that pads sentences.
        dropout: dropout probability; on embeddings and after the projection, all words of a sentence share one mask.
        num_classes: number of classes.
        device: stored as an attribute for the training loop; as in the original, ``.to(device)`` moves the model.

    Raises:
        TypeError: as for ``esim_fast.ESIM``.
        ValueError: as for ``esim_fast.ESIM``, or ``embeddings`` is not ``[vocab_size, embedding_dim]``.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        hidden_size: int,
        embeddings: Tensor | None = None,
        padding_idx: int = 0,
        dropout: float = 0.5,
        num_classes: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        options = {**_NAMES.options, "padding_idx": padding_idx, "dropout": dropout}
        inner = model.ESIM(hidden_size, embedding_dim, vocab_size, num_classes, **options)
        initialize(inner)
        if embeddings is not None:
            shape, expected = list(embeddings.shape), [vocab_size, embedding_dim]
            if shape != expected:
                raise ValueError(f"embeddings must be {expected}, one row for each word, got {shape}")
            inner.embedding.weight.data.copy_(embeddings)
        self.vocab_size, self.embedding_dim, self.hidden_size = vocab_size, embedding_dim, hidden_size
        self.num_classes, self.dropout, self.device = num_classes, dropout, device
        composition, layers = inner.infercomposition.composition, cast(Any, inner.linear.mlp)
        self._word_embedding = inner.embedding
        self._rnn_dropout = inner.embedding_dropout
        self._encoding = _Encoder(inner.encoder.lstm)
        self._attention = inner.inference
        self._projection = Sequential(composition.F, composition.activation)
        self._composition = _Encoder(composition.lstm)
        self._classification = Sequential(layers[0], layers[1], *layers[2], layers[3])
        self._inner = (inner,)  # the tuple hides it from nn.Module, which would list every parameter twice
        self.register_load_state_dict_pre_hook(_rename_entries)

    @property
    def esim(self) -> model.ESIM:
        """The same layers as an ``esim_fast.ESIM``, for its ``attention`` and for ``esim_fast.Classifier``.

        Replace layers in this module, not in that one. Hooks on layers work in both, other hooks only here.

        Raises:
            TypeError: a container was replaced by one with other layers.
        """
        for name, (kind, layers) in _CONTAINERS.items():
            module = self.get_submodule(name)
            if not isinstance(module, kind) or [child for child, _ in module.named_children()] != layers.split():
                raise TypeError(f"{name} has been replaced by a module whose layers do not fit esim_fast.ESIM")
        (inner,) = self._inner
        for ours, theirs in _LAYERS.items():
            inner.set_submodule(ours, self.get_submodule(theirs))
        return inner

    def train(self, mode: bool = True) -> "ESIM":
        """Set the training mode, for ``esim`` as well."""
        self._inner[0].train(mode)
        return super().train(mode)

    def forward(
        self, premises: Tensor, premises_lengths: Tensor, hypotheses: Tensor, hypotheses_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute logits and probabilities of a batch of pairs.

        Args:
            premises: token ids ``[B, Lp]``.
            premises_lengths: integers ``[B]``; on a GPU they cause a sync, on the CPU they do not.
            hypotheses: token ids ``[B, Lh]``.
            hypotheses_lengths: integers ``[B]``.

        Returns:
            ``(logits, probabilities)``, both ``[B, num_classes]``.

        Raises:
            TypeError: as in ``esim_fast.ESIM.forward``.
            ValueError: as in ``esim_fast.ESIM.forward``.
        """
        padding_idx, embedding = self._inner[0].config.padding_idx, self._word_embedding
        lengths = premises_lengths, hypotheses_lengths
        pairs = pack_ids(premises, hypotheses, *lengths, padding_idx=padding_idx, embedding=embedding)
        logits = self._classification(
            self._pooled(pairs) if pairs.pairs else embedding.weight.new_zeros(0, 8 * self.hidden_size)
        )
        return logits, logits.softmax(-1)

    # torch.jit.script calls this before it compiles a module.
    __prepare_scriptable__ = refuse_torchscript

    def _pooled(self, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """Return the classifier's input ``[B, 8H]``."""
        x = drop(self._rnn_dropout, self._word_embedding(pairs.tokens), pairs)  # [N, embedding_dim]
        x = self._encoding(x, pairs)  # [N, 2H]
        rows = pairs.rows(x.shape[1])
        y = self._projection(self._attention(x, rows))  # [N, H]
        y = self._composition(drop(self._rnn_dropout, y, pairs), pairs)  # [N, 2H]
        return side_by_side(ops.masked_pool(y, rows=rows.all))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict, like ``torch.nn.Module.load_state_dict``.

        Raises:
            RuntimeError: as in ``esim_fast.ESIM.load_state_dict``.
        """
        return state_dicts.loaded(partial(super().load_state_dict, state_dict, strict, assign), state_dict, "coetaur0")


class _Encoder(nn.Module):
    """A BiLSTM over each sentence."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self._encoder = lstm

    def forward(self, x: Tensor, pairs: PackedPairs | PaddedPairs) -> Tensor:
        """Map ``x [N, input_size]`` to ``[N, 2H]``, the forward and backward state of each token."""
        return bilstm(self, "_encoder", x, pairs)


# The modules that contain layers, and the names of these layers.
_CONTAINERS = {
    "_encoding": (_Encoder, "_encoder"),
    "_projection": (nn.Sequential, "0 1"),
    "_composition": (_Encoder, "_encoder"),
    "_classification": (nn.Sequential, "0 1 2 3 4"),
}


def _rename_entries(net: ESIM, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of a state dict to coetaur0's names before it is loaded."""
    source = state_dicts.rename(state_dict, prefix or None, into="coetaur0")
    if source is not None:
        state_dicts.warn_of_differences(source, net._inner[0].config)

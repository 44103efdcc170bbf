"""https://github.com/coetaur0/ESIM: the constructor, the arguments, the results and the state dict of its model.

What is different: a true softmax over the words of a sentence, where theirs multiplies scores by a mask and loses all
precision for scores far below zero; a padding id within a sentence is no word, where theirs goes through the LSTMs;
lengths may be 0; and nothing is sorted, padded or put back in each call.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import model, state_dicts
from ..training.initialization import initialize

_NAMES = state_dicts.NAMING_SCHEMES["coetaur0"]
_INNER = "esim."  # what the names of our entries begin with here


class ESIM(nn.Module):
    """:class:`esim_fast.ESIM` in place of ``esim.model.ESIM`` of coetaur0/ESIM.

    ``state_dict()`` has their names; ``load_state_dict`` takes theirs, the notebook's and AllenNLP's.

    Args:
        vocab_size: rows of the embedding.
        embedding_dim: width of the word vectors.
        hidden_size: of each direction of both LSTMs, and of the projection.
        embeddings: word vectors ``[vocab_size, embedding_dim]`` to begin with, or None, random ones.
        padding_idx: the id that fills sentences up.
        dropout: probability; on embeddings and after the projection it drops the same elements of all words of a
            sentence.
        num_classes: classes.
        device: kept as an attribute for the training loop; ``.to(device)`` moves the model, as there.

    Attributes:
        esim: the :class:`esim_fast.ESIM` itself, with ``attention``, and for :class:`esim_fast.Classifier`.

    Raises:
        TypeError, ValueError: as :class:`esim_fast.ESIM`, or ``embeddings`` is not ``[vocab_size, embedding_dim]``.
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
        self.esim = model.ESIM(hidden_size, embedding_dim, vocab_size, num_classes, **options)
        initialize(self.esim)
        if embeddings is not None:
            shape, expected = list(embeddings.shape), [vocab_size, embedding_dim]
            if shape != expected:
                raise ValueError(f"embeddings must be {expected}, one row for each word, got {shape}")
            self.esim.embedding.weight.data.copy_(embeddings)
        self.vocab_size, self.embedding_dim, self.hidden_size = vocab_size, embedding_dim, hidden_size
        self.num_classes, self.dropout, self.device = num_classes, dropout, device
        self.register_load_state_dict_pre_hook(_give_our_names)
        self.register_state_dict_post_hook(_give_their_names)

    def forward(
        self, premises: Tensor, premises_lengths: Tensor, hypotheses: Tensor, hypotheses_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and probabilities of a batch of pairs.

        Args:
            premises, hypotheses: token ids ``[B, Lp]`` and ``[B, Lh]``.
            premises_lengths, hypotheses_lengths: integers ``[B]``; on a GPU they are waited for, on the CPU they need
                not be.

        Returns:
            logits ``[B, num_classes]`` and their softmax.

        Raises:
            TypeError, ValueError: as :meth:`esim_fast.ESIM.forward`.
        """
        logits = self.esim(premises, hypotheses, premises_lengths, hypotheses_lengths)
        return logits, logits.softmax(-1)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``torch.nn.Module.load_state_dict``.

        Raises:
            RuntimeError: entries are missing, unexpected or misshapen; they have the names that they have there.
        """
        names = state_dicts.NAMING_SCHEMES[state_dicts.recognized(state_dict) or "coetaur0"]
        return names.loaded(partial(super().load_state_dict, state_dict, strict, assign), _INNER)


def _give_our_names(module: ESIM, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    source = state_dicts.rename(state_dict, prefix, onto=f"{prefix}{_INNER}")
    if source is not None:
        state_dicts.warn_of_differences(source, module.esim.config)


def _give_their_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    inner = f"{prefix}{_INNER}"
    for name in [name for name in state_dict if name.startswith(inner)]:
        state_dict[f"{prefix}{_NAMES.theirs(name.removeprefix(inner))}"] = state_dict.pop(name)

"""Methods of Classifier for training and sharing, which import the modules that in turn import Classifier."""

import os
from collections.abc import Callable
from functools import update_wrapper
from importlib import import_module
from types import MethodType
from typing import Any, cast

import torch

from .recipe import Recipe
from .tokenizing import Tokenizer


class _OnClassOrModel:
    """A method that receives the model it is called on, or the class."""

    def __init__(self, method: Callable[..., Any]) -> None:
        update_wrapper(cast(Any, self), method)
        self._method = method

    def __get__(self, model: object, owner: type) -> Callable[..., Any]:
        return MethodType(self._method, owner if model is None else model)


class Trainable:
    """The methods ``fit`` and ``push_to_hub`` of ``esim_fast.Classifier``."""

    @_OnClassOrModel
    def fit(
        model: Any,  # noqa: N805  # or the class
        pairs: Any,
        labels: Any = None,
        *,
        dev: Any = 0.1,
        task: str | None = None,
        preset: str | None = None,
        recipe: Recipe | None = None,
        output: str | os.PathLike[str] | None = None,
        vectors: str | os.PathLike[str] | None = None,
        tokenizer: str | Tokenizer | None = None,
        device: torch.device | str | None = None,
        on_epoch: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> Any:
        """Train a model: ``Classifier.fit(...)`` trains a new one, ``model.fit(...)`` continues to train this one.

        Rows without a gold label are skipped: None, NaN, ``"-"`` among strings, -1 among integers. A model that is
        trained further keeps its vocabulary and labels; its temperature and threshold are reset, because they were
        chosen for other weights. If training fails or is interrupted, its weights are restored.

        Args:
            pairs: (premise, hypothesis) pairs of raw text; or a table (a DataFrame, a ``datasets.Dataset`` or a dict of
                columns) with known column names, such as ``premise``, ``hypothesis`` and ``label``.
            labels: strings or integers; or floats, which are scores (regression). None takes them from the table.
            dev: pairs that select the best epoch: ``(pairs, labels)``, a table, or the share of ``pairs`` to hold out
                at random, drawn with the recipe's seed.
            task: ``"classification"`` or ``"regression"``, if the labels leave it open.
            preset: name of a recipe, see ``esim_fast.training.PRESETS``.
            recipe: training hyperparameters; None uses the preset's, else the paper's.
            output: directory of the run, as for ``esim-fast train``; None keeps the model in memory only.
            vectors: a file of word vectors, as for ``esim_fast.data.load_vectors``.
            tokenizer: as for ``Classifier``; None is ``"nltk"``.
            device: device to train on; None is the GPU if torch finds one, else the CPU.
            on_epoch: called after each epoch with its metrics, for example ``print``.
            options: fields of ``esim_fast.training.Recipe``, such as ``epochs`` and ``learning_rate``; and options of a
                new network: ``hidden_size``, ``embedding_dim``, ``dropout``, ``embedding_dropout``,
                ``freeze_embedding``, ``forget_bias``.

        Returns:
            The history, a list of each epoch's metrics (``esim_fast.training.EpochMetrics``). Its attribute ``model``
            has the weights of the best epoch, and ``best`` is that epoch's metrics.

        Raises:
            TypeError: pairs, labels or dev have the wrong type, or there is no such option.
            ValueError: pairs or labels are empty or differ in number, a table lacks a column, there are fewer than two
                labels, or an option is invalid.
            DataError: a row cannot be read or has a label that the model does not have, or the vectors cannot be read.
            FileExistsError: ``output`` already holds a model.
            FloatingPointError: the loss is no longer finite.
        """
        fit = import_module(".training.fit", __package__).fit
        known = {"dev": dev, "task": task, "preset": preset, "recipe": recipe, "output": output, "vectors": vectors}
        known |= {"tokenizer": tokenizer, "device": device, "on_epoch": on_epoch}
        return fit(None if isinstance(model, type) else model, pairs, labels, **known, **options)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Push the model to the Hugging Face Hub with a generated model card (needs the extra ``esim_fast[hub]``).

        An existing card is kept. Of the training files, only the names are published.

        Args:
            name: ``"user/name"``; the repository is created if it does not exist.
            private: whether the repository is private. None keeps an existing repository's setting, and uses the
                account's default for a new one.
            token: a token with write access; None uses the one that ``huggingface_hub`` has stored.
            commit_message: message of the commit; None is a generated one.

        Returns:
            The URL of the commit.

        Raises:
            ValueError: ``name`` does not have this form.
            DataError: the Hub cannot be reached or refuses, or the repository exists and does not match ``private``.
        """
        return import_module(".sharing", __package__).push(
            self, name, private=private, token=token, commit_message=commit_message
        )

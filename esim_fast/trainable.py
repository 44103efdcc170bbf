"""What a Classifier does by parts of the library that import it themselves: training and sharing."""

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
    """A method that gets the model that it is called on, or the class."""

    def __init__(self, method: Callable[..., Any]) -> None:
        update_wrapper(cast(Any, self), method)
        self._method = method

    def __get__(self, model: object, owner: type) -> Callable[..., Any]:
        return MethodType(self._method, owner if model is None else model)


class Trainable:
    """These methods of :class:`esim_fast.Classifier`."""

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
        """Trains a model: ``Classifier.fit(...)`` a new one, ``model.fit(...)`` this one, from where it is.

        Rows without a gold label are left out: None, NaN, "-" among strings, -1 among integers. A model that is trained
        on keeps its vocabulary and labels; its temperature and threshold, chosen for other weights, are reset. If
        training does not come to its end, its weights are what they were.

        Args:
            pairs: (premise, hypothesis) pairs of raw text; or a table (a DataFrame, a ``datasets.Dataset`` or a dict of
                columns) with columns of known names, such as ``premise``, ``hypothesis`` and ``label``.
            labels: strings or integers, or floats, which are scores (regression); None: a column of the table.
            dev: pairs that choose the best epoch: (pairs, labels), a table, or the share of ``pairs`` that is held out,
                drawn by the recipe's seed.
            task: "classification" or "regression", where labels leave it open.
            preset: a recipe by name, see :data:`esim_fast.training.PRESETS`.
            recipe: how to train; None: the preset's, else the paper's.
            output: the directory of the run, as of ``esim-fast train``; None keeps nothing but the model in memory.
            vectors: a file of word vectors, as for :func:`esim_fast.data.load_vectors`.
            tokenizer: as for :class:`Classifier`; None: "nltk".
            device: where it is trained; None is the GPU where torch finds one, else the CPU.
            on_epoch: called with what was measured after each epoch, for example ``print``.
            options: fields of :class:`esim_fast.training.Recipe`, such as ``epochs`` and ``learning_rate``, and of a
                new network: ``hidden_size``, ``embedding_dim``, ``dropout``, ``embedding_dropout``,
                ``freeze_embedding``, ``forget_bias``.

        Returns:
            The history, a list of what each epoch measured (:class:`esim_fast.training.EpochMetrics`), with ``model``,
            which has the weights of the best epoch, and ``best``, what that one measured.

        Raises:
            TypeError: pairs, labels or dev are something else, or there is no such option.
            ValueError: they are empty or not as many of both, a table lacks a column, there are fewer than two labels,
                or an option makes no sense.
            DataError: a row cannot be read, has a label that the model has not, or the vectors cannot be read.
            FileExistsError: ``output`` holds a model.
            FloatingPointError: the loss is not finite any more.
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
        """Puts the model on the Hugging Face hub (with the extra ``esim_fast[hub]``), with a card written from what is
        known of it; a card that is there already stays. Of the files that it was trained on only the names are shown.

        Args:
            name: ``"user/name"``; it is made if it is not there.
            private: whether nobody else sees it; None: as the user's settings are, or as it is.
            token: that may write there; None is the one that the hub's library knows.

        Returns:
            The address of the commit.

        Raises:
            ValueError: this is no such name.
            DataError: the hub cannot be reached or refuses; or the model is there already, and not as ``private`` says.
        """
        return import_module(".sharing", __package__).push(
            self, name, private=private, token=token, commit_message=commit_message
        )

"""Training in one call, behind ``esim_fast.Classifier.fit``."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib.metadata import version
from numbers import Real
from typing import Any, cast

import torch

from ..classifier import Classifier
from ..config import check_precision, usable_device
from ..data import PreparedCorpus, Tokenizer, Vocabulary, default_cache, load_vectors
from ..data.tables import LabeledPairs, labeled_pairs
from ..errors import one_line
from ..files import load_safetensors
from ..pretrained import WEIGHTS
from ..recipe import PRESET_MODELS, PRESETS, ModelOptions, Recipe
from ..terminal import is_watched
from .directory import RunDirectory
from .initialization import new_network
from .progress import EpochMetrics
from .trainer import Trainer

_TASKS = (None, "classification", "regression")


class History(list[EpochMetrics]):
    """Metrics of every epoch, in order.

    Attributes:
        model: the trained model, with the weights of the best epoch.
        best: metrics of that epoch.
    """

    def __init__(self, epochs: list[EpochMetrics], model: Classifier, best: EpochMetrics) -> None:
        super().__init__(epochs)
        self.model, self.best = model, best


def fit(
    model: Classifier | None,
    pairs: Any,
    labels: Any = None,
    *,
    dev: Any,
    task: str | None,
    preset: str | None,
    recipe: Recipe | None,
    output: str | os.PathLike[str] | None,
    vectors: str | os.PathLike[str] | None,
    tokenizer: str | Tokenizer | None,
    device: torch.device | str | None,
    on_epoch: Callable[[EpochMetrics], object] | None,
    **options: Any,
) -> History:
    """Implement ``esim_fast.Classifier.fit``; ``model`` is None for a new model."""
    recipe, network = _settings(preset, recipe, options)
    if task not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(map(repr, _TASKS))}, got {task!r}")
    if vectors is not None and "embedding_dim" in options:
        raise TypeError("embedding_dim and vectors exclude each other: the vectors set the width")
    if output is not None:
        try:
            RunDirectory(output).check(resume=False)
        except FileExistsError as error:
            reason = "already holds a model: choose another output, or delete this one"
            raise FileExistsError(errno.EEXIST, reason, os.fspath(output)) from error
    if model is not None:
        of_new_models = {"vectors": vectors, "tokenizer": tokenizer, "device": device}
        given = [name for name, value in of_new_models.items() if value is not None]
        for name in [*given, *(field.name for field in fields(ModelOptions) if field.name in options)]:
            hint = "move it with to()" if name == "device" else "call Classifier.fit on the class for a new one"
            raise TypeError(f"{name} is for a new model, and this one has its own: {hint}")
        if task not in (None, model.task):
            raise ValueError(f"the model is for {model.task}, got task={task!r}")
        task = model.task
    train = labeled_pairs("pairs", pairs, labels, task)
    train, held = _dev_of(train, dev, recipe.seed)
    tokenizer = model.tokenizer if model is not None else "nltk" if tokenizer is None else tokenizer
    corpora = train.prepared(tokenizer), held.prepared(tokenizer)
    if model is None:
        # A rare label may occur only among the held-out pairs.
        names = ["score"] if train.task == "regression" else train.label_names(corpora[: 2 if _is_share(dev) else 1])
        device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        check_precision(recipe.precision, device)
        model, before = _new_model(corpora[0], names, network, recipe, vectors, tokenizer), None
        model.to(device)
    else:
        check_precision(recipe.precision, model.device)
        was_training = model.net.training
        before = {name: value.clone() for name, value in model.net.state_dict().items()}
    try:
        return _train(model, corpora, recipe, network, output, vectors, on_epoch, is_new=before is None)
    except BaseException:
        if before is not None:  # a failed run leaves a trained model as it was
            model.net.load_state_dict(before)
            model.net.train(was_training)
        raise


def _settings(preset: str | None, recipe: Recipe | None, options: dict[str, Any]) -> tuple[Recipe, ModelOptions]:
    """A preset or a recipe, overridden by options."""
    if preset is not None and recipe is not None:
        raise TypeError("preset and recipe exclude each other")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if not isinstance(recipe, Recipe | None):
        raise TypeError(f"recipe must be an esim_fast.training.Recipe, got {type(recipe).__name__}")
    names = {kind: [field.name for field in fields(kind)] for kind in (Recipe, ModelOptions)}
    known = [*names[Recipe], *names[ModelOptions]]
    for name in options:
        if name not in known:
            near = (
                ["learning_rate"]
                if name == "lr"
                else get_close_matches(name, [*known, "vectors", "tokenizer", "output", "device"], 1, 0.65)
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(one_line(f"fit has no option {name}{hint}"))
    of_recipe, of_network = ({name: options[name] for name in names[kind] if name in options} for kind in names)
    base = recipe or PRESETS[preset or "paper"]
    return replace(base, **of_recipe), replace(PRESET_MODELS.get(preset or "paper", ModelOptions()), **of_network)


def _is_share(dev: Any) -> bool:
    return isinstance(dev, Real) and not isinstance(dev, bool)


def _dev_of(train: LabeledPairs, dev: Any, seed: int) -> tuple[LabeledPairs, LabeledPairs]:
    """The pairs to train on, and the pairs that choose the best epoch."""
    if _is_share(dev):
        if not 0 < dev < 1:
            raise ValueError(f"dev must lie between 0 and 1 if it is a share of the pairs, got {dev}")
        return train.split(float(dev), seed)
    if isinstance(dev, tuple):
        if len(dev) != 2:
            raise TypeError(f"dev must be (pairs, labels), got a tuple of {len(dev)}")
        return train, labeled_pairs("dev", *dev, train.task)
    if dev is None or isinstance(dev, (str, list)):
        got = "None" if dev is None else type(dev).__name__
        raise TypeError(f"dev must be (pairs, labels), a table with labels, or a share such as 0.1, got {got}")
    return train, labeled_pairs("dev", dev, None, train.task)


def _new_model(
    train: PreparedCorpus,
    labels: list[str],
    options: ModelOptions,
    recipe: Recipe,
    vectors: str | os.PathLike[str] | None,
    tokenizer: str | Tokenizer,
) -> Classifier:
    """A network that knows the words of the training pairs."""
    vocabulary, matrix = Vocabulary.build(train.word_counts(labeled=True)), None
    torch.manual_seed(recipe.seed)
    if vectors is not None:
        how: dict[str, Any] = {"cache": default_cache(), "show_progress_bar": is_watched()}
        matrix = load_vectors(vectors, vocabulary, seed=recipe.seed, **how).matrix
    bias = float(train.scores().mean(dtype=float)) if len(labels) == 1 else 0.0
    net = new_network(options, len(vocabulary), len(labels), vectors=matrix, output_bias=bias)
    return Classifier(net, vocabulary, labels, tokenizer)


def _train(
    model: Classifier,
    corpora: tuple[PreparedCorpus, PreparedCorpus],
    recipe: Recipe,
    network: ModelOptions,
    output: str | os.PathLike[str] | None,
    vectors: str | os.PathLike[str] | None,
    on_epoch: Callable[[EpochMetrics], object] | None,
    is_new: bool,
) -> History:
    is_regression = model.task == "regression"
    train, dev = (
        corpus.encode_scores(model.vocabulary) if is_regression else corpus.encode(model.vocabulary, model.labels)
        for corpus in corpora
    )
    on_gpu = model.device.type == "cuda"
    learner = Classifier(model.net, model.vocabulary, model.labels, model.tokenizer)
    learner.training = {
        "recipe": recipe.as_dict(),
        **({"forget_bias": network.forget_bias} if is_new else {}),
        **({"files": {"vectors": os.fspath(vectors)}} if vectors is not None else {}),
        "device": torch.cuda.get_device_name(model.device) if on_gpu else model.device.type,
        "versions": {"esim_fast": version("esim_fast"), "torch": torch.__version__},
        **({} if model.training is None else {"before": model.training}),
    }
    with tempfile.TemporaryDirectory() if output is None else contextlib.nullcontext(output) as directory:
        trainer = Trainer(learner, train, dev, recipe, directory, on_epoch=on_epoch)
        epochs = trainer.run()
        weights = load_safetensors(trainer.directory.path / WEIGHTS)
    best = cast(EpochMetrics, trainer.best)
    model.net.load_state_dict(weights)
    model.net.eval()
    model.training = {**learner.training, "best_epoch": best.as_dict()}
    # All three belong to the old weights: the directory's measurements are of them.
    model.temperature, model.threshold, model.directory = 1.0, None, None
    return History(epochs, model, best)

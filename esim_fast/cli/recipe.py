"""The options of ``esim-fast train`` that say how to train."""

import argparse
from dataclasses import replace
from typing import Any

from ..config import PRECISIONS
from ..recipe import PRESET_MODELS, PRESETS, ModelOptions, Recipe
from .options import amount, best_by, class_weights, count, fraction, patience, rate, seed, share, size, steps

# The bundled sample is a small world, and has a small model and a short recipe.
_SAMPLE_RECIPE = Recipe(epochs=6, learning_rate=1e-3)
_SAMPLE_MODEL = ModelOptions(hidden_size=128, embedding_dim=100, dropout=0.2)

# Options by the field of Recipe or ModelOptions that they set: name, type, metavar and help.
_RECIPE = {
    "epochs": ("--epochs", count, "N", "passes over the training pairs, at most"),
    "patience": (
        "--patience",
        patience,
        "N",
        "epochs in a row without a better figure on dev (--best-by) that end a run; 0: none",
    ),
    "batch_size": ("--batch-size", count, "N", "pairs of a batch, of all processes together"),
    "max_tokens": ("--max-tokens", count, "N", "tokens of a batch, of both sides together, instead of pairs"),
    "accumulate": ("--accumulate", count, "N", "work through each batch in N parts, to save memory"),
    "learning_rate": ("--lr", rate, "X", "Adam's learning rate"),
    "warmup_steps": ("--warmup-steps", steps, "N", "steps over which the learning rate rises to that"),
    "lr_decay": ("--lr-decay", share, "X", "factor of --lr after an epoch without a better figure on dev (--best-by)"),
    "weight_decay": ("--weight-decay", amount, "X", "of all weights but word vectors (AdamW)"),
    "label_smoothing": ("--label-smoothing", fraction, "X", "share of each target that goes to all labels"),
    "ema_decay": (
        "--ema-decay",
        fraction,
        "X",
        "decay of a moving average of the weights, which is then evaluated and saved; 0: none",
    ),
    "max_grad_norm": ("--max-grad-norm", rate, "X", "largest norm of the gradient"),
    "seed": ("--seed", seed, "N", "of initial weights, order and dropout"),
    "class_weights": (
        "--class-weights",
        class_weights,
        "balanced|LABEL=W,…",
        "how much each label counts in training; balanced: rare ones more, so that all count alike",
    ),
    "best_by": (
        "--best-by",
        best_by,
        "FIGURE",
        "what chooses the best epoch on dev: accuracy (default), macro-f1, f1:LABEL, auc or loss; of scores, spearman "
        "(default), pearson or loss",
    ),
}
_MODEL = {
    "hidden_size": ("--hidden-size", size, "N", "of each direction of the LSTMs"),
    "embedding_dim": ("--embedding-dim", size, "N", "width of word vectors, without --vectors"),
    "dropout": ("--dropout", fraction, "X", "on embeddings, after the projection and in the classifier"),
    "embedding_dropout": ("--embedding-dropout", fraction, "X", "on embeddings, instead of --dropout"),
    "forget_bias": ("--forget-bias", amount, "X", "of the LSTMs' forget gates, to begin with"),
}
OPTION_NAMES = {field: option for field, (option, *_) in {**_RECIPE, **_MODEL}.items()} | {
    "precision": "--precision",
    "freeze_embedding": "--freeze-embedding",
    "tokenizer": "--tokenizer",
    "task": "--task",
    "limit": "--limit",
}


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Options that are not given are no attributes of what the parser returns."""
    how = command.add_argument_group("recipe and model")
    help_text = "the recipe where no option says otherwise; default: paper (sample: its own); batch-N: for GPUs"
    how.add_argument("--preset", choices=tuple(PRESETS), help=help_text)
    size_of_batch = how.add_mutually_exclusive_group()
    for defaults, sample, table in ((Recipe(), _SAMPLE_RECIPE, _RECIPE), (ModelOptions(), _SAMPLE_MODEL, _MODEL)):
        for field, (option, kind, metavar, text) in table.items():
            value, of_sample = getattr(defaults, field), getattr(sample, field)
            known = "" if value is None else f"; default: {value}"
            known += f" (sample: {of_sample})" if of_sample != value else ""
            where = size_of_batch if field in ("batch_size", "max_tokens") else how
            where.add_argument(
                option, dest=field, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text + known
            )
    help_text = "word vectors stay as they are"
    how.add_argument("--freeze-embedding", action="store_true", default=argparse.SUPPRESS, help=help_text)
    how.add_argument(
        "--precision", choices=tuple(PRECISIONS), default=argparse.SUPPRESS, help="default: fp32; the others: autocast"
    )


def recipe_of(options: argparse.Namespace, sample: bool) -> tuple[Recipe, ModelOptions]:
    """What the command line asks for; on the bundled ``sample``, with its own defaults."""
    recipe = PRESETS[options.preset or "paper"] if options.preset or not sample else _SAMPLE_RECIPE
    model = _SAMPLE_MODEL if sample else PRESET_MODELS.get(options.preset, ModelOptions())
    return _given(recipe, options), _given(model, options)


def preset_fields(preset: str) -> set[str]:
    """What a preset sets otherwise than the defaults do."""
    pairs: tuple[tuple[Any, Any], ...] = (
        (PRESETS[preset], Recipe()),
        (PRESET_MODELS.get(preset, ModelOptions()), ModelOptions()),
    )
    return {name for ours, usual in pairs for name, value in vars(ours).items() if value != getattr(usual, name)}


def _given(defaults: Any, options: argparse.Namespace) -> Any:
    given = {field: getattr(options, field) for field in vars(defaults) if hasattr(options, field)}
    return replace(defaults, **given)

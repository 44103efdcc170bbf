"""The options of ``esim-fast train`` for the recipe and the model."""

import argparse
from dataclasses import replace
from typing import Any

from ..config import PRECISIONS
from ..recipe import PRESET_MODELS, PRESETS, ModelOptions, Recipe
from .options import amount, best_by, class_weights, count, fraction, patience, rate, seed, share, size, steps

# The bundled sample is small, so it has a small model and a short recipe.
_SAMPLE_RECIPE = Recipe(epochs=6, learning_rate=1e-3)
_SAMPLE_MODEL = ModelOptions(hidden_size=128, embedding_dim=100, dropout=0.2)

# Name, type, metavar and help of each option, by the field of Recipe or ModelOptions that it sets.
_RECIPE = {
    "epochs": ("--epochs", count, "N", "maximum number of passes over the training pairs"),
    "patience": (
        "--patience",
        patience,
        "N",
        "stop after N epochs in a row without a better --best-by figure on dev; 0: never",
    ),
    "batch_size": ("--batch-size", count, "N", "pairs per batch, over all processes"),
    "max_tokens": ("--max-tokens", count, "N", "tokens per batch, premises and hypotheses together, instead of pairs"),
    "accumulate": ("--accumulate", count, "N", "process each batch in N parts, to save memory"),
    "learning_rate": ("--lr", rate, "X", "Adam's learning rate"),
    "warmup_steps": ("--warmup-steps", steps, "N", "steps over which the learning rate rises to --lr"),
    "lr_decay": ("--lr-decay", share, "X", "factor for --lr after each epoch without a better --best-by figure on dev"),
    "weight_decay": ("--weight-decay", amount, "X", "weight decay (AdamW) of all weights except word vectors"),
    "label_smoothing": ("--label-smoothing", fraction, "X", "share of each target that is spread over all labels"),
    "ema_decay": (
        "--ema-decay",
        fraction,
        "X",
        "decay of a moving average of the weights, which is evaluated and saved in their place; 0: none",
    ),
    "max_grad_norm": ("--max-grad-norm", rate, "X", "clip the gradient to this norm"),
    "seed": ("--seed", seed, "N", "seed of initial weights, order and dropout"),
    "class_weights": (
        "--class-weights",
        class_weights,
        "balanced|LABEL=W,…",
        "weight of each label in the loss; balanced: rare labels weigh more, so that all labels count the same",
    ),
    "best_by": (
        "--best-by",
        best_by,
        "METRIC",
        "dev figure that chooses the best epoch: accuracy (default), macro-f1, f1:LABEL, auc or loss; for scores, "
        "spearman (default), pearson or loss",
    ),
}
_MODEL = {
    "hidden_size": ("--hidden-size", size, "N", "hidden size of each direction of the LSTMs"),
    "embedding_dim": ("--embedding-dim", size, "N", "dimension of word vectors, without --vectors"),
    "dropout": ("--dropout", fraction, "X", "dropout on embeddings, after the projection and in the classifier"),
    "embedding_dropout": ("--embedding-dropout", fraction, "X", "dropout on embeddings, instead of --dropout"),
    "forget_bias": ("--forget-bias", amount, "X", "initial bias of the LSTMs' forget gates"),
}
OPTION_NAMES = {field: option for field, (option, *_) in {**_RECIPE, **_MODEL}.items()} | {
    "precision": "--precision",
    "cuda_graphs": "--cuda-graphs",
    "freeze_embedding": "--freeze-embedding",
    "tokenizer": "--tokenizer",
    "task": "--task",
    "limit": "--limit",
}


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Add the options; those that are not given leave no attribute in what the parser returns."""
    how = command.add_argument_group("recipe and model")
    help_text = "recipe that other options override; batch-N: for GPUs (default: paper; sample: its own)"
    how.add_argument("--preset", choices=tuple(PRESETS), help=help_text)
    size_of_batch = how.add_mutually_exclusive_group()
    for defaults, sample, table in ((Recipe(), _SAMPLE_RECIPE, _RECIPE), (ModelOptions(), _SAMPLE_MODEL, _MODEL)):
        for field, (option, kind, metavar, text) in table.items():
            value, of_sample = getattr(defaults, field), getattr(sample, field)
            values = [] if value is None else [f"default: {value}"]
            values += [f"sample: {of_sample}"] if of_sample != value else []
            known = f" ({', '.join(values)})" if values else ""
            where = size_of_batch if field in ("batch_size", "max_tokens") else how
            where.add_argument(
                option, dest=field, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text + known
            )
    help_text = "do not train word vectors"
    how.add_argument("--freeze-embedding", action="store_true", default=argparse.SUPPRESS, help=help_text)
    how.add_argument(
        "--precision", choices=tuple(PRECISIONS), default=argparse.SUPPRESS, help="bf16, fp16: autocast (default: fp32)"
    )


def recipe_of(options: argparse.Namespace, sample: bool) -> tuple[Recipe, ModelOptions]:
    """Return what the command line asks for; on the bundled ``sample``, unset options have defaults of its own."""
    recipe = PRESETS[options.preset or "paper"] if options.preset or not sample else _SAMPLE_RECIPE
    model = _SAMPLE_MODEL if sample else PRESET_MODELS.get(options.preset, ModelOptions())
    return _given(recipe, options), _given(model, options)


def preset_fields(preset: str) -> set[str]:
    """Return the fields in which a preset differs from the defaults."""
    pairs: tuple[tuple[Any, Any], ...] = (
        (PRESETS[preset], Recipe()),
        (PRESET_MODELS.get(preset, ModelOptions()), ModelOptions()),
    )
    return {name for ours, usual in pairs for name, value in vars(ours).items() if value != getattr(usual, name)}


def _given(defaults: Any, options: argparse.Namespace) -> Any:
    given = {field: getattr(options, field) for field in vars(defaults) if hasattr(options, field)}
    return replace(defaults, **given)

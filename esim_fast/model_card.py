"""Model cards for the Hugging Face Hub, in Markdown."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from .classifier import Classifier
from .errors import one_line
from .training.figures import figure_of
from .training.progress import Progress

_USE = """## Use

```python
from esim_fast import Classifier

model = Classifier.from_pretrained({arguments})
print(model.predict(("A man sleeps.", "A man is awake.")))
```"""


def model_card(model: Classifier, name: str) -> str:
    """Return a model's card, with the Hub's metadata at the top.

    Args:
        model: the model.
        name: its name on the Hub.
    """
    import huggingface_hub  # optional, and slow to import

    is_regression = model.task == "regression"
    about = huggingface_hub.ModelCardData(
        library_name="esim_fast",
        pipeline_tag="text-classification",
        tags=["esim", "sentence-pairs", "sentence-similarity" if is_regression else "natural-language-inference"],
        metrics=["pearsonr", "spearmanr"] if is_regression else ["accuracy"],
    )
    gives = "a score" if is_regression else f"one of {len(model.labels)} labels"
    arguments = f'"{name}"'
    if not isinstance(model.tokenizer, str) or ":" in model.tokenizer:
        arguments += ', tokenizer="module:function"'  # the author's own, which the reader has to supply
    parts = [
        f"---\n{about.to_yaml()}\n---",
        f"# {name}",
        f"An [ESIM](https://aclanthology.org/P17-1152) model for esim_fast. It predicts {gives} for a pair of "
        "sentences.",
        _USE.format(arguments=arguments),
    ]
    if not is_regression:
        parts.append("## Labels\n\n" + "\n".join(f"- {_code(label)}" for label in model.labels))
    training = without_folders(model.training) or {}
    files, recipe = ({**part} if isinstance(part := training.get(key), dict) else {} for key in ("files", "recipe"))
    for title, rows in (
        ("Figures", {**_on_dev(model, training), **_on_test(model)}),
        ("Training", {**files, **recipe}),
        ("Size", _sizes(model)),
    ):
        if rows := {key: value for key, value in rows.items() if value not in (None, [])}:
            lines = (f"| {key.replace('_', ' ')} | {_code(value, in_table=True)} |" for key, value in rows.items())
            parts.append(f"## {title}\n\n| | |\n| --- | --- |\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def without_folders(training: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return training metadata with file names instead of paths, because folders are private."""

    def plain(value: Any) -> Any:
        if isinstance(value, str) and not value.startswith("hub:"):
            return os.path.basename(value)
        return [plain(part) for part in value] if isinstance(value, list) else value

    if not isinstance(training, dict):
        return None
    found = {**training}
    if isinstance(files := found.get("files"), dict):
        found["files"] = {name: plain(value) for name, value in files.items()}
    if "before" in found:  # the earlier run, if the model was trained further
        found["before"] = without_folders(found["before"])
    return found


def _on_dev(model: Classifier, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dev metrics of the best epoch, if they are known."""
    epochs = [training.get("best_epoch")]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # the files may be edited
        if epochs == [None] and model.directory is not None:
            lines = (model.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            epochs = [json.loads(line) for line in lines]
        missing = {"train_accuracy": None, "dev_accuracy": None}  # regression has none
        history = [{**missing, **epoch} for epoch in epochs if epoch is not None]
        best = Progress.from_dict({"history": history}).best(figure_of(training["recipe"].get("best_by"), model.labels))
        if best is not None:
            figures = {name: f"{value:.4f}" for name, value in best.as_dict().items() if name.startswith("dev_")}
            return {"best epoch": best.epoch, **figures}
    return {}


def _on_test(model: Classifier) -> dict[str, Any]:
    """Return the metrics that ``esim-fast train --test`` saved next to the model."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        if model.directory is not None:
            found = json.loads((model.directory / "test.json").read_text(encoding="utf-8"))
            return {f"test_{name}": f"{value:.4f}" for name, value in found.items() if isinstance(value, float)}
    return {}


def _sizes(model: Classifier) -> dict[str, Any]:
    config = model.net.config
    return {
        "parameters": f"{sum(weights.numel() for weights in model.net.parameters()):,}",
        "words": f"{len(model.vocabulary):,}, as vectors of {config.embedding_dim} numbers",
        "hidden size": config.hidden_size,
        "tokenizer": model.tokenizer if isinstance(model.tokenizer, str) else "a function",
    }


def _code(value: Any, in_table: bool = False) -> str:
    """Format any value as inline code in Markdown."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = one_line(text).replace("`", "'")
    if in_table:
        text = text.replace("|", "\\|")
    return f"`{text}`"

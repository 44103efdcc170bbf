"""Push models to the Hugging Face Hub with a model card. Needs the extra ``esim_fast[hub]``."""

import copy
import tempfile
from importlib.metadata import version
from pathlib import Path

from .classifier import Classifier
from .errors import DataError, one_line
from .hub_models import is_hub_name, telling
from .model_card import model_card, without_folders

_CARD = "README.md"


def push(
    model: Classifier,
    name: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Push a model; see ``esim_fast.Classifier.push_to_hub``."""
    if not isinstance(name, str) or not is_hub_name(name):
        raise ValueError(one_line(f"name must have the form user/name, got {name!r}"))
    with telling(name), tempfile.TemporaryDirectory() as folder:
        import huggingface_hub  # optional, and slow to import

        by_us = f"esim_fast {version('esim_fast')}"
        hub = huggingface_hub.HfApi(token=token, library_name="esim_fast", library_version=version("esim_fast"))
        hub.create_repo(name, private=private, exist_ok=True)
        if private is not None and bool(hub.model_info(name).private) != private:
            now = "public" if private else "private"
            raise DataError(f"{name}: the model exists and is {now}; change that in its settings on the Hub first")
        shown = copy.copy(model)
        shown.training = without_folders(model.training)
        shown.save_pretrained(folder)
        if not hub.file_exists(name, _CARD):  # keep a card that may have been edited
            Path(folder, _CARD).write_text(model_card(shown, name), encoding="utf-8")
        message = commit_message or f"Model of {by_us}"
        commit = hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        return str(commit.commit_url)

"""Models on the Hugging Face hub: fetched by their names, and pushed with a card.

Needs the extra ``esim_fast[hub]``. Nothing that is fetched is executed.
"""

import contextlib
import copy
import re
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from .classifier import CONFIG, LABELS, VOCABULARY, WEIGHTS, Classifier
from .errors import DataError, first_line, kind_and_reason, one_line
from .model_card import model_card, without_folders

_FILES = [CONFIG, LABELS, VOCABULARY, WEIGHTS]
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_CARD = "README.md"
_TOKEN = "give a token (token=, HF_TOKEN or `hf auth login`)"
_UNREACHABLE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "Timeout"}


def is_hub_name(name: str) -> bool:
    """Whether this looks like ``user/name``."""
    return _NAME.fullmatch(name) is not None


def fetch(name: str, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a model of the hub, in the cache of its library; only what is not there yet is fetched.

    Raises:
        DataError: the library is not installed, there is no such model, or the hub cannot be reached.
    """
    with _telling(f"{name}: no such model directory, and from the hub"):
        import huggingface_hub  # optional, and slow to import

        by_us = {"library_name": "esim_fast", "library_version": version("esim_fast")}
        folder = huggingface_hub.snapshot_download(name, revision=revision, token=token, allow_patterns=_FILES, **by_us)
    for file in _FILES:
        if not (Path(folder) / file).is_file():
            raise DataError(f"{name}: what the hub has is no model of esim_fast, {file} is missing")
    return Path(folder)


def push(
    model: Classifier,
    name: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """As :meth:`esim_fast.Classifier.push_to_hub` says."""
    if not isinstance(name, str) or not is_hub_name(name):
        raise ValueError(one_line(f"expected a name such as user/name, got {name!r}"))
    with _telling(name), tempfile.TemporaryDirectory() as folder:
        import huggingface_hub  # optional, and slow to import

        by_us = f"esim_fast {version('esim_fast')}"
        hub = huggingface_hub.HfApi(token=token, library_name="esim_fast", library_version=version("esim_fast"))
        hub.create_repo(name, private=private, exist_ok=True)
        if private is not None and bool(hub.model_info(name).private) != private:
            now = "public" if private else "private"
            raise DataError(f"{name}: it is there already, and {now}: change that in its settings on the hub first")
        shown = copy.copy(model)
        shown.training = without_folders(model.training)
        shown.save_pretrained(folder)
        if not hub.file_exists(name, _CARD):  # somebody may have written more than we know
            Path(folder, _CARD).write_text(model_card(shown, name), encoding="utf-8")
        message = commit_message or f"Model of {by_us}"
        commit = hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        return str(commit.commit_url)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turns whatever the library raises into a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f'{what}: needs Hugging Face\'s library: pip install "esim_fast[hub]"') from error
    except Exception as error:  # whatever its network and file layers do
        raise DataError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}  # whichever library for HTTP it has
    if "GatedRepoError" in kinds:
        return f"its owner has to let you in first; then {_TOKEN}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no such model, or it is private: then {_TOKEN}"
    if "RevisionNotFoundError" in kinds:
        return "there is no such revision"
    if kinds & _UNREACHABLE:
        return f"the hub cannot be reached, and no copy is here: {first_line(error)}"
    return kind_and_reason(error)

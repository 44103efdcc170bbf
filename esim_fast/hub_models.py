"""Models on the Hugging Face hub, fetched by their names. Needs the extra ``esim_fast[hub]``."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from .errors import DataError, kind_and_reason

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_TOKEN = "give a token (token=, HF_TOKEN or `hf auth login`)"
_UNREACHABLE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "TransportError", "Timeout"}


def is_hub_name(name: str) -> bool:
    """Whether this looks like ``user/name``."""
    return _NAME.fullmatch(name) is not None


def fetch(name: str, files: Sequence[str], revision: str | None = None, token: str | bool | None = None) -> Path:
    """The folder of a model of the hub, in the cache of its library; only what is not there yet is fetched.

    Raises:
        DataError: the library is not installed, there is no such model, or the hub cannot be reached.
    """
    with telling(f"{name}: not a directory here, and not found on the Hugging Face hub"):
        import huggingface_hub  # optional, and slow to import

        by_us = {"library_name": "esim_fast", "library_version": version("esim_fast")}
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, token=token, allow_patterns=list(files), **by_us
        )
    for file in files:
        if not (Path(folder) / file).is_file():
            raise DataError(f"{name}: what the hub has is no model of esim_fast, {file} is missing")
    return Path(folder)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
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
        return "the hub cannot be reached"
    return kind_and_reason(error)

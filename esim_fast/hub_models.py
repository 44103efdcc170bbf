"""Download models from the Hugging Face Hub. Needs the extra ``esim_fast[hub]``."""

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
    """Whether a name has the form ``user/name``."""
    return _NAME.fullmatch(name) is not None


def fetch(name: str, files: Sequence[str], revision: str | None = None, token: str | bool | None = None) -> Path:
    """Return the cached folder of a Hub model, downloading the files that are not cached yet.

    Raises:
        DataError: ``huggingface_hub`` is not installed, there is no such model, or the Hub cannot be reached.
    """
    with telling(f"{name}: not a directory here, and not found on the Hugging Face Hub"):
        import huggingface_hub  # optional, and slow to import

        by_us = {"library_name": "esim_fast", "library_version": version("esim_fast")}
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, token=token, allow_patterns=list(files), **by_us
        )
    for file in files:
        if not (Path(folder) / file).is_file():
            raise DataError(f"{name}: not an esim_fast model; {file} is missing on the Hub")
    return Path(folder)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn any error of ``huggingface_hub`` into a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f'{what}: needs huggingface_hub; pip install "esim_fast[hub]"') from error
    except Exception as error:  # its network and file layers raise many types
        raise DataError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name: its HTTP library depends on its version
    if "GatedRepoError" in kinds:
        return f"the model is gated: request access from its owner, then {_TOKEN}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no such model, or it is private and you must {_TOKEN}"
    if "RevisionNotFoundError" in kinds:
        return "there is no such revision"
    if kinds & _UNREACHABLE:
        return "the Hub cannot be reached"
    return kind_and_reason(error)

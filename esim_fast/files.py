"""Write files atomically, and read files from untrusted sources."""

import contextlib
import json
import os
import pickle
import pickletools
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from .errors import DataError, first_line, naming, one_line
from .ops.checks import FLOATING
from .state_dicts import NAMING_SCHEMES

_DEEPEST = 100  # levels of nested lists and objects


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: readers of ``path`` see either the old content or all of the new.

    This also holds if the process is killed or the machine crashes, because the content reaches the disk before its
    name.
    """
    replace_files({path: write})


def replace_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write several files that belong together, each as in ``replace_file``.

    All are complete before the first is replaced. If the process is killed in between, the later ones are missing, so
    old and new files are never mixed.
    """
    partials = {path: path.with_name(f"{path.name}.partial") for path in writers}
    try:
        for path, partial in partials.items():
            with _naming(path, partial):
                partial.unlink(missing_ok=True)  # writing through a leftover link would overwrite its target
                writers[path](partial)
                with open(partial, "rb+") as file:
                    os.fsync(file.fileno())
        for path in list(writers)[1:]:
            path.unlink(missing_ok=True)
        for path, partial in partials.items():
            with _naming(path, partial):
                os.replace(partial, path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path, partial: Path) -> Iterator[None]:
    """Make an OSError name the target file instead of its temporary name, or instead of no file at all."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Parse a text as JSON that can be written back unchanged.

    Raises:
        ValueError: it is not JSON, an object repeats a key, the nesting is too deep, or a string is not valid Unicode.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object_of)
    except RecursionError as error:
        raise ValueError(f"lists and objects are nested more than {_DEEPEST} levels deep") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise ValueError(f"lists and objects are nested more than {_DEEPEST} levels deep")
    if "\\u" in text:  # lone surrogates cannot be encoded
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object for the JSON decoder; its keys must be distinct."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is repeated")
    return found


def _within(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raise DataError for a path that exists but is not a file: reading from a pipe would block."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{os.fspath(path)}: expected a file, got something else")


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a safetensors file; raise DataError if it cannot be read or has another format."""
    try:
        with naming(path):
            return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file: {first_line(error)}") from error


def load_saved(file: IO[bytes], *, leave_out: bool = False) -> Any:
    """Load tensors and plain values that ``torch.save`` wrote. Executes no code and prints nothing.

    Args:
        file: the opened file.
        leave_out: replace NumPy values and other objects that are common in checkpoints with empty placeholders. If
            False, they raise UnpicklingError like any other object.

    Raises:
        ValueError: the archive's parts add up to more than the file, because they are compressed or overlap.
        UnpicklingError: it holds other Python objects, or a bytearray, which would allocate whatever size it declares.
        Exception: anything that torch raises for a damaged file.
    """
    is_archive = file.read(4) == b"PK\x03\x04"
    size = file.seek(0, os.SEEK_END)
    if is_archive:  # torch stores its parts uncompressed
        with zipfile.ZipFile(file) as archive:
            if sum(part.file_size for part in archive.infolist()) > size:
                raise ValueError(f"expected parts of {size} bytes at most, got more")
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    _check_pickle(archive.open(name))
    else:  # the old format: three small pickles, then the one with the objects
        file.seek(0)
        for _ in range(4):
            _check_pickle(file)
    file.seek(0)
    with warnings.catch_warnings(), _leaving_out() if leave_out else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


class _LeftOut:
    """An empty placeholder. The real class's code never runs, because it could allocate whatever a file declares."""

    def __new__(cls, *_: Any) -> "_LeftOut":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _empty(*_: Any) -> dict[Any, Any]:
    """Stand in for ``defaultdict``; the pickle adds its entries afterwards."""
    return {}


# Common in checkpoints besides tensors: scores, options, dates and paths.
_OBJECTS = ["argparse.Namespace", "builtins.float", "builtins.int", "builtins.list", "numpy.dtype", "numpy.ndarray"]
_OBJECTS += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_OBJECTS += [f"datetime.{name}" for name in ("date", "datetime", "timedelta")]
_OBJECTS += [f"{module}.{name}Path" for module in ("pathlib", "pathlib._local") for name in ("Posix", "Windows")]
_SUBSTITUTES = [("collections.defaultdict", _empty), *((name, _LeftOut) for name in _OBJECTS)]
_lock = threading.Lock()


@contextlib.contextmanager
def _leaving_out() -> Iterator[None]:
    """Have torch load substitutes for ``_OBJECTS``. Locked, because torch's allowlist is global."""
    with _lock, torch.serialization.safe_globals([(make, name) for name, make in _SUBSTITUTES]):
        yield


def _check_pickle(stream: IO[bytes]) -> None:
    """Reject bytearrays, the only allowed type that can take more memory than the file has bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asks = (
            opcode.name == "GLOBAL" and str(argument).endswith(" bytearray")
            for opcode, argument, _ in pickletools.genops(stream)
        )
        try:
            found = any(asks)
        except ValueError:  # damaged: torch will raise the proper error
            return
    if found:
        raise pickle.UnpicklingError("expected tensors and plain values, got a bytearray")


def check_entries(entries: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str = "notebook") -> None:
    """Check that entries, under our names, match the expected ones in name, shape and dtype, and are finite.

    Args:
        entries: the entries to check.
        expected: entries with the expected names and shapes.
        source: the naming scheme used in messages, a key of ``esim_fast.state_dicts.NAMING_SCHEMES``.

    Raises:
        ValueError: an entry is missing, unexpected, has the wrong shape, or does not hold finite floating-point
            numbers.
    """
    scheme = NAMING_SCHEMES[source]
    for name in sorted(expected.keys() | entries.keys()):
        theirs = one_line(scheme.theirs(name))
        if name not in expected:
            raise ValueError(f"{theirs} is not a parameter of ESIM")
        if name not in entries:
            raise ValueError(f"{theirs} is missing")
        found, shape = entries[name], list(expected[name].shape)
        if list(found.shape) != shape:
            raise ValueError(f"{theirs} has shape {list(found.shape)}, expected {shape}")
        if found.dtype not in FLOATING or found.layout != torch.strided or found.is_meta or not found.isfinite().all():
            raise ValueError(f"{theirs} must hold finite floating-point numbers")

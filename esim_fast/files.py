"""Files that are complete or not there, and reading what others have written."""

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

_DEEPEST = 100  # lists and objects within one another


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under another name first: whoever reads ``path`` finds the old content or all of the new.

    That holds when the process is killed and when the machine stops: content reaches the disk before its name does.
    """
    replace_files({path: write})


def replace_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Writes files that belong together as :func:`replace_file` does one: all are complete before one is replaced.

    When the process is killed between them, the later ones are not there, rather than old beside new.
    """
    partials = {path: path.with_name(f"{path.name}.partial") for path in writers}
    try:
        for path, partial in partials.items():
            with _naming(path, partial):
                partial.unlink(missing_ok=True)  # it may be a link, to a file of somebody's
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
    """Has an OSError name the file that was meant: nobody knows the other name, and a full disk does not say whose."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_json(path: Path, value: object) -> None:
    """Writes a file as :func:`replace_file` does, for people to read as well."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def parse_json(text: str) -> Any:
    """What a text says that is JSON, and that can be written again.

    Raises:
        ValueError: it is no JSON, an object has a key twice, lists and objects are nested without end, or a string is
            no valid Unicode.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object_of)
    except RecursionError as error:
        raise ValueError(f"more than {_DEEPEST} lists and objects within one another") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise ValueError(f"more than {_DEEPEST} lists and objects within one another")
    if "\\u" in text:  # half a surrogate pair
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook for JSON's decoder: an object, whose keys must be distinct."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return found


def _within(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raises DataError for what is there and no file: a pipe in a folder of somebody's would be waited for."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{os.fspath(path)}: expected a file, got something else")


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of safetensors; DataError if it cannot be read or is none."""
    try:
        with naming(path):
            return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file: {first_line(error)}") from error


def load_saved(file: IO[bytes], *, leave_out: bool = False) -> Any:
    """What ``torch.save`` wrote to a file: tensors and plain values. Nothing is executed, or said on stderr.

    Args:
        leave_out: numpy's numbers and arrays, and other objects that people keep beside the weights, become objects
            without content. Without it they are refused like all others.

    Raises:
        ValueError: its parts are larger than the file, compressed or one in another.
        UnpicklingError: it holds objects of Python, or a bytearray, which would be as large as it says.
        Exception: whatever torch raises of a damaged file.
    """
    is_archive = file.read(4) == b"PK\x03\x04"
    size = file.seek(0, os.SEEK_END)
    if is_archive:  # of parts as they are: torch never compresses them
        with zipfile.ZipFile(file) as archive:
            if sum(part.file_size for part in archive.infolist()) > size:
                raise ValueError(f"expected parts of {size} bytes at most, got more")
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    _check_pickle(archive.open(name))
    else:  # three small pickles and the one that matters
        file.seek(0)
        for _ in range(4):
            _check_pickle(file)
    file.seek(0)
    with warnings.catch_warnings(), _leaving_out() if leave_out else contextlib.nullcontext():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


class _LeftOut:
    """An object without its content. No code of its library runs: it could take as much memory as a file says."""

    def __new__(cls, *_: Any) -> "_LeftOut":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _empty(*_: Any) -> dict[Any, Any]:
    """In place of a ``defaultdict``, whose entries come after it."""
    return {}


# What people keep in checkpoints: best scores and curves, options, when and where.
_OBJECTS = ["argparse.Namespace", "builtins.float", "builtins.int", "builtins.list", "numpy.dtype", "numpy.ndarray"]
_OBJECTS += [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_OBJECTS += [f"datetime.{name}" for name in ("date", "datetime", "timedelta")]
_OBJECTS += [f"{module}.{name}Path" for module in ("pathlib", "pathlib._local") for name in ("Posix", "Windows")]
_SUBSTITUTES = [("collections.defaultdict", _empty), *((name, _LeftOut) for name in _OBJECTS)]
_lock = threading.Lock()


@contextlib.contextmanager
def _leaving_out() -> Iterator[None]:
    """Has torch make substitutes of :data:`_OBJECTS`, in one thread at a time: what it allows, it allows everywhere."""
    with _lock, torch.serialization.safe_globals([(make, name) for name, make in _SUBSTITUTES]):
        yield


def _check_pickle(stream: IO[bytes]) -> None:
    """Of what torch makes without executing anything, a bytearray alone takes memory that no file has to hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asks = (
            opcode.name == "GLOBAL" and str(argument).endswith(" bytearray")
            for opcode, argument, _ in pickletools.genops(stream)
        )
        try:
            found = any(asks)
        except ValueError:  # it is damaged: torch stops there, too, and says so
            return
    if found:
        raise pickle.UnpicklingError("expected tensors and plain values, got a bytearray")


def check_entries(entries: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str = "notebook") -> None:
    """Whether entries in our names are those expected, in shape and finite.

    Args:
        source: in whose names mistakes are reported, a key of :data:`esim_fast.state_dicts.NAMING_SCHEMES`.

    Raises:
        ValueError: one is missing, unexpected, misshapen, or holds something else than finite numbers.
    """
    scheme = NAMING_SCHEMES[source]
    for name in sorted(expected.keys() | entries.keys()):
        theirs = one_line(scheme.theirs(name))
        if name not in expected:
            raise ValueError(f"{theirs} is no part of an ESIM")
        if name not in entries:
            raise ValueError(f"{theirs} is missing")
        found, shape = entries[name], list(expected[name].shape)
        if list(found.shape) != shape:
            raise ValueError(f"{theirs} has shape {list(found.shape)}, expected {shape}")
        if found.dtype not in FLOATING or found.layout != torch.strided or found.is_meta or not found.isfinite().all():
            raise ValueError(f"{theirs} holds something else than finite floating-point numbers")

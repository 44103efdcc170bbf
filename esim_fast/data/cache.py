"""Results that took long to make, kept in files for the next start.

A file is memory-mapped safetensors: nothing in it is executed, and its sizes are checked before memory is taken. It is
used if it was made from the same content with the same options and every byte is as it was written; otherwise it is
made again.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import DataError, first_line, naming
from ..files import replace_file
from .compression import compression_of

Arrays = dict[str, Tensor]

_LARGE = 512 * 2**20  # bytes of a file that take too long to read at every start
_log = logging.getLogger(__name__)


def default_cache() -> Path | None:
    """Where results are kept unless someone says otherwise: ``ESIM_FAST_CACHE``, or the user's folder for caches."""
    if os.environ.get("ESIM_FAST_CACHE"):
        return Path(os.environ["ESIM_FAST_CACHE"])
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "esim_fast") if os.path.isabs(caches) else None  # a user without a home


def text_array(text: str) -> Tensor:
    """A text, as an array among others."""
    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


def text_of(array: Tensor) -> str:
    """The text of such an array; ValueError if it is none."""
    return array.numpy().tobytes().decode()


def kept(
    cache: str | os.PathLike[str] | None,
    source: str,
    options: dict[str, str],
    make: Callable[[], Arrays],
    *,
    content: str | None = None,
    fits: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """What ``make()`` returns for the file ``source`` under these options, kept in the folder ``cache``.

    One process makes it and others that want the same wait for it. There is one file for each source and set of
    options, replaced when the source's content has changed. Where nothing can be written, that is logged and the result
    is returned all the same; with None as ``cache`` nothing is kept.

    Args:
        content: what tells one content of the source from another; by default it is a file and looked at.
        fits: whether arrays are such as ``make()`` returns: a checksum tells of damage, not of somebody else's writing.

    Raises:
        DataError: the source cannot be read.
        Exception: whatever ``make`` raises; nothing is kept then.
    """
    if cache is None or (content is None and not os.path.isfile(source)):  # a pipe can be read only once
        return make()
    options = {**options, "compression": compression_of(source)}  # that, too, is said by the name alone
    place = json.dumps({"source": os.path.realpath(source), **options}, sort_keys=True)
    stem = re.sub(r"\W", "-", Path(source).name.partition(".")[0], flags=re.ASCII)[:64]
    path = Path(cache) / f"{stem}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.safetensors"
    key = json.dumps({"content": content or _content(source), **options}, sort_keys=True)
    found = _read(path, key, fits)
    if found is not None:
        return found
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            _log.warning("%s: waiting for another process that prepares it", source)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where the file system knows no locks
        _log.warning("%s: cannot be written, so the next start will take as long: %s", cache, error)
        return make()
    try:
        found = _read(path, key, fits)  # made by another process meanwhile
        return _make(path, key, make, None if content else source, fits) if found is None else found
    finally:
        lock.release()


def _make(
    path: Path, key: str, make: Callable[[], Arrays], source: str | None, fits: Callable[[Arrays], bool]
) -> Arrays:
    arrays = make()
    if source is not None and _content(source) != json.loads(key)["content"]:
        raise DataError(f"{source}: it was changed while it was read")
    metadata = {"key": key, "checksum": _checksum(key, arrays)}
    contiguous = {name: array.contiguous() for name, array in arrays.items()}
    try:
        replace_file(path, lambda partial: safetensors.torch.save_file(contiguous, partial, metadata))
    except (OSError, safetensors.SafetensorError) as error:
        _log.warning("%s: cannot be written, so the next start will take as long: %s", path, first_line(error))
        return arrays
    return _read(path, key, fits) or arrays  # from the file, their memory can be taken back when it is short


def _content(source: str) -> str:
    """What tells one content of a file from another.

    A small file is known by its bytes. A large one is known by its place on the disk, its size and when it changed:
    reading it takes longer than a clock's tick, so no change can hide between two looks at it.
    """
    with naming(source), open(source, "rb") as file:
        about = os.fstat(file.fileno())
        if about.st_size >= _LARGE:
            return f"inode {about.st_ino}, {about.st_size} bytes, {about.st_mtime_ns}, {about.st_ctime_ns}"
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return f"sha256 {digest.hexdigest()}"


def _read(path: Path, key: str, fits: Callable[[Arrays], bool]) -> Arrays | None:
    """The arrays of a file, if it is whole and has this key."""
    if not path.is_file():  # nobody waits for a pipe
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError):
        return None
    return arrays if fits(arrays) and metadata.get("checksum") == _checksum(key, arrays) else None


def _checksum(key: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array.numpy()).data)
    return digest.hexdigest()

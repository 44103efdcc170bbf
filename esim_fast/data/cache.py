"""Cache slow results in files.

A cache file is memory-mapped safetensors, so that nothing in it is executed and its sizes are checked before memory is
allocated. It is used only if it was made from the same content with the same options and its checksum matches.
Otherwise the result is made again.
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

_LARGE = 512 * 2**20  # bytes in a file that is too slow to hash at every start
_log = logging.getLogger(__name__)


def default_cache() -> Path | None:
    """Return the default cache folder.

    Returns:
        ``ESIM_FAST_CACHE`` if that variable is set, otherwise ``esim_fast`` in the user's cache folder; None
        for a user without a home.
    """
    if os.environ.get("ESIM_FAST_CACHE"):
        return Path(os.environ["ESIM_FAST_CACHE"])
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "esim_fast") if os.path.isabs(caches) else None  # expanduser found no home


def text_array(text: str) -> Tensor:
    """Store a text as an array of bytes."""
    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


def text_of(array: Tensor) -> str:
    """Return the text in such an array; raise ValueError if it is not UTF-8."""
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
    """Return ``make()`` for the file ``source`` and these options, from the cache if possible.

    If several processes want the same result, one makes it and the others wait. Each source and set of options has one
    file, which is replaced when the source's content has changed. If the file cannot be written, a warning is logged
    and the result is returned all the same.

    Args:
        cache: the folder of cache files; None saves nothing.
        source: the name of the source.
        options: everything else that the result depends on.
        make: makes the result.
        content: a string that changes with the source's content; None: work it out from the file.
        fits: checks that cached arrays are valid; the checksum detects damage, but not a file that someone else wrote.

    Raises:
        DataError: the source cannot be read, or changed while it was read.
        Exception: whatever ``make`` raises; nothing is saved then.
    """
    if cache is None or (content is None and not os.path.isfile(source)):  # a pipe can be read only once
        return make()
    options = {**options, "compression": compression_of(source)}  # which only the source's name tells
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
            _log.warning("%s: waiting for another process that is preparing it", source)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter if the file system does not support locks
        _log.warning("%s: cannot write the cache, so the next start will take as long: %s", cache, error)
        return make()
    try:
        found = _read(path, key, fits)  # another process may have made it meanwhile
        return _make(path, key, make, None if content else source, fits) if found is None else found
    finally:
        lock.release()


def _make(
    path: Path, key: str, make: Callable[[], Arrays], source: str | None, fits: Callable[[Arrays], bool]
) -> Arrays:
    arrays = make()
    if source is not None and _content(source) != json.loads(key)["content"]:
        raise DataError(f"{source}: the file changed while it was read")
    metadata = {"key": key, "checksum": _checksum(key, arrays)}
    contiguous = {name: array.contiguous() for name, array in arrays.items()}
    try:
        replace_file(path, lambda partial: safetensors.torch.save_file(contiguous, partial, metadata))
    except (OSError, safetensors.SafetensorError) as error:
        _log.warning("%s: cannot write the cache, so the next start will take as long: %s", path, first_line(error))
        return arrays
    return _read(path, key, fits) or arrays  # the system can reclaim memory-mapped pages when memory is short


def _content(source: str) -> str:
    """Return a string that changes with the content of a file.

    A small file is identified by a hash. A large one is identified by its inode, size and times of change. Reading it
    takes longer than a tick of the file system's clock, so a change between two looks at these always shows.
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
    """Return the arrays of a file, or None unless it is intact and has this key."""
    if not path.is_file():  # opening a pipe would block
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

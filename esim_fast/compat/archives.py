"""Read a model's files, and nothing else, from AllenNLP's archives (``model.tar.gz``).

Python's ``tarfile`` is avoided because it allocates as much memory as a header declares, follows links, and writes
wherever a name leads.
"""

import contextlib
import gzip
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import DataError, first_line, naming

WEIGHTS = ("best.th", "weights.th")  # in order of preference
TOKENS, LABELS = "vocabulary/tokens.txt", "vocabulary/labels.txt"

_NAMES = "|".join(map(re.escape, (*WEIGHTS, TOKENS, LABELS)))
_PART = re.compile(rf"(?:\./)?(?P<folder>(?:(?!\.\.?/)[^/]+/)?)(?P<name>{_NAMES})")  # at most one folder deep
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, *_DEVICES)
_EXPANSION = 20  # largest ratio of model size to archive size: weights hardly compress
_SMALL = 2**20  # bytes that are always allowed
_PIECE = 2**20  # bytes per read
_INSTEAD = "unpack it and convert the folder"


@contextlib.contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """Unpack an archive to a temporary AllenNLP folder for the time of a block; yield any other path unchanged.

    Raises:
        DataError: the archive is damaged, too large when unpacked, or holds several models. A DataError from inside the
            block is raised again with the archive's name in place of the folder's.
    """
    if not _is_archive(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        with naming(path):
            _unpack(path, Path(folder))
        try:
            yield Path(folder)
        except DataError as error:
            raise DataError(str(error).replace(folder, os.fspath(path))) from error


def _is_archive(path: Path) -> bool:
    if not path.is_file():
        return False
    with naming(path), open(path, "rb") as file:
        beginning = file.read(tarfile.BLOCKSIZE)
    with contextlib.suppress(tarfile.TarError):
        return _is_gzip(beginning) or bool(_header(beginning))
    return False


def _is_gzip(beginning: bytes) -> bool:
    return beginning.startswith(b"\x1f\x8b")


def _header(block: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if member.size < 0:
        raise tarfile.TarError("a negative size")
    return member


def _unpack(path: Path, folder: Path) -> None:
    """Write the model's files to a folder, under fixed names."""
    left, places = max(_EXPANSION * path.stat().st_size, _SMALL), set()
    with open(path, "rb") as file:
        stream: Any = gzip.GzipFile(fileobj=file) if _is_gzip(file.peek(2)) else file
        try:
            while any(block := stream.read(tarfile.BLOCKSIZE)):  # a block of zeros ends the archive
                member = _header(block)
                found = _PART.fullmatch(member.name) if member.type in _FILES else None
                if found is None:
                    _copy(stream, 0 if member.type in _WITHOUT_CONTENT else member.size)
                    continue
                left -= member.size
                places.add(found["folder"] or "./")
                if left < 0:
                    raise DataError(f"{path}: {found['name']} unpacks to many times the archive's size: {_INSTEAD}")
                if len(places) > 1:
                    listed = " and ".join(sorted(places))
                    raise DataError(f"{path}: expected the files of one model, got those in {listed}: {_INSTEAD}")
                target = folder / found["name"]
                target.parent.mkdir(exist_ok=True)
                with open(target, "wb") as part:
                    _copy(stream, member.size, part)
            while stream.read(_PIECE):  # read to the end, so that gzip verifies its checksum
                pass
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise DataError(f"{path}: not a tar archive, or a damaged one: {first_line(error)}") from error


def _copy(stream: IO[bytes], size: int, to: IO[bytes] | None = None) -> None:
    """Read a file's content, which fills whole blocks, from an archive, and write it to ``to`` if given."""
    left = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    while left:
        piece = stream.read(min(left, _PIECE))
        if not piece:
            raise EOFError("it ends in the middle of a file")
        if to:
            to.write(piece[: max(size, 0)])
        size -= len(piece)
        left -= len(piece)

"""AllenNLP's archives (``model.tar.gz``), of which the files of a model are read and nothing else.

Python's ``tarfile`` takes as much memory as a header says, follows links, and writes where a name leads.
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

WEIGHTS = ("best.th", "weights.th")  # the first one counts
TOKENS, LABELS = "vocabulary/tokens.txt", "vocabulary/labels.txt"

_NAMES = "|".join(map(re.escape, (*WEIGHTS, TOKENS, LABELS)))
_PART = re.compile(rf"(?:\./)?(?P<folder>(?:(?!\.\.?/)[^/]+/)?)(?P<name>{_NAMES})")  # in a folder at most
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, *_DEVICES)
_EXPANSION = 20  # how many times as large as its archive a model may be: its numbers hardly get smaller in there
_SMALL = 2**20  # bytes that it may have in any case
_PIECE = 2**20  # bytes that are read at once
_INSTEAD = "unpack it, and convert the folder"


@contextlib.contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """An archive as the folder of AllenNLP's that it was made of, for the time of a block; anything else as it is.

    Raises:
        DataError: the archive is damaged, too large unpacked, or of several models; or the block raises it, and then it
            names the archive in place of the folder.
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
    """Writes the files of the model to a folder, under names of our own."""
    left, places = max(_EXPANSION * path.stat().st_size, _SMALL), set()
    with open(path, "rb") as file:
        stream: Any = gzip.GzipFile(fileobj=file) if _is_gzip(file.peek(2)) else file
        try:
            while any(block := stream.read(tarfile.BLOCKSIZE)):  # zeros end it
                member = _header(block)
                found = _PART.fullmatch(member.name) if member.type in _FILES else None
                if found is None:
                    _copy(stream, 0 if member.type in _WITHOUT_CONTENT else member.size)
                    continue
                left -= member.size
                places.add(found["folder"] or "./")
                if left < 0:
                    raise DataError(f"{path}: {found['name']} has many times the size of the archive: {_INSTEAD}")
                if len(places) > 1:
                    listed = " and ".join(sorted(places))
                    raise DataError(f"{path}: expected the files of one model, got those in {listed}: {_INSTEAD}")
                target = folder / found["name"]
                target.parent.mkdir(exist_ok=True)
                with open(target, "wb") as part:
                    _copy(stream, member.size, part)
            while stream.read(_PIECE):  # behind the end, gzip's checksum
                pass
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise DataError(f"{path}: not a tar archive, or a damaged one: {first_line(error)}") from error


def _copy(stream: IO[bytes], size: int, to: IO[bytes] | None = None) -> None:
    """Passes over the content of a file in an archive, which fills whole blocks, and may write it to another file."""
    left = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    while left:
        piece = stream.read(min(left, _PIECE))
        if not piece:
            raise EOFError("it ends within a file")
        if to:
            to.write(piece[: max(size, 0)])
        size -= len(piece)
        left -= len(piece)

"""Opening what a file's name says is compressed: ``.gz``, ``.bz2``, ``.xz`` and ``.zip``, a piece at a time."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any, cast

from ..errors import DataError, listed

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)  # what reading a file raises

_XZ_MEMORY = 2**27  # bytes that its decoder may take; xz -9 needs half of that
_ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BLOCK = 2**16  # compressed bytes that are read at once
# How files begin that are not text, and what to do about them.
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip file: its name should end in .gz",
    **{b"BZh%d1AY&SY" % level: "a bzip2 file: its name should end in .bz2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "an xz file: its name should end in .xz",
    b"PK\x03\x04": "a zip archive: its name should end in .zip",
    b"PAR1\x15": "a Parquet file: its name should end in .parquet",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it first",
    b"Rar!\x1a": "a RAR archive: unpack it first",
    b"\xff\xfe\0\0": "UTF-32: convert it with iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": "UTF-32: convert it with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
}


def what_it_is(beginning: bytes) -> str | None:
    """What a file is that begins like this and is no UTF-8, with the remedy; None if its beginning does not say."""
    return next((what for magic, what in _BEGINNINGS.items() if beginning.startswith(magic)), None)


def compression_of(name: str) -> str:
    """How a file of this name is compressed: "gz", "bz2", "xz", "zip", or "" if it is not."""
    ending = name.lower().rpartition(".")[2]
    return ending if ending in _OPENERS else ""


def unpacked_name(name: str) -> str:
    """The name of what a file holds, in lower case, without the ending of its compression.

    Of a zip archive that can be read, that is the name of its only part.
    """
    compression = compression_of(name)
    if compression == "zip" and os.path.isfile(name) and zipfile.is_zipfile(name):
        with zipfile.ZipFile(name) as archive:
            parts = _parts(archive)
        if len(parts) == 1:
            return parts[0].filename.lower()
    return name.lower().removesuffix(f".{compression}")


def open_file(path: str | os.PathLike[str]) -> BufferedIOBase:
    """Open a file to read its bytes, through the decompression that its name asks for.

    Raises:
        DataError: a zip archive is damaged, or holds no file, several, or one with a password.
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    return _OPENERS.get(compression_of(name), _open_plain)(name)


def create_file(path: str | os.PathLike[str]) -> BufferedIOBase:
    """Open a file to write bytes to it, compressed as its name says.

    Raises:
        ValueError: its name ends in ``.zip``.
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    if compression_of(name) == "zip":
        raise ValueError(f"{name}: expected a name that does not end in .zip")
    module: Any = {"gz": gzip, "bz2": bz2, "xz": lzma}.get(compression_of(name), io)
    return cast(BufferedIOBase, module.open(name, "wb"))


def _open_plain(name: str) -> BufferedIOBase:
    return cast(BufferedIOBase, open(name, "rb"))


def _open_gzip(name: str) -> BufferedIOBase:
    return cast(BufferedIOBase, gzip.open(name, "rb"))


def _open_bzip2(name: str) -> BufferedIOBase:
    return cast(BufferedIOBase, bz2.open(name, "rb"))


def _open_xz(name: str) -> BufferedIOBase:
    return io.BufferedReader(_XZ(_open_plain(name)))


def _open_zip(name: str) -> BufferedIOBase:
    file = _open_plain(name)
    try:
        archive = zipfile.ZipFile(file)
        parts = _parts(archive)
        if len(parts) != 1:
            names = listed([part.filename for part in parts]) or "none"
            raise DataError(f"{name}: expected a zip archive of one file, got {names}: unpack it and name the file")
        if parts[0].flag_bits & 1 or parts[0].compress_type not in _ZIP_COMPRESSIONS:
            raise DataError(f"{name}: a zip archive with a password or of an unusual compression: unpack it first")
        return cast(BufferedIOBase, archive.open(parts[0]))
    except zipfile.BadZipFile as error:
        file.close()
        raise DataError(f"{name}: expected a zip archive, or this one is damaged: {error}") from error
    except DataError:
        file.close()
        raise


_OPENERS: dict[str, Callable[[str], BufferedIOBase]] = {
    "gz": _open_gzip,
    "bz2": _open_bzip2,
    "xz": _open_xz,
    "zip": _open_zip,
}


def _parts(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive, without the folders, and what macOS adds."""
    return [part for part in archive.infolist() if not part.is_dir() and not part.filename.startswith("__MACOSX/")]


class _XZ(io.RawIOBase):
    """The bytes of an .xz file. Python's own reader takes as much memory as the file asks for, up to 4 GiB."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._decoder = self._new_decoder()

    @staticmethod
    def _new_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            while True:
                if self._decoder.eof:  # another stream may follow, and fill bytes
                    rest = (self._decoder.unused_data or self._file.read(_BLOCK)).lstrip(b"\0")
                    if not rest:
                        return 0
                    self._decoder, given = self._new_decoder(), rest
                elif self._decoder.needs_input:
                    given = self._file.read(_BLOCK)
                    if not given:
                        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                else:
                    given = b""
                found = self._decoder.decompress(given, len(view))
                if found:
                    view[: len(found)] = found
                    return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()

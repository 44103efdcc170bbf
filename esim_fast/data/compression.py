"""Open files, decompressing a block at a time those whose names end in ``.gz``, ``.bz2``, ``.xz`` or ``.zip``."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BufferedIOBase
from typing import Any, cast

from ..errors import DataError, listed, reason_of

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)  # what reading a file raises

_XZ_MEMORY = 2**27  # bytes that the decoder may use; xz -9 needs half of that
ZIP_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NO_ZIP = (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, OverflowError)  # what a bad zip directory can raise
_BLOCK = 2**16  # compressed bytes to read at a time
# The first bytes of files that are not plain UTF-8 text, and the remedy for each.
_OFFICE = "an Excel or Word file; save it as CSV UTF-8 (.csv)"
_OFFICE_PARTS = (b"[Content_Types].xml", b"docProps/", b"_rels/", b"xl/")  # whichever the program wrote first
_BEGINNINGS = {
    b"\x1f\x8b": "a gzip file; its name should end in .gz",
    **{b"BZh%d1AY&SY" % level: "a bzip2 file; its name should end in .bz2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "an xz file; its name should end in .xz",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"ARROW1": "an Arrow file; save it as .parquet or .csv",
    b"\xd0\xcf\x11\xe0": _OFFICE,
    b"PK\x03\x04": "a zip archive; its name should end in .zip",
    b"PAR1\x15": "a Parquet file; it must not be compressed, and its name should end in .parquet",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it first",
    b"Rar!\x1a": "a RAR archive; unpack it first",
    b"\xff\xfe\0\0": "UTF-32; convert it with iconv -f UTF-32 -t UTF-8 OLD > NEW",
    b"\0\0\xfe\xff": "UTF-32; convert it with iconv -f UTF-32 -t UTF-8 OLD > NEW",
    b"\xff\xfe": "UTF-16; convert it with iconv -f UTF-16 -t UTF-8 OLD > NEW",
    b"\xfe\xff": "UTF-16; convert it with iconv -f UTF-16 -t UTF-8 OLD > NEW",
    b"version https://git-lfs": "a Git LFS pointer instead of the file; download it with git lfs pull",
}
_WEB_PAGES = (b"<!doctype", b"<html")


def what_it_is(beginning: bytes) -> str | None:
    """Return what kind of file begins like this, with the remedy; None if it may be plain text."""
    if beginning.removeprefix(BYTE_ORDER_MARK).lstrip()[:9].lower().startswith(_WEB_PAGES) and b"\t" not in beginning:
        return "a web page instead of the file; download it again"
    if beginning[257:265] in (b"ustar\x0000", b"ustar  \0"):
        return "a tar archive; unpack it first"
    if beginning.startswith(b"PK\x03\x04") and any(part in beginning[:100] for part in _OFFICE_PARTS):
        return _OFFICE
    return next((what for magic, what in _BEGINNINGS.items() if beginning.startswith(magic)), None)


def compression_of(name: str) -> str:
    """Return a file's compression by its name: "gz", "bz2", "xz", "zip", or "" for none."""
    ending = os.path.splitext(name.lower())[1].removeprefix(".")
    return ending if ending in _OPENERS else ""


def unpacked_name(name: str) -> str:
    """Return a file's name in lower case, without the suffix of its compression.

    For a readable zip archive of one file, return the name of that file.
    """
    compression = compression_of(name)
    if compression == "zip" and os.path.isfile(name):
        with contextlib.suppress(OSError, *_NO_ZIP), zipfile.ZipFile(name) as archive:
            parts = _parts(archive)
            if len(parts) == 1:
                return parts[0].filename.lower()
    return name.lower().removesuffix(f".{compression}")


def open_file(path: str | os.PathLike[str]) -> BufferedIOBase:
    """Open a file for reading bytes, decompressed according to its name.

    Raises:
        DataError: a zip archive is damaged, password-protected, or does not hold exactly one file.
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    return _OPENERS.get(compression_of(name), _open_plain)(name)


def create_file(path: str | os.PathLike[str]) -> BufferedIOBase:
    """Open a file for writing bytes, compressed according to its name.

    Raises:
        ValueError: the name ends in ``.zip``.
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
    return io.BufferedReader(_Streams(_open_plain(name), bz2.BZ2Decompressor))


def _open_xz(name: str) -> BufferedIOBase:
    new_decoder = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    return io.BufferedReader(_Streams(_open_plain(name), new_decoder))


def _open_zip(name: str) -> BufferedIOBase:
    try:
        with zipfile.ZipFile(name) as archive:
            parts = _parts(archive)
            if len(parts) != 1:
                names = listed([part.filename for part in parts]) or "none"
                raise DataError(f"{name}: expected a zip archive of one file, got {names}; unpack it and name the file")
            if parts[0].flag_bits & 1 or parts[0].compress_type not in ZIP_COMPRESSIONS:
                raise DataError(f"{name}: a zip archive with a password or unsupported compression; unpack it first")
            return cast(BufferedIOBase, archive.open(parts[0]))  # stays open after the archive is closed
    except DataError:
        raise
    except _NO_ZIP as error:
        raise DataError(f"{name}: not a zip archive, or a damaged one: {reason_of(error)}") from error


_OPENERS: dict[str, Callable[[str], BufferedIOBase]] = {
    "gz": _open_gzip,
    "bz2": _open_bzip2,
    "xz": _open_xz,
    "zip": _open_zip,
}


def _parts(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of an archive, without folders and without the metadata that macOS adds."""
    files = [part for part in archive.infolist() if not part.filename.endswith("/")]  # is_dir() fails on an empty name
    return [part for part in files if not part.filename.startswith("__MACOSX/")]


class _Streams(io.RawIOBase):
    """The bytes of a .bz2 or .xz file, which may be several compressed streams in a row.

    Python's own readers end silently at a damaged stream after the first one. For .xz, they also use as much memory as
    the file asks for, up to 4 GiB.
    """

    def __init__(self, file: BufferedIOBase, new_decoder: Callable[[], Any]) -> None:
        self._file = file
        self._new_decoder = new_decoder
        self._decoder = new_decoder()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            while True:
                given = b""
                if self._decoder.eof:
                    given = self._next_stream()
                    if not given:
                        return 0
                    self._decoder = self._new_decoder()
                elif self._decoder.needs_input:
                    given = self._file.read(_BLOCK)
                    if not given:
                        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                found = self._decode(given, len(view))
                if found:
                    view[: len(found)] = found
                    return len(found)

    def _next_stream(self) -> bytes:
        """Return the first bytes of the next stream, if there is one; skip zeros before it."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest and (block := self._file.read(_BLOCK)):
            rest = block.lstrip(b"\0")
        return rest

    def _decode(self, given: bytes, most: int) -> bytes:
        try:
            return self._decoder.decompress(given, most)
        except lzma.LZMAError as error:
            if "Memory usage limit" not in str(error):
                raise
            message = f"unpacking it takes more than {_XZ_MEMORY // 2**20} MiB of memory; unpack it first with xz -d"
            raise lzma.LZMAError(message) from error

    def close(self) -> None:
        self._file.close()
        super().close()

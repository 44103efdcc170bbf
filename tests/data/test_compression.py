"""Compressed files give all of their bytes or an error, in reads of any size."""

import bz2
import gzip
import lzma
import os
import random
import warnings
import zipfile

import pytest

from esim_fast.data import DataError
from esim_fast.data.compression import (
    _BLOCK,
    UNREADABLE,
    compression_of,
    create_file,
    open_file,
    unpacked_name,
    what_it_is,
)
from tests.data.files import compressed, write, xz_with_dictionary, zipped

TEXT = b"".join(b"the %d\n" % number for number in range(3000))
NOISE = random.Random(0).randbytes(3 * _BLOCK)
MODULES = {"gz": gzip, "bz2": bz2, "xz": lzma}
ENDINGS = [*MODULES, "zip"]


def read(path) -> bytes:
    with open_file(path) as file:
        return file.read()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "content", [b"", b"a", TEXT, NOISE, bytes(10**6)], ids=["empty", "a", "text", "noise", "zeros"]
)
def test_all_bytes(tmp_path, ending, content):
    path = write(tmp_path, f"v.TXT.{ending.upper()}", content)
    assert read(path) == content
    with open_file(path) as file:
        pieces = list(iter(lambda: file.read1(1000), b""))
        assert b"".join(pieces) == content
        assert max(map(len, pieces), default=0) <= 1000
        assert file.read1(1000) == b""
    assert unpacked_name(str(path)).endswith("v.txt")


@pytest.mark.parametrize("ending", MODULES)
def test_created_files_read_back(tmp_path, ending):
    with create_file(tmp_path / f"v.{ending}") as file:
        file.write(TEXT)
    assert MODULES[ending].decompress((tmp_path / f"v.{ending}").read_bytes()) == TEXT
    with pytest.raises(ValueError, match=r"does not end in \.zip"):
        create_file(tmp_path / "v.zip")


@pytest.mark.parametrize("ending", MODULES)
def test_several_streams(tmp_path, ending):
    """Concatenated, as by pbzip2 or cat, with zeros in between, as .xz and .gz allow."""
    parts = [b"", TEXT, b"a", NOISE[:1000]]
    for zeros in (0, 4, _BLOCK - 4, _BLOCK, 3 * _BLOCK) if ending == "xz" else (0,):
        path = tmp_path / f"v.{ending}"
        path.write_bytes(bytes(zeros).join(MODULES[ending].compress(part) for part in parts) + bytes(zeros))
        assert read(path) == b"".join(parts)


@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_off_anywhere(tmp_path, ending):
    whole = compressed(f"v.{ending}", TEXT[:60]) if ending == "zip" else 2 * MODULES[ending].compress(TEXT[:30])
    path, first = tmp_path / f"v.{ending}", len(whole) // 2
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        if length == first and ending != "zip":
            assert read(path) == TEXT[:30]
            continue
        with pytest.raises((DataError, *UNREADABLE)):
            read(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged(tmp_path, ending):
    """Any wrong byte is noticed, unless it does not concern the content."""
    streams = [MODULES[ending].compress(part) for part in (TEXT[:500], b"the end\n")] if ending != "zip" else []
    whole = b"".join(streams) or compressed("v.zip", TEXT[:500])
    expected = TEXT[:500] + b"the end\n" * bool(streams)
    path, errors = tmp_path / f"v.{ending}", 0
    for place in range(len(whole)):
        for other in (whole[place] ^ 1, whole[place] ^ 255):
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            try:
                found = read(path)
            except (DataError, *UNREADABLE):
                errors += 1
            else:
                assert found == expected
            unpacked_name(str(path))
    assert errors > len(whole)


def test_what_xz_may_take(tmp_path):
    """The dictionary of xz -9 and 1.5 times that are allowed, 128 MiB and more are not."""
    for code in (0, 28, 29):
        (tmp_path / "v.xz").write_bytes(xz_with_dictionary(TEXT[:4000], code))
        assert read(tmp_path / "v.xz") == TEXT[:4000]
    for code in (30, 36, 40):
        (tmp_path / "v.xz").write_bytes(xz_with_dictionary(TEXT[:4000], code))
        with pytest.raises(lzma.LZMAError) as caught:
            read(tmp_path / "v.xz")
        assert str(caught.value) == "unpacking it takes more than 128 MiB of memory; unpack it first with xz -d"


class TestZip:
    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({}, "expected a zip archive of one file, got none; unpack it and name the file"),
            ({"a/": b"", "__MACOSX/a": b"1"}, "expected a zip archive of one file, got none; unpack it"),
            ({"a.txt": b"1", "b.txt": b"2"}, "expected a zip archive of one file, got a.txt, b.txt; unpack it"),
            (
                {f"glove.{n}.txt": b"1" for n in range(99)},
                "expected a zip archive of one file, got glove.0.txt, glove.1",
            ),
        ],
    )
    def test_not_of_one_file(self, tmp_path, members, message):
        path = tmp_path / "v.zip"
        path.write_bytes(zipped(members))
        with pytest.raises(DataError) as caught:
            open_file(path)
        assert str(caught.value).startswith(f"{path}: {message}")
        assert unpacked_name(str(path)) == str(path).removesuffix(".zip").lower()

    def test_folders_and_what_macos_adds(self, tmp_path):
        path = tmp_path / "v.zip"
        path.write_bytes(zipped({"a/": b"", "a/B.BIN": TEXT, "__MACOSX/a/._b.bin": b"x"}, zipfile.ZIP_DEFLATED))
        assert read(path) == TEXT
        assert unpacked_name(str(path)) == "a/b.bin"

    @pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_other_compressions(self, tmp_path, compression):
        (tmp_path / "v.zip").write_bytes(zipped({"a": TEXT}, compression))
        with pytest.raises(DataError, match="with a password or unsupported compression; unpack it first"):
            open_file(tmp_path / "v.zip")

    def test_password(self, tmp_path):
        content = bytearray(zipped({"a": TEXT}))
        for magic, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
            content[content.rindex(magic) + flags] |= 1
        (tmp_path / "v.zip").write_bytes(content)
        with pytest.raises(DataError, match="with a password"):
            open_file(tmp_path / "v.zip")

    @pytest.mark.parametrize("content", [b"", TEXT, b"PK\3\4", zipped({"a": TEXT})[:-30]])
    def test_none(self, tmp_path, content):
        (tmp_path / "v.zip").write_bytes(content)
        with pytest.raises(DataError, match="not a zip archive, or a damaged one: "):
            open_file(tmp_path / "v.zip")
        assert unpacked_name(str(tmp_path / "v.zip")) == str(tmp_path / "v").lower()

    def test_nothing_stays_open(self, tmp_path):
        path = write(tmp_path, "v.zip", TEXT)
        before = len(os.listdir("/dev/fd"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with open_file(path) as file:
                file.read1(5)
            unpacked_name(str(path))
        assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing(tmp_path, ending):
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / f"v.{ending}")
    assert unpacked_name(f"nowhere/V.{ending}") == "nowhere/v"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.gz", "gz"), ("a.XZ", "xz"), ("a.b.zip", "zip"), ("gz", ""), ("a.gz/b", ""), ("a.tgz", ""), ("a.bz2.txt", "")],
)
def test_compression_of(name, expected):
    assert compression_of(name) == expected


@pytest.mark.parametrize(
    ("beginning", "what"),
    [
        (b"", None),
        (b"the 1 2\n", None),
        ("\ufeffthe 1 2\n".encode(), None),
        (b"<http://a> 1 2\n", None),
        (gzip.compress(b"", mtime=0), "a gzip file; its name should end in .gz"),
        (zipped({"a": b""}), "a zip archive; its name should end in .zip"),
        (zipped({"[Content_Types].xml": b""}), "an Excel or Word file; save it as CSV UTF-8 (.csv)"),  # Excel's order
        (zipped({"docProps/app.xml": b""}), "an Excel or Word file; save it as CSV UTF-8 (.csv)"),  # openpyxl's
        ("the".encode("utf-16"), "UTF-16; convert it with iconv -f UTF-16 -t UTF-8 OLD > NEW"),
        ("the".encode("utf-32"), "UTF-32; convert it with iconv -f UTF-32 -t UTF-8 OLD > NEW"),
        (b" \r\n<HtMl>", "a web page instead of the file; download it again"),
        (bytes(257) + b"ustar\x0000", "a tar archive; unpack it first"),
    ],
)
def test_what_it_is(beginning, what):
    assert what_it_is(beginning) == what

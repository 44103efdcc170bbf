"""The cache between runs: entries are used while valid and rebuilt otherwise."""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from esim_fast.data import DataError, default_cache
from esim_fast.data.cache import kept
from tests.data.files import refusal
from tests.processes import fork

OPTIONS = {"format": "1"}


class Maker:
    """Makes arrays from a source's content, and counts its calls."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.count = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.count += 1
        return {"a": torch.tensor(list(self.source.read_bytes()), dtype=torch.uint8), "b": torch.arange(3)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.tsv"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "here"


def fetch(folder: Path | None, make: Maker, **options: str) -> bytes:
    arrays = kept(folder, str(make.source), OPTIONS | options, make)
    assert arrays["b"].tolist() == [0, 1, 2]
    return bytes(arrays["a"].tolist())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def make(source) -> Maker:
    return Maker(source)


def test_it_is_made_once_if_there_is_a_folder(folder, make):
    assert fetch(folder, make) == fetch(folder, make) == b"content"
    assert make.count == 1
    assert [path.suffix for path in files(folder)] == [".safetensors"]
    assert fetch(None, make) == fetch(None, make) == b"content"
    assert make.count == 3
    # A file known by its time and size, neither of which reveals the change.


def test_other_options_are_kept_beside(folder, make):
    for options in ({}, {"format": "2"}, {"more": "x"}):
        fetch(folder, make, **options)
    assert make.count == len(files(folder)) == 3


def rewrite(source: Path, content: bytes) -> None:
    """Rewrites a file without changing its size or time."""
    about = source.stat()
    source.write_bytes(content)
    os.utime(source, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_other_content_replaces(folder, source, make):
    fetch(folder, make)
    rewrite(source, b"CONTENT")
    assert fetch(folder, make) == b"CONTENT"
    assert (make.count, len(files(folder))) == (2, 1)
    source.unlink()
    source.write_bytes(b"CONTENT")  # the same content written again is recognized
    fetch(folder, make)
    assert make.count == 2


def test_a_large_file_is_known_by_its_time_and_size(folder, source, make, monkeypatch):
    monkeypatch.setattr("esim_fast.data.cache._LARGE", 1)
    assert fetch(folder, make) == fetch(folder, make)
    assert make.count == 1
    time.sleep(0.02)  # longer than a tick of the clock
    rewrite(source, b"CONTENT")  # its ctime cannot be set
    assert fetch(folder, make) == b"CONTENT"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\xff" * 8 + data[8:],  # a huge header
        lambda data: bytes(len(data)),
        lambda data: data.replace(b'"format', b'"formaT'),
        lambda data: data.replace(b'"I64"', b'"F64"'),
        lambda data: data.replace(b'checksum":"', b'checksum":"0', 1)[:-1],
    ],
    ids=range(10),
)
def test_a_damaged_file_is_made_again(folder, make, damage):
    fetch(folder, make)
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert fetch(folder, make) == fetch(folder, make) == b"content"
    assert make.count == 2


def test_every_bit_counts(folder, make):
    fetch(folder, make)
    (path,) = files(folder)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert fetch(folder, make) == b"content", place


def test_a_failure_leaves_nothing(folder, source):
    assert refusal(kept, folder, str(source), OPTIONS, mock.Mock(side_effect=DataError("no"))) == "no"
    assert files(folder) == []


def test_a_source_that_changes_meanwhile(folder, source, make):
    def changing() -> dict[str, torch.Tensor]:
        arrays = make()
        source.write_bytes(b"content, and more")
        return arrays

    assert refusal(kept, folder, str(source), OPTIONS, changing) == f"{source}: the file changed while it was read"
    assert files(folder) == []


def test_where_nothing_can_be_written(tmp_path, source, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert fetch(blocked / "folder", Maker(source)) == b"content"
    assert "cannot write the cache, so the next start will take as long" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read_once_and_not_kept(tmp_path, folder):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'wb').write(b'content')"]):
        assert fetch(folder, Maker(pipe)) == b"content"
    assert not folder.exists()


def _fetch_slowly(folder: Path, source: Path, made: Path) -> None:
    class Slow(Maker):
        def __call__(self) -> dict[str, torch.Tensor]:
            time.sleep(0.3)
            (made / str(os.getpid())).touch()
            return super().__call__()

    fetch(folder, Slow(source))


def test_one_of_several_processes_makes_it(folder, source, tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    processes = [fork(_fetch_slowly, folder, source, made) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(made.iterdir())) == len(files(folder)) == 1


def test_location_of_the_users_cache(monkeypatch):
    monkeypatch.setenv("ESIM_FAST_CACHE", "/a/b")
    assert default_cache() == Path("/a/b")
    monkeypatch.setenv("ESIM_FAST_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_cache() == Path("/c/esim_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache() == Path("/home/somebody/.cache/esim_fast")

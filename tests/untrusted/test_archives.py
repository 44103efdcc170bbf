"""Malicious archives: nothing is written outside, no link is followed, and nothing is executed."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from esim_fast.compat.archives import LABELS, TOKENS, as_folder
from tests.cli.commands import fails, succeeds
from tests.untrusted.fuzz_targets import allennlps_archive
from tests.untrusted.hostile import refused, unchanged


@pytest.fixture
def parts() -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(allennlps_archive())) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **attributes: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    archive.addfile(member, io.BytesIO(content))


def add_all(archive: tarfile.TarFile, members: dict[str, bytes]) -> None:
    for name, content in members.items():
        add(archive, name, content)


def write(path: Path, fill: Callable[[tarfile.TarFile], object]) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        fill(archive)
    return path


def files_of(path: Path) -> set[str]:
    """The files unpacked from an archive."""
    with as_folder(path) as folder:
        assert folder != path
        return {os.fspath(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["/{}/out", "../out", "../weights.th", "/weights.th", "a/../weights.th", "a/b/weights.th", "./../weights.th"]
        + ["weights.th/", "weights.th\n", "xweights.th", "vocabulary/../../weights.th", "vocabulary\\tokens.txt", ""],
    )
    def test_names_do_not_leave_the_folder(self, tmp_path, parts, name):
        def fill(archive: tarfile.TarFile) -> None:
            add(archive, name.format(tmp_path), parts["weights.th"])
            add(archive, TOKENS, parts[TOKENS])

        path = write(tmp_path / "a.tar.gz", fill)
        with unchanged(tmp_path):
            assert files_of(path) == {TOKENS}

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
    )
    def test_links_and_devices(self, tmp_path, parts, kind):
        (tmp_path / "secret").write_text("a\nb\n")
        for target in (tmp_path / "secret", "../../secret", "weights.th"):

            def fill(archive: tarfile.TarFile, target: object = target) -> None:
                add(archive, "vocabulary", type=tarfile.SYMTYPE, linkname=os.fspath(tmp_path))
                add(archive, LABELS, type=kind, linkname=os.fspath(target))
                add(archive, "weights.th", parts["weights.th"])
                add(archive, TOKENS, parts[TOKENS])

            path = write(tmp_path / "a.tar.gz", fill)
            with unchanged(tmp_path):
                assert files_of(path) == {"weights.th", TOKENS}
                assert f"{path}/{LABELS}: No such file" in fails("convert", path, tmp_path / "m")
        assert not (tmp_path / "tokens.txt").exists()

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
    def test_links_have_no_content(self, tmp_path, parts, kind):
        """Whatever size they declare, the next file follows."""
        header = tarfile.TarInfo("other")
        header.type, header.size = kind, 10**6
        (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + allennlps_archive())
        assert files_of(tmp_path / "a.tar") == set(parts)

    def test_several_models(self, tmp_path, parts):
        def fill(archive: tarfile.TarFile) -> None:
            add(archive, "a/weights.th", parts["weights.th"])
            add(archive, "b/vocabulary/tokens.txt", parts[TOKENS])

        path = write(tmp_path / "a.tar.gz", fill)
        refused(
            lambda: files_of(path), f"{path}: expected the files of one model, got those in a/ and b/: unpack it and"
        )

    def test_thousands_of_members(self, tmp_path, parts):
        def fill(archive: tarfile.TarFile) -> None:
            for number in range(20_000):
                add(archive, f"vocabulary/{number}.txt", b"a" * (number % 700))
            add_all(archive, parts)

        path = write(tmp_path / "a.tar.gz", fill)
        assert files_of(path) == set(parts)
        succeeds("convert", path, tmp_path / "m")


class TestContent:
    def test_pickles(self, tmp_path, parts, bomb):
        for name in ("weights.th", TOKENS, LABELS):
            content = {**parts, name: bomb}
            path = write(tmp_path / "a.tar.gz", lambda archive, content=content: add_all(archive, content))
            assert f"{path}/{name}: " in fails("convert", path, tmp_path / "m")
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize("packed", [True, False])
    def test_cut_off(self, tmp_path, parts, packed):
        path, whole = tmp_path / "a.tar.gz", allennlps_archive()
        whole = gzip.compress(whole) if packed else whole
        within_weights = len(whole) if packed else len(parts["weights.th"])
        for place in range(2 if packed else 512, within_weights, 97):
            path.write_bytes(whole[:place])
            refused(lambda: files_of(path), f"{path}: not a tar archive, or a damaged one: ")
            assert f"{path}: " in fails("convert", path, tmp_path / "m")
        path.write_bytes(b"\x1f\x8b" + os.urandom(600))
        refused(lambda: files_of(path), f"{path}: not a tar archive, or a damaged one: ")

    def test_other_files(self, tmp_path):
        path = tmp_path / "a.tar.gz"
        for content in (b"hello", gzip.compress(b"hello" * 200), gzip.compress(bytes(512)), gzip.compress(b"")):
            path.write_bytes(content)
            assert f"{path}: " in fails("convert", path, tmp_path / "m")

    @pytest.mark.parametrize("size", [-1, -(2**40), 2**60])
    def test_sizes(self, tmp_path, parts, size):
        for name in ("weights.th", "other"):
            header = tarfile.TarInfo(name)
            header.size = size
            path = tmp_path / "a.tar.gz"
            path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + parts["weights.th"]))
            refused(lambda path=path: files_of(path), f"{path}: ")

    def test_sparse_files(self, tmp_path, parts):
        header = tarfile.TarInfo("weights.th")
        header.type, header.size = tarfile.GNUTYPE_SPARSE, 512
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(512) + bytes(1024)))
        assert not files_of(path)

    def test_what_expands(self, tmp_path):
        for name in ("weights.th", TOKENS):
            path = write(tmp_path / "a.tar.gz", lambda archive, name=name: add(archive, name, bytes(3 * 2**20)))
            refused(lambda path=path: files_of(path), f"{path}: {name} unpacks to many times the archive's size")
        path = write(tmp_path / "a.tar.gz", lambda archive: [add(archive, TOKENS, bytes(2**19)) for _ in range(5)])
        refused(lambda: files_of(path), "many times the archive's size")
        path = write(tmp_path / "a.tar.gz", lambda archive: add(archive, "other", bytes(3 * 2**20)))
        assert not files_of(path)

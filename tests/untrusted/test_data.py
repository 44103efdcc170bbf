"""Malicious word vectors, corpora and cache entries: rejected in one line, or rebuilt."""

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from esim_fast.data import Vocabulary, load_vectors, prepare
from esim_fast.data.cache import _checksum
from tests.untrusted.fuzz_targets import ROWS, WORDS
from tests.untrusted.hostile import in_npy, in_safetensors, refused, silence, unchanged, write_zip


class TestVectors:
    @pytest.mark.parametrize(
        ("part", "header"),
        [
            ("words", "{'descr': '<U1', 'fortran_order': False, 'shape': (999999999999,), }"),
            ("words", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
            ("words", "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }"),
            ("words", "{'descr': '<U400000000', 'fortran_order': False, 'shape': (1,), }"),
            ("words", "{'descr': '<U0', 'fortran_order': False, 'shape': (1,), }"),
            ("words", "{'descr': '<U1', 'fortran_order': False, 'shape': (-1,), }"),
            ("words", "{'descr': '<U1', 'fortran_order': False, 'shape': (1L,), }"),
            ("words", "{'descr': '<U1', 'fortran_order': False, 'shape': ("),
            ("words", "[" * 9000),
            ("words", "__import__('os').mkdir('executed')"),
            ("vectors", "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 99999999999999999999), }"),
            ("vectors", "{'descr': '<f4', 'fortran_order': True, 'shape': (10**30, 3), }"),
            ("vectors", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 0), }"),
            ("vectors", "{'descr': '<f4', 'fortran_order': False, 'shape': (), }"),
            ("vectors", "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }"),
        ],
    )
    def test_arrays(self, tmp_path, part, header, monkeypatch):
        monkeypatch.chdir(tmp_path)
        headers = {
            "words": "{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }",
            "vectors": "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }",
            part: header,
        }
        numbers = {"words": "a".encode("utf-32-le"), "vectors": bytes(12)}
        members = {f"{name}.npy": in_npy(headers[name], numbers[name]) for name in numbers}
        path = write_zip(tmp_path / "v.npz", members)
        with silence():
            refused(lambda: load_vectors(path, Vocabulary(WORDS)), "v.npz: expected")
        assert not (tmp_path / "executed").exists()

    def test_members(self, tmp_path, bomb):
        words, vectors = np.array(["a", "man"]), np.ones((2, 3), np.float32)
        (tmp_path / "in" / "here").mkdir(parents=True)
        path = tmp_path / "in" / "here" / "v.npz"
        np.savez(path, words=words, vectors=vectors)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        write_zip(path, {**members, "../../x": b"x", f"{tmp_path}/y": b"y"})
        with unchanged(tmp_path):  # archives are never unpacked
            assert load_vectors(path, Vocabulary(WORDS)).found == 2
        for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            write_zip(path, members, compression)
            refused(lambda: load_vectors(path, Vocabulary(WORDS)), "expected an .npz archive of plain arrays")
        write_zip(path, members)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("words.npy", members["words.npy"])
        refused(lambda: load_vectors(path, Vocabulary(WORDS)), "got words, vectors, words")
        np.savez(path, words=np.array(["a", "man"], dtype=object), vectors=vectors)
        refused(lambda: load_vectors(path, Vocabulary(WORDS)), "expected an .npz archive of plain arrays")
        for content in (
            bomb,
            *(write_zip(tmp_path / "w.npz", {**members, name: bomb}).read_bytes() for name in members),
        ):
            path.write_bytes(content)
            refused(lambda: load_vectors(path, Vocabulary(WORDS)), "expected an .npz archive of plain arrays")


class TestCache:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "corpus.tsv"
        path.write_text("".join("\t".join(row) + "\n" for row in ROWS))
        return path

    def entry(self, source: Path) -> Path:
        prepare(source, "whitespace", cache=source.parent / "cache")
        (path,) = (source.parent / "cache").glob("*.safetensors")
        return path

    def forge(self, path: Path, change: Callable[[dict], object]) -> None:
        """Forges the entry with a correct checksum."""
        with safetensors.safe_open(path, "pt") as file:
            key = file.metadata()["key"]
            arrays = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        change(arrays)
        metadata = {"key": key}
        with contextlib.suppress(TypeError):
            metadata["checksum"] = _checksum(key, arrays)
        safetensors.torch.save_file(arrays, path, metadata)

    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a["tokens"].fill_(10**6),
            lambda a: a["tokens"].fill_(-5),
            lambda a: a["ends"].fill_(10**15),
            lambda a: a["ends"].copy_(a["ends"].flip(0)),
            lambda a: a["ends"].copy_(torch.tensor([2**62, -(2**62)] * 3)),
            lambda a: a["labels"].fill_(99),
            lambda a: a["labels"].fill_(-3),
            lambda a: a.update(ends=a["ends"][:-2].clone()),
            lambda a: a.update(lines=a["lines"][:0].clone()),
            lambda a: a.update(tokens=a["tokens"].long()),
            lambda a: a.update(tokens=a["tokens"].bfloat16()),
            lambda a: a.update(tokens=a["tokens"][None]),
            lambda a: a.update(words=a["words"][:0].clone()),
            lambda a: a["words"].fill_(10),
            lambda a: a["words"].fill_(255),
            lambda a: a["label_names"].fill_(ord("[")),
            lambda a: a.update(label_names=torch.tensor(list(b'{"a": 1}'), dtype=torch.uint8)),
            lambda a: a.update(label_names=torch.tensor(list(b'["\\ud800", "b"]'), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor(list(b'[["x", 1, 2]]'), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor(list(b'[[1, "a\\nb"]]'), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor(list(b"5"), dtype=torch.uint8)),
            lambda a: a.update(more=torch.zeros(1)),
            lambda a: a.pop("lines"),
            lambda a: a.clear(),
        ],
        ids=range(24),
    )
    def test_forged(self, source, change):
        honest = prepare(source, "whitespace")
        path = self.entry(source)
        whole = safetensors.torch.load(path.read_bytes())  # not mapped, because the file is about to change
        self.forge(path, change)
        found = prepare(source, "whitespace", cache=path.parent)
        assert found.digest == honest.digest
        assert found.bad_rows == honest.bad_rows
        torch.testing.assert_close(safetensors.torch.load_file(path), whole, rtol=0, atol=0)  # rebuilt

    def test_damaged(self, source, bomb):
        honest, path = prepare(source, "whitespace"), self.entry(source)
        whole = path.read_bytes()
        arrays = safetensors.torch.load(whole)
        for content in (bomb, in_safetensors(b"{}", length=2**63), *(whole[:end] for end in range(0, len(whole), 29))):
            path.write_bytes(content)
            assert prepare(source, "whitespace", cache=path.parent).digest == honest.digest
            torch.testing.assert_close(safetensors.torch.load_file(path), arrays, rtol=0, atol=0)
        path.unlink()
        os.mkfifo(path)
        assert prepare(source, "whitespace", cache=path.parent).digest == honest.digest
        path.unlink()
        path.mkdir()
        assert prepare(source, "whitespace", cache=path.parent).digest == honest.digest

    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a["rows"].fill_(torch.nan),
            lambda a: a.update(rows=a["rows"][:-1].clone()),
            lambda a: a.update(rows=a["rows"].double()),
            lambda a: a.update(rows=a["rows"][:, :0].clone()),
            lambda a: a.update(found=a["found"].to(torch.uint8)),
            lambda a: a.update(found=a["found"][:1].clone()),
            lambda a: a.pop("found"),
            lambda a: a.pop("bad_rows"),
            lambda a: a.update(bad_rows=torch.tensor(list(b'[["x", "y"]]'), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor(list(b'[[1, "a\\nb"]]'), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor(list(b"[[1, 2]]"), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor(list(b"[[1]]"), dtype=torch.uint8)),
            lambda a: a.update(bad_rows=torch.tensor([255], dtype=torch.uint8)),
            lambda a: a["bad_rows"].fill_(ord("[")),
        ],
        ids=range(14),
    )
    def test_forged_vectors(self, tmp_path, change):
        (tmp_path / "v.txt").write_text("a 1 2 3\nman 4 5 6\n")

        def read() -> torch.Tensor:
            return load_vectors(tmp_path / "v.txt", Vocabulary(WORDS), cache=tmp_path / "cache").matrix

        honest = read()
        (path,) = (tmp_path / "cache").glob("*.safetensors")
        self.forge(path, change)
        assert torch.equal(read(), honest)

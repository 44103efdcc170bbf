"""Files that are not vectors, or not of the kind their names suggest: the error names their kind."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from esim_fast.data import load_vectors
from tests.data.files import refusal, write, zipped
from tests.data.vectors import BEHIND_TABS, ROWS, THREE, VOCABULARY, as_binary, as_text, saved


def tarred(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        about = tarfile.TarInfo(name)
        about.size = len(content)
        file.addfile(about, io.BytesIO(content))
    return archive.getvalue()


def pickled_by_torch(value: object, is_zip: bool) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=is_zip)
    return content.getvalue()


FASTTEXT = b"\xba\x16\x4f\x2f\x0c\0\0\0" + bytes(range(256)) * 3
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
TORCH = pickled_by_torch((["the"], torch.ones(1, 3)), is_zip=True)
ARRAYS = {"words": np.array(["the"]), "vectors": np.ones((1, 2))}
OTHERS = {
    "fasttext.bin": (FASTTEXT, "a fastText model; use its .vec file, or write one with get_words() and"),
    "fasttext.txt": (FASTTEXT, "a fastText model; use its .vec file, or write one with get_words() and"),
    "v.npy": (saved(np.save, np.arange(100.0)), "an array without words; save its words and vectors with numpy.savez"),
    "v.txt.npy": (saved(np.save, np.zeros((2, 1000))), "an array without words"),
    "npy.bin": (saved(np.save, np.arange(100.0)), "an array without words"),
    "npz.txt": (saved(np.savez, **ARRAYS), "an .npz archive; its name should end in .npz"),
    "npz.bin": (saved(np.savez_compressed, **ARRAYS), "an .npz archive; its name should end in .npz"),
    "glove.6B.300d.txt.pt": (
        TORCH,
        "a file written by torch.save; save its words and vectors with numpy.savez",
    ),
    "vectors.bin": (TORCH, "a file written by torch.save; save its words and vectors with numpy.savez"),
    "legacy.pth": (
        pickled_by_torch(torch.ones(3), is_zip=False),
        "a pickle, which could execute arbitrary code; sav",
    ),
    "plain.pkl": (pickle.dumps({"the": [1.0]}), "a pickle, which could execute arbitrary code"),
    "gensim.kv": (pickle.dumps(OrderedDict(the=1), protocol=2), "or with gensim's save_word2vec_format("),
    "kv.model.bin": (pickle.dumps({"the": 1}, protocol=5), "or with gensim's save_word2vec_format("),
    "bz2.txt": (bz2.compress(as_text(THREE)), "a bzip2 file; its name should end in .bz2"),
    "gz.vec": (gzip.compress(as_text(THREE)), "a gzip file; its name should end in .gz"),
    "gz.bin": (gzip.compress(as_binary(THREE)), "a gzip file; its name should end in .gz"),
    "xz.txt": (lzma.compress(as_text(THREE)), "an xz file; its name should end in .xz"),
    "zip.txt": (zipped({"v.txt": as_text(THREE)}), "a zip archive; its name should end in .zip"),
    "twice.txt.gz": (gzip.compress(as_text(THREE)), "a gzip file"),
    "page.txt": (
        b"\n <!DOCTYPE html>\n<html><p>404 1 2</p></html>\n",
        "a web page instead of the file; download it",
    ),
    "page.vec": (b"\xef\xbb\xbf<HTML lang=en>404</HTML>", "a web page instead of the file"),
    "page.bin": (b"<!doctype html>", "a web page instead of the file"),
    "lfs.txt": (POINTER, "a Git LFS pointer instead of the file; download it with git lfs pull"),
    "lfs.bin": (POINTER, "a Git LFS pointer instead of the file; download it with git lfs pull"),
    "utf16.txt": (ROWS.encode("utf-16"), "UTF-16; convert it with iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    "utf16be.txt": (b"\xfe\xff" + ROWS.encode("utf-16-be"), "UTF-16; convert it with iconv"),
    "utf32.txt": (ROWS.encode("utf-32"), "UTF-32; convert it with iconv"),
    "tar.txt.gz": (tarred("v.txt", b"3 3\n" + ROWS.encode()), "a tar archive; unpack it first"),
    "binary.txt": (as_binary(THREE), "word2vec's binary form; its name should end in .bin"),
    "binary.vec.gz": (as_binary(THREE, b"\n"), "word2vec's binary form; its name should end in .bin"),
    "wide.txt": (as_binary([("the", np.arange(1, 300) / 7)]), "word2vec's binary form; its name should end in .bin"),
    "text.bin": (b"3 3\n" + ROWS.encode(), "text; its name should end in .txt or .vec"),
    "glove.bin.xz": (ROWS.encode(), "text; its name should end in .txt or .vec"),
    "tabs.bin": (BEHIND_TABS.encode(), "text; its name should end in .txt or .vec"),
    "tabs.bin.gz": (b"3\t3\n" + BEHIND_TABS.encode(), "text; its name should end in .txt or .vec"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_called_what_they_are(tmp_path, name):
    content, what = OTHERS[name]
    path = write(tmp_path, name, content)
    expected = "word2vec's binary form" if ".bin" in name else "word vectors as text"
    for options in ({}, {"on_bad_row": print}):
        said = refusal(load_vectors, path, VOCABULARY, **options)
        assert said.startswith(f"{path}: expected {expected}, got ")
        assert what in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.txt", "BZh 1 2\nthe 3 4\n"),
        ("v.txt", "<html> 1 2\nthe 3 4\n"),
        ("v.txt", "version 1 2\nthe 3 4\n"),
        ("v.txt", "2 2\nPAR1 1 2\nthe 3 4\n"),
        ("v.txt", b"\xff\xfe 1 2\nthe 3 4\n"),  # not UTF-8
        ("v.txt", b"2 2\n\xfc\xe9 1 2\nthe 3 4\n"),
        ("v.txt", "2 2\n\u3000\u4f60 \u4f60 1 2\nthe 3 4\n"),
        ("v.bin", as_binary([("<html>", np.ones(2)), ("the", np.array([3, 4]))])),
    ],
)
def test_vectors_that_look_like_other_files(tmp_path, name, content):
    result = load_vectors(write(tmp_path, name, content), VOCABULARY)
    assert (result.matrix[2].tolist(), result.found) == ([3, 4], 1)

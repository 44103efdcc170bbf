"""Malicious model directories: loaded completely or rejected in one line, and nothing is executed."""

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from esim_fast.classifier import CONFIG, LABELS, VOCABULARY, WEIGHTS
from esim_fast.files import replace_file
from tests.untrusted.hostile import DEEP, PARTS, in_safetensors, load, refused, save_model, unchanged


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path)


FIRST = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
SECOND = FIRST.replace(b"0,4", b"4,8")


def entry(shape: list[int], end: int) -> dict[str, object]:
    """A tensor's entry in the header."""
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


class TestModelDirectories:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_size": 10**8}, "model.safetensors: encoder.lstm"),
            ({"hidden_size": 10**9}, "config.json: "),
            ({"hidden_size": 10**100}, "config.json: "),
            ({"vocab_size": 10**12}, "vocab_size is 1000000000000 in config.json"),
            ({"embedding_dim": -1}, "embedding_dim must be positive"),
            ({"hidden_size": None}, "hidden_size must be an int, got None"),
            ({"hidden_size": True}, "hidden_size must be an int, got True"),
            ({"hidden_size": 1e300}, "hidden_size must be an int"),
            ({"dropout": float("nan")}, "dropout must lie between 0 and 1"),
            ({"dropout": float("inf")}, "dropout must lie between 0 and 1"),
            ({"variant": ["paper"]}, "variant must be"),
            ({"variant": {}}, "variant must be"),
            ({"padding_idx": 10**30}, "padding_idx"),
            ({"model": "Other"}, "expected the configuration of an ESIM"),
            ({"tokenizer": 5}, "expected a tokenizer's name, got 5"),
            ({"tokenizer": "spacy"}, "tokenizer must be one of"),
            ({"hidden_size": 7}, "has shape"),
            ({"num_labels": 4}, "labels.json: 2 entries, but num_labels is 4"),
            ({"device": "nonsense"}, "config.json: device is unknown"),
            ({"padding_idx": 1.5}, "padding_idx must be an int or None, got 1.5"),
            ({"padding_idx": True}, "padding_idx must be an int or None, got True"),
            ({"freeze_embedding": "no"}, "freeze_embedding must be True or False, got 'no'"),
            ({"dropout": "0.5"}, "dropout must be a number, got '0.5'"),
            ({"tokenizer": "../../x"}, "tokenizer must be one of"),
            ({"a\nb\x1b[2J\u2028c": 1}, r"a\nb\x1b[2J\u2028c is unknown"),
            ({"x" * 10**6: 1}, " is unknown"),
            ({"training": "\ud800"}, "surrogates not allowed"),
        ],
    )
    def test_configurations(self, model, changes, message):
        path = model / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        with unchanged(model):
            refused(lambda: load(model), message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[]", "expected a JSON object"),
            (b"\xff\xfe{}", "not valid JSON"),
            (b"[" * DEEP, "nested more than 100 levels deep"),
            (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested more than 100 levels deep"),
            (b'{"training": ' + b"[" * 300 + b"]" * 300 + b"}", "nested more than 100 levels deep"),
            (b'{"model": "ESIM", "model": "ESIM"}', "the key 'model' is repeated"),
            (b'{"training": {"a": 1, "b": 1, "a": 2}}', "the key 'a' is repeated"),
            (b"{" + b"".join(b'"%d": 0,' % n for n in range(10**5)) + b'"9": 1}', "the key '9' is repeated"),
            (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        ],
        ids=repr,
    )
    def test_json(self, model, content, message):
        (model / CONFIG).write_bytes(content)
        refused(lambda: load(model), f"{CONFIG}: ")
        refused(lambda: load(model), message)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (LABELS, b'["a", "a"]', "labels must be distinct"),
            (LABELS, b'["a", 1]', "expected a list of strings"),
            (LABELS, b'["a", "\\ud800"]', "surrogates not allowed"),
            (LABELS, b'{"a": 0, "b": 1}', "expected a JSON array"),
            (LABELS, b"[" * DEEP, "nested more than 100 levels deep"),
            (VOCABULARY, b"", "expected <unk> and <pad> first"),
            (VOCABULARY, b"<unk>\n<pad>\na\nman\na\n", ":5: expected distinct words, got 'a' as on line 3"),
            (VOCABULARY, b"<unk>\n<pad>\na\n\xff\nsleeps\n", "vocabulary.txt:4: not valid UTF-8"),
            (VOCABULARY, b"<pad>\n<unk>\na\nman\nsleeps\n", "vocabulary.txt:1: expected <unk>, got '<pad>'"),
            (VOCABULARY, b"<unk>\n<pad>\n" + b"w\r\n" * 3, "expected a word without line breaks"),
            (VOCABULARY, b"x" * 5_000_000, "vocabulary.txt:1: expected <unk>"),
            (VOCABULARY, b"<unk>\n<pad>\n" + b"\n".join(b"%d" % i for i in range(10**5)), "but vocab_size is 5"),
        ],
    )
    def test_words_and_labels(self, model, name, content, message):
        (model / name).write_bytes(content)
        with unchanged(model):
            refused(lambda: load(model), message)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not a safetensors file"),
            (in_safetensors(b"", length=2**63), "not a safetensors file"),
            (in_safetensors(b"{}", length=2**64 - 1), "not a safetensors file"),
            (in_safetensors(b"{}", length=10**8), "not a safetensors file"),
            (in_safetensors({}), "embedding.weight is missing"),
            (in_safetensors(b"[" * DEEP), "not a safetensors file"),
            (in_safetensors({"a": entry([2**62, 2**62], 0)}), "not a safetensors file"),
            (in_safetensors({"a": entry([10**15], 4 * 10**15)}), "not a safetensors file"),
            (in_safetensors({"a": {**entry([1], 0), "data_offsets": [4, 0]}}, bytes(4)), "not a safetensors file"),
            (in_safetensors({"a": entry([2], 8), "b": entry([2], 8)}, bytes(8)), "not a safetensors file"),
            (in_safetensors({"../../x": entry([0], 0)}), "../../x is not a parameter"),
            (in_safetensors({"a\n\x1b[31mb": entry([0], 0)}), r"a\n\x1b[31mb is not a parameter"),
            (in_safetensors(b'{"a":%s,"a":%s}' % (FIRST, SECOND), bytes(8)), "not a safetensors file"),
        ],
        ids=range(13),
    )
    def test_headers_of_weights(self, model, content, message):
        (model / WEIGHTS).write_bytes(content)
        with unchanged(model):
            refused(lambda: load(model), f"{WEIGHTS}: {message}")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w["linear.mlp.1.weight"][0].fill_(torch.nan), "linear.mlp.1.weight must hold finite"),
            (lambda w: w["embedding.weight"][1].fill_(-torch.inf), "embedding.weight must hold finite"),
            (lambda w: w.update({"linear.mlp.3.bias": torch.zeros(2).to(torch.float8_e4m3fn)}), "linear.mlp.3.bias"),
            (lambda w: w.update({"linear.mlp.3.bias": torch.zeros(2).half()}), "expected tensors of one dtype"),
        ],
    )
    def test_weights(self, model, change, message):
        weights = safetensors.torch.load_file(model / WEIGHTS)
        change(weights)
        safetensors.torch.save_file(weights, model / WEIGHTS)
        with unchanged(model):
            refused(lambda: load(model), f"{WEIGHTS}: ")
            refused(lambda: load(model), message)

    @pytest.mark.parametrize("name", PARTS)
    def test_cut_off(self, model, name):
        """At every byte, in the weights at every thirteenth. A cut inside the last word cannot be detected."""
        whole, path = (model / name).read_bytes(), model / name
        end = whole.index(b"sleeps") if name == VOCABULARY else len(whole.rstrip(b"\n"))
        for place in range(end):
            if len(whole) < 1000 or place < 20 or place % 13 == 0:
                path.write_bytes(whole[:place])
                refused(lambda: load(model), str(model))

    @pytest.mark.parametrize("name", PARTS)
    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{}", b"[]", b"null", b"[" * DEEP], ids=range(6))
    def test_other_content(self, model, name, content):
        (model / name).write_bytes(content)
        refused(lambda: load(model), name)

    @pytest.mark.parametrize("name", PARTS)
    def test_paths_that_are_not_files(self, model, name, tmp_path):
        path = model / name
        path.unlink()
        refused(lambda: load(model), f"{name} is missing")
        path.mkdir()
        refused(lambda: load(model), f"{name} is missing")
        path.rmdir()
        os.mkfifo(path)  # opening it would block
        for target in (tmp_path / "none", path, "/dev/zero"):
            refused(lambda: load(model), f"{name} is missing")
            path.unlink()
            path.symlink_to(target)
        refused(lambda: load(model), f"{name} is missing")

    @pytest.mark.parametrize("name", PARTS)
    def test_a_pickle_in_disguise(self, model, name, bomb):
        (model / name).write_bytes(bomb)
        with unchanged(model):
            refused(lambda: load(model), name)

    def test_a_tokenizer_is_not_imported_unasked(self, model, tmp_path, monkeypatch):
        (tmp_path / "hostile_tokenizer.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'w')\nsplit = str.split\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        path = model / CONFIG
        for name in ("hostile_tokenizer:split", "hostile_tokenizer:", "os:system", ":", "a:b\nc"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer": name}))
            refused(lambda: load(model), "which is imported only if you name it: --tokenizer")
            refused(lambda: load(model, tokenizer="nltk"), "the model was trained with the tokenizer")
        assert not (tmp_path / "executed").exists()
        assert "hostile_tokenizer" not in sys.modules

    def test_saving_into_it_overwrites_nothing_else(self, model, tmp_path):
        """A directory may contain links under the names of temporary files."""
        precious = tmp_path / "precious"
        precious.write_text("mine")
        loaded = load(model)
        for name in PARTS:
            (model / f"{name}.partial").symlink_to(precious)
            (model / name).unlink()
            (model / name).symlink_to(precious)
        loaded.save_pretrained(model)
        assert precious.read_text() == "mine"
        assert not any((model / name).is_symlink() for name in PARTS)
        load(model)
        with contextlib.suppress(OSError):
            (model / "x.partial").mkdir()
            replace_file(model / "x", lambda path: path.write_text("x"))
        assert precious.read_text() == "mine"

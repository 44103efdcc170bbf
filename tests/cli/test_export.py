"""``esim-fast export``: files for ONNX Runtime."""

import json
import re
import sys
from unittest import mock

import numpy as np
import pytest

from tests.cli.commands import esim_fast, fails, succeeds

pytest.importorskip("onnx", reason='needs onnx: pip install "esim_fast[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "esim_fast[onnx]"')


def test_files(model, tmp_path):
    sizes = []
    for options in ([], ["--int8"], ["--words"]):
        done = esim_fast("export", model, tmp_path / "m.onnx", *options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1), done
        assert re.search(rf"^{tmp_path}/m.onnx: \d+ kB, ", done.stderr)
        assert "m.onnx.json for how to use it" in done.stderr
        about = json.loads((tmp_path / "m.onnx.json").read_text())
        assert about["inputs"] == ("words" if options == ["--words"] else "ids")
        sizes.append((tmp_path / "m.onnx").stat().st_size)
    assert sizes[1] < sizes[0] < sizes[2]
    words = {"premise": np.array([["a", "man"]]), "hypothesis": np.array([["dogs", "run"]])}
    lengths = {"premise_lengths": np.array([2]), "hypothesis_lengths": np.array([2])}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], words | lengths)
    said = json.loads(succeeds("predict", model, "--premise", "A man", "--hypothesis", "Dogs run"))
    np.testing.assert_allclose(found[0], [said["probabilities"][label] for label in about["labels"]], atol=1e-4)


def test_mistakes(model, tmp_path):
    assert fails("export", model, "m.onx") == "esim-fast: m.onx: expected a name that ends in .onnx"
    assert "no such model directory" in fails("export", tmp_path / "none", tmp_path / "m.onnx")
    assert "No such file" in fails("export", model, tmp_path / "nowhere" / "m.onnx")
    assert "are required: FILE" in fails("export", model)
    assert list(tmp_path.iterdir()) == []


def test_a_custom_tokenizer(model, tmp_path):
    for file in model.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tokenizer": "mine:split"}))
    said = fails("export", tmp_path, tmp_path / "m.onnx")
    assert f"{tmp_path}: a custom tokenizer cannot be exported. In Python, esim_fast.export.to_onnx(" in said
    assert not (tmp_path / "m.onnx").exists()


def test_without_the_packages(model, tmp_path):
    (tmp_path / "m.onnx").write_text("old")
    with mock.patch.dict(sys.modules, {"onnxruntime": None}):
        message = fails("export", model, tmp_path / "m.onnx")
    assert message == f'esim-fast: {tmp_path}/m.onnx: needs onnxruntime: pip install "esim_fast[onnx]"'
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("m.onnx", "old")]

"""Malicious checkpoints: rejected in one line, and never executed."""

import argparse
import io
import os
import tarfile
import zipfile
from collections import defaultdict

import numpy as np
import pytest
import torch

from esim_fast import ESIM
from esim_fast.compat.checkpoints import convert, read_state_dict, read_words
from esim_fast.training.checkpoint import Checkpoint
from tests.untrusted.fuzz_targets import WORDS
from tests.untrusted.hostile import in_torch, refused, write_zip

# torch 2.15 does not read nested tensors.
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
NESTED = "must be a dense tensor with values" if TORCH < (2, 15) else "torch._utils._rebuild_nested_tensor"


class TestCheckpoints:
    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return dict(ESIM(2, 3, len(WORDS), 2).state_dict())

    @pytest.mark.parametrize("name", ["a.pt", "a.th", "a.safetensors"])
    def test_pickles(self, tmp_path, state, bomb, name):
        path = tmp_path / name
        path.write_bytes(bomb)
        refused(lambda: read_state_dict(path), str(path))
        members = {}
        with zipfile.ZipFile(in_torch(state, tmp_path / "whole.pt")) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        write_zip(path, {name: bomb if name.endswith("data.pkl") else content for name, content in members.items()})
        refused(lambda: read_state_dict(path), str(path))
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:  # the format of torch's first versions
            for name in ("storages", "tensors", "pickle"):
                member = tarfile.TarInfo(f"../{name}")
                member.size = len(bomb)
                archive.addfile(member, io.BytesIO(bomb))
        path.write_bytes(content.getvalue())
        refused(lambda: read_state_dict(path), str(path))

    @pytest.mark.parametrize("legacy", [False, True])
    def test_cut_off(self, tmp_path, state, legacy):
        path = tmp_path / "a.pt"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for place in range(0, len(whole), 41):
            path.write_bytes(whole[:place])
            refused(lambda: read_state_dict(path), str(path))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda s: s.update({"embedding.weight": torch.zeros(1).expand(10**6, 10**6)}),
                "the file stores fewer numbers",
            ),
            (lambda s: s.update({"linear.mlp.3.bias": torch.zeros(1).expand(10**9)}), "the file stores fewer numbers"),
            (
                lambda s: s.update({"linear.mlp.3.bias": torch.zeros(2).to_sparse()}),
                "must be a dense tensor with values",
            ),
            (
                lambda s: s.update({"linear.mlp.3.bias": torch.zeros(2, device="meta")}),
                "must be a dense tensor with values",
            ),
            (lambda s: s.update({"linear.mlp.3.bias": torch.nested.nested_tensor([torch.zeros(2)])}), NESTED),
            (
                lambda s: s.update({"linear.mlp.3.bias": torch.tensor([0.0, torch.nan])}),
                "linear.mlp.3.bias must hold finite",
            ),
            (lambda s: s.update({"linear.mlp.3.bias": torch.zeros(2, dtype=torch.complex64)}), "linear.mlp.3.bias"),
            (lambda s: s.update({"a\nb\x1b": torch.zeros(2)}), r"a\nb\x1b is not a parameter"),
            (lambda s: s.update({"embedding.weight": torch.zeros(0, 3)}), "expected two nonzero dimensions"),
            (lambda s: (s.clear(), s.update({"a\nb": torch.zeros(2)})), r"got a\nb"),
            (lambda s: s.clear(), "expected a state dict"),
        ],
        ids=range(11),
    )
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_tensors(self, tmp_path, state, change, message):
        change(state)
        path = in_torch(state, tmp_path / "a.pt")
        refused(lambda: convert(read_state_dict(path)), message, ValueError)

    def test_nested_mappings(self, tmp_path, state):
        """The search for a state dict visits no level twice and always ends."""
        level: dict[str, object] = {}
        for _ in range(6):
            level = {f"x{number}": level for number in range(400)}
        path = in_torch(level, tmp_path / "a.pt")
        refused(lambda: read_state_dict(path), "expected a state dict")
        level["state"] = state
        level["itself"] = level
        path = in_torch(level, tmp_path / "a.pt")
        assert read_state_dict(path).keys() == state.keys()

    @pytest.mark.parametrize("name", ["a" * 10**6, "a." * 10**6, "embedding." * 10**5, "x_" * 10**6, "loss" * 10**6])
    def test_long_names(self, tmp_path, state, name):
        path = in_torch(
            {f"{name}{end}": torch.zeros(3) for end in ("", ".weight", ".embedding.weight")}, tmp_path / "a.pt"
        )
        refused(lambda: convert(read_state_dict(path)), "", ValueError)
        path = in_torch({**state, name: torch.zeros(3)}, tmp_path / "a.pt")
        refused(lambda: convert(read_state_dict(path)), "is not a parameter of ESIM", ValueError)

    def test_objects_beside_the_weights(self, tmp_path, state, bomb):
        """Skipped objects are not executed either."""

        class Hidden:
            def __reduce__(self) -> tuple[object, ...]:
                return os.mkdir, (str(tmp_path / "executed"),)

        for beside in (
            Hidden(),
            np.array([Hidden()], dtype=object),
            argparse.Namespace(a=Hidden()),
            defaultdict(list, a=Hidden()),
            defaultdict(os.getpid),
        ):
            path = in_torch({"model": state, "beside": beside}, tmp_path / "a.pt")
            refused(lambda path=path: read_state_dict(path), "holds Python objects (")

    def test_paths_that_are_not_files(self, tmp_path):
        os.mkfifo(tmp_path / "a.pt")
        (tmp_path / "b.pt").mkdir()
        (tmp_path / "c.pt").touch()
        for name in ("a.pt", "b.pt", "c.pt"):
            refused(lambda name=name: read_state_dict(tmp_path / name), f"{name}: ")
        refused(lambda: Checkpoint.load(tmp_path / "a.pt"), "expected a file")

    def test_a_pickle_for_words(self, tmp_path, bomb):
        for name in ("words.pkl", "words.json", "words.txt"):
            (tmp_path / name).write_bytes(bomb)
            refused(lambda name=name: read_words(tmp_path / name), "a pickle, which would run code when loaded")

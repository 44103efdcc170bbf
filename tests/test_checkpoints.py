"""Checkpoints in the wild: wrappers around a network, other entries beside it, and errors for the rest."""

import argparse
import copy
import datetime
import itertools
import json
import pickle
import re
import shlex
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from fractions import Fraction
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import esim_fast
from esim_fast.compat import checkpoints, coetaur0
from esim_fast.data import DataError
from esim_fast.files import load_saved
from tests.data.files import zipped
from tests.sources import AllenNLP, Coetaur0, Notebook

WORDS, WIDTH, HIDDEN = 12, 4, 3
# Options that give esim_fast's network the same mathematics.
OPTIONS = {
    "notebook": {"variant": "notebook"},
    "coetaur0": {"padding_idx": 0},
    "allennlp": {"padding_idx": 0, "classifier_activation": "relu"},
}
WRAPPERS = ("esim.", "module.", "_orig_mod.", "model.", "net.")


def state_of(source: str = "coetaur0") -> OrderedDict:
    torch.manual_seed(0)
    if source == "notebook":
        return Notebook(HIDDEN, WIDTH, WORDS, 3).state_dict()
    return {"coetaur0": Coetaur0, "allennlp": AllenNLP}[source](WORDS, WIDTH, HIDDEN).state_dict()


def wrapped(state: dict, prefix: str, **beside: object) -> dict:
    return {**{prefix + name: entry for name, entry in state.items()}, **beside}


def net_for(source: str = "coetaur0") -> esim_fast.ESIM:
    return esim_fast.ESIM(HIDDEN, WIDTH, WORDS, 3, **OPTIONS[source])


def read(content: object, folder: Path, **options: object) -> tuple[dict, list[str]]:
    """The state dict found in a torch.save file, and the notes about it."""
    torch.save(content, folder / "a.pt", **options)
    said: list[str] = []
    return checkpoints.read_state_dict(folder / "a.pt", said.append), said


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], entry) for name, entry in expected.items())


class TestLocation:
    @pytest.mark.parametrize(
        "keys",
        [
            *(
                ["model"],
                ["model_state"],
                ["net_state_dict"],
                ["weights"],
                ["model_state_dict"],
                ["state_dict"],
                ["net"],
            ),
            *(["params"], ["network"], ["ema"], ["checkpoint", "model_state"], ["a", "b", "net"], ["model", "model"]),
        ],
        ids=".".join,
    )
    def test_keys(self, keys, tmp_path):
        state, content = state_of(), state_of()
        for key in reversed(keys):
            content = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, key: content}
        found, said = read(content, tmp_path)
        assert_same(found, state)
        assert not said
        call = "".join(f"[{json.dumps(key)}]" for key in keys)
        for net in (net_for(), coetaur0.ESIM(WORDS, WIDTH, HIDDEN)):
            for strict in (True, False):
                with pytest.raises(RuntimeError, match=r"^expected a state dict, got a checkpoint that ") as caught:
                    net.load_state_dict(content, strict=strict)
            message = str(caught.value)
            assert message.endswith(f": load_state_dict(checkpoint{call})")
            eval(f"net.{message.partition(': ')[2]}", {"net": net, "checkpoint": content})
            assert torch.equal(net.state_dict(keep_vars=True).popitem()[1], state["_classification.4.bias"])

    def test_too_deep_or_nowhere(self, tmp_path):
        for content in ({"a": {"b": {"c": {"d": state_of()}}}}, {"model": {"epoch": 1}}, {"epoch": 2}):
            with pytest.raises(
                DataError, match=r"a\.pt: expected a state dict, or a checkpoint with one as model or state_di"
            ):
                read(content, tmp_path)
        loop: dict = {"a": {}}
        loop["a"]["b"] = loop
        with pytest.raises(DataError, match="expected a state dict"):
            read(loop, tmp_path)

    @pytest.mark.parametrize(
        ("content", "taken", "left"),
        [
            (lambda a, b: {"ema": b, "model": a}, "entry model", "entry ema"),
            (lambda a, b: {"net_state_dict": a, "best": {"model": b}}, "entry net_state_dict", "entry best.model"),
            (lambda a, b: {**a, "best": b}, "outermost", "entry best"),
        ],
    )
    def test_several(self, content, taken, left, tmp_path):
        state = state_of()
        other = {name: entry + 1 for name, entry in state.items()}
        found, said = read(content(state, other), tmp_path)
        assert_same(found, state)
        assert said[0] == f"holds several state dicts: using the {taken}, skipping the {left}"

    def test_other_values_under_names_of_parameters(self, tmp_path):
        rates, steps = dict.fromkeys(state_of(), 0.1), {name: {"step": 1} for name in state_of()}
        found, said = read({"rates": rates, "optimizer": {"state": steps}, "weights": state_of()}, tmp_path)
        assert_same(found, state_of())
        assert not said


class TestWrappers:
    @pytest.mark.parametrize("source", OPTIONS)
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_in_any_order(self, source, count, tmp_path):
        state = state_of(source)
        for prefix in map("".join, itertools.permutations(WRAPPERS, count)):
            entries = wrapped(state, prefix)
            if prefix.endswith(("module.", "esim.")):  # a file for each would be slow
                found, said = read({"state_dict": entries}, tmp_path)
                assert_same(found, state)
                assert not said
            net = net_for(source)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                net.load_state_dict(entries)
            assert torch.equal(net.embedding.weight, next(iter(state.values())))
            assert torch.equal(net.linear.mlp[3].bias, list(state.values())[-1])
            assert list(entries) == [prefix + name for name in state]  # unchanged

    def test_wrappers_of_pytorch(self, tmp_path):
        net = coetaur0.ESIM(WORDS, WIDTH, HIDDEN)
        for wrapper in (nn.DataParallel(net), AveragedModel(net), AveragedModel(nn.DataParallel(net))):
            found, said = read(wrapper.state_dict(), tmp_path)
            assert_same(found, net.state_dict())
            assert said == ["skipped entries that are not part of the network: n_averaged"] * isinstance(
                wrapper, AveragedModel
            )
            for other in (net_for(), coetaur0.ESIM(WORDS, WIDTH, HIDDEN)):
                other.load_state_dict(wrapper.state_dict())
                assert torch.equal(list(other.parameters())[-1], net._classification[4].bias)
        inner = wrapped(AveragedModel(net).state_dict(), "net.")  # inside a custom module
        net_for().load_state_dict(inner)
        net_for().load_state_dict(wrapped(inner, "module."))

    @pytest.mark.parametrize("prefix", ["module.", "net._orig_mod.", ""])
    def test_strictness(self, prefix):
        for net in (net_for(), coetaur0.ESIM(WORDS, WIDTH, HIDDEN)):
            missing, extra = f"{prefix}_composition._encoder.bias_hh_l0", f"{prefix}_extra.weight"
            entries = wrapped(state_of(), prefix, **{"criterion.weight": torch.ones(3), extra: torch.ones(3)})
            entries[f"{prefix}_projection.0.bias"] = torch.zeros(1)
            del entries[missing]
            with pytest.raises(RuntimeError) as caught:
                net.load_state_dict(entries)
            message = str(caught.value)
            assert f'Missing key(s) in state_dict: "{missing}"' in message
            assert re.search(
                rf'Unexpected key.*: ("criterion.weight", "{extra}"|"{extra}", "criterion.weight")', message
            )
            assert f"size mismatch for {prefix}_projection.0.bias: " in message
            del entries[f"{prefix}_projection.0.bias"]
            result = net.load_state_dict(entries, strict=False)
            assert set(result.missing_keys) == {missing, f"{prefix}_projection.0.bias"}
            assert set(result.unexpected_keys) == {"criterion.weight", extra}

    def test_a_counter_of_something_else(self):
        for name in ("n_averaged", "net.n_averaged", "esim.n_averaged"):
            entries = wrapped(state_of(), "net.esim.", **{name: torch.zeros(())})
            with pytest.raises(RuntimeError, match=rf'Unexpected key\(s\) in state_dict: "{name}"'):
                net_for().load_state_dict(entries)

    @pytest.mark.parametrize(("first", "second"), [("online_model.", "ema_model."), ("", "teacher.")])
    def test_two_networks(self, first, second, tmp_path):
        state = state_of()
        entries = {**wrapped(state, first), **wrapped({name: entry + 1 for name, entry in state.items()}, second)}
        with pytest.raises(
            DataError, match=r"a\.pt: expected the entries of one network, got two with the prefixes"
        ) as caught:
            read({"model": entries}, tmp_path)
        with pytest.raises(RuntimeError, match=r"^expected the entries of one network, got two with the prefixes"):
            net_for().load_state_dict(entries)
        message = str(caught.value)
        assert f'with the prefixes "{first}" and "{second}"' in message
        one = eval(message[message.index("{name") :], {"state_dict": entries})
        assert len(one) == len(state)
        net_for().load_state_dict(one)

    def test_entries_that_would_collide(self):
        entries = wrapped(state_of("notebook"), "net.", **{"embedding.weight": torch.zeros(WORDS, WIDTH)})
        with pytest.raises(
            RuntimeError, match=r"^expected one entry for embedding\.weight, got net\.embedding\.weight"
        ):
            net_for().load_state_dict(entries)

    def test_within_a_module_names_are_exact(self):
        outer = nn.ModuleDict({"pairs": net_for()})
        with pytest.raises(RuntimeError, match="Missing key"):
            outer.load_state_dict(wrapped(state_of(), "pairs.module."))
        outer.load_state_dict(wrapped(state_of(), "pairs."))


class TestOtherEntries:
    @pytest.mark.parametrize("prefix", ["", "esim.", "model.net."])
    @pytest.mark.parametrize(
        "names",
        [
            ["criterion.weight"],
            ["loss_fn.weight", "loss.pos_weight"],
            ["class_weights"],
            ["train_loss.mean_value", "val_f1.tp"],
            ["metrics.accuracy.total"],
        ],
        ids=" ".join,
    )
    def test_left_out(self, prefix, names, tmp_path):
        state = state_of()
        found, said = read({"state_dict": wrapped(state, prefix, **dict.fromkeys(names, torch.ones(3)))}, tmp_path)
        assert_same(found, state)
        assert said == [f"skipped entries that are not part of the network: {', '.join(names)}"]

    def test_entries_that_are_not_weights(self, tmp_path):
        beside = {
            "valid.correct": torch.tensor(3),
            "_extra_state": None,
            "epoch": 3,
            "confusion": torch.ones(3, 3).long(),
        }
        found, said = read(wrapped(state_of(), "", **beside), tmp_path)
        assert_same(found, state_of())
        assert said == [
            "skipped entries that are not part of the network: valid.correct, _extra_state, epoch, confusion"
        ]

    def test_entries_outside_the_wrapper(self, tmp_path):
        found, said = read(wrapped(state_of(), "esim.", **{"head.weight": torch.ones(2, 3)}), tmp_path)
        assert_same(found, state_of())
        assert said == ["skipped entries that are not part of the network: head.weight"]

    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize(
        ("name", "shape"),
        [("_gate.weight", (3, 3)), ("scale", ()), ("_attention.loss_free", (2,)), ("glossary.bias", 3)],
    )
    def test_layers_of_another_network(self, prefix, name, shape, tmp_path):
        entries, said = read(wrapped(state_of(), prefix, **{prefix + name: torch.ones(shape)}), tmp_path)
        assert not said
        with pytest.raises(ValueError, match=rf"^{name} is not a parameter of ESIM$"):
            checkpoints.convert(entries)

    def test_an_entry_that_is_not_a_tensor(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.pt: _projection\.0\.bias is not a tensor: save net\.state_dict\(\)"):
            read({**state_of(), "_projection.0.bias": [1.0, 2.0]}, tmp_path)

    def test_parameters(self, tmp_path):
        net = Coetaur0(WORDS, WIDTH, HIDDEN)
        found, _ = read({"params": dict(net.named_parameters())}, tmp_path)
        assert_same(found, net.state_dict())
        assert torch.equal(checkpoints.convert(found).net.linear.mlp[3].bias, net._classification[4].bias)


OBJECTS = {
    "a number of numpy's": np.float64(0.5),
    "others": [np.float32(1), np.int64(2), np.bool_(True), np.str_("a")],
    "arrays": {"losses": np.arange(3.0), "names": np.array(["a", "b"])},
    "options": argparse.Namespace(lr=0.1, path=PosixPath("/tmp"), sizes=[1, 2]),
    "when": [datetime.datetime(2020, 1, 2), datetime.timedelta(3)],
    "history": defaultdict(list, loss=[np.float64(1)]),
}


class TestObjects:
    """Objects saved beside the weights are skipped and never constructed."""

    @pytest.mark.parametrize("name", OBJECTS)
    @pytest.mark.parametrize("legacy", [False, True])
    def test_left_out(self, name, legacy, tmp_path):
        content, allowed = (
            {"epoch": 3, "best": OBJECTS[name], "model": state_of()},
            torch.serialization.get_safe_globals(),
        )
        found, said = read(content, tmp_path, _use_new_zipfile_serialization=not legacy)
        assert_same(found, state_of())
        assert not said
        assert set(torch.serialization.get_safe_globals()) == set(allowed)

    @pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
    def test_of_numpy_1_and_2(self, core, tmp_path):
        torch.save({"best": [np.float64(0.5), np.ones(2)], "model": state_of()}, tmp_path / "a.pt")
        with zipfile.ZipFile(tmp_path / "a.pt") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in members if name.endswith("data.pkl"))
        members[name] = re.sub(rb"numpy\._?core", core.encode(), members[name])
        assert core.encode() + b".multiarray\nscalar" in members[name]
        (tmp_path / "a.pt").write_bytes(zipped(members, zipfile.ZIP_STORED))
        assert_same(checkpoints.read_state_dict(tmp_path / "a.pt"), state_of())

    def test_none_is_constructed(self, tmp_path):
        values = [np.float64(0.5), np.ones(3), argparse.Namespace(lr=0.1), PosixPath("a"), datetime.date(2020, 1, 2)]
        torch.save(values, tmp_path / "a.pt")
        with open(tmp_path / "a.pt", "rb") as file:
            found = load_saved(file, leave_out=True)
        assert len({type(value) for value in found}) == 1
        assert not any(map(vars, found))
        with open(tmp_path / "a.pt", "rb") as file, pytest.raises(pickle.UnpicklingError, match="GLOBAL"):
            load_saved(file)  # the reader of a run's own checkpoint

    def test_others_are_rejected(self, tmp_path):
        for value in (Coetaur0(4, 3, 2), threading.Thread, Fraction(1, 2), np.random.default_rng()):
            with pytest.raises(DataError, match=r"a\.pt: holds Python objects \([\w.]+\).*save net\.state_dict\(\)"):
                read({"model": state_of(), "other": value}, tmp_path)

    def test_in_several_threads(self, tmp_path):
        torch.save({"best": np.float64(0.5), "model": state_of()}, tmp_path / "a.pt")
        failed, allowed = [], torch.serialization.get_safe_globals()

        def work() -> None:
            try:
                for _ in range(20):
                    checkpoints.read_state_dict(tmp_path / "a.pt")
            except DataError as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert set(torch.serialization.get_safe_globals()) == set(allowed)


@pytest.mark.parametrize("name", ["worddict.pkl", "words of a $HOME's.pkl", "words", 'a"b.json'])
def test_a_pickled_dictionary_of_words(name, tmp_path):
    path, words = tmp_path / name, ["_PAD_", "_OOV_", "_BOS_", "_EOS_", "ü"]
    path.write_bytes(pickle.dumps({word: number for number, word in enumerate(words)}))
    with pytest.raises(DataError, match="a pickle, which would run code when loaded: if you trust it") as caught:
        checkpoints.read_words(path)
    message = str(caught.value)
    command, as_json = message[message.index("python -c") :].removesuffix(" instead").rsplit(" and pass ", 1)
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run(["sh", "-c", command.replace("python", shlex.quote(sys.executable), 1)], check=True)
    assert checkpoints.read_words(as_json) == words
    assert arguments[0] == "-c"


def test_a_checkpoint_is_not_modified():
    checkpoint = wrapped(state_of(), "module.", n_averaged=torch.tensor(2))
    before = copy.copy(checkpoint)
    net_for().load_state_dict(checkpoint)
    assert list(checkpoint) == list(before)

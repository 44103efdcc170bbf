"""Names of labels keep the order they are given in, and inputs without an order are rejected."""

from collections import OrderedDict, deque
from types import MappingProxyType

import numpy as np
import pytest

from esim_fast.labels import label_names

NAMES = ["neutral", "entailment", "contradiction"]  # not sorted


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        tuple(NAMES),
        deque(NAMES),
        np.array(NAMES),
        np.array(NAMES, dtype=object),
        {"entailment": 1, "contradiction": 2, "neutral": 0},
        {"entailment": np.int64(1), "neutral": np.int32(0), "contradiction": 2},
        OrderedDict([("contradiction", 2), ("neutral", 0), ("entailment", 1)]),
        {2: "contradiction", 0: "neutral", 1: "entailment"},
        {np.int64(2): "contradiction", np.int64(0): "neutral", np.int64(1): "entailment"},
        {"1": "entailment", "2": "contradiction", "0": "neutral"},  # id2label of a config.json
        MappingProxyType({"1": "entailment", "0": "neutral", "2": "contradiction"}),
    ],
    ids=repr,
)
def test_names_in_the_order_of_their_ids(labels):
    assert label_names(labels) == NAMES


def test_columns_of_pandas():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(["x", *NAMES], index=[3, 2, 0, 1])[1:]
    for labels in (series, pandas.Index(NAMES), series.astype("category"), pandas.Categorical(NAMES)):
        assert label_names(labels) == NAMES
    with pytest.raises(TypeError, match=r"list of names in the order of their ids, got DataFrame$"):
        label_names(pandas.DataFrame({"label": NAMES}))


def test_names_that_are_numbers():
    assert label_names(["1", "0"]) == ["1", "0"]
    assert label_names({"1": 0, "0": 1}) == ["1", "0"]
    assert label_names({"0": "1", "1": "0"}) == ["1", "0"]
    ten = {str(number): f"l{number}" for number in range(11)}
    assert label_names(dict(sorted(ten.items()))) == list(ten.values())  # "10" comes after "9", not after "1"


def test_no_names():
    assert label_names([]) == label_names({}) == label_names(np.array([])) == []


@pytest.mark.parametrize(
    "labels",
    [{*NAMES}, frozenset(NAMES), dict.fromkeys(NAMES).keys(), {0: "a"}.values(), "abc", b"abc", None, 3]
    + [iter(NAMES), (name for name in NAMES), map(str, NAMES), np.array([NAMES]), np.array("a")],
    ids=lambda labels: type(labels).__name__,
)
def test_inputs_without_order_or_names(labels):
    with pytest.raises(TypeError) as caught:
        label_names(labels)
    kind = type(labels).__name__
    assert str(caught.value) == f"labels must be a list of names in the order of their ids, got {kind}"


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([0, 1, 2], "0"),
        (range(1, 3), "1"),
        (["a", None], "None"),
        ((True, False), "True"),
        (np.array([0, 1]), "0"),
        (np.array([b"a", b"b"]), "b'a'"),
        (["a", ["b\n"]], r"\['b\\n'\]"),
        (["a", {1: "x" * 1000}], r"\{1: 'x{35}"),
    ],
)
def test_names_that_are_not_strings(labels, got):
    with pytest.raises(TypeError, match=rf"^labels must be strings, got {got}: pass \[str\(label\) for label in"):
        label_names(labels)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ({"a": 0, "b": 2}, ValueError, "the ids 0 to 1, each once, got 0, 2"),
        ({"a": 1, "b": 2}, ValueError, "the ids 0 to 1, each once, got 1, 2"),
        ({"a": 0, "b": 0}, ValueError, "the ids 0 to 1, each once, got 0, 0"),
        ({"a": -1, "b": 0}, ValueError, "the ids 0 to 1, each once, got -1, 0"),
        ({"a": 0.5, "b": 0}, ValueError, "the ids 0 to 1, each once, got 0.5, 0"),
        ({"a": [0], "b": None}, ValueError, r"the ids 0 to 1, each once, got \[0\], None"),
        ({0: "a", "0": "b"}, ValueError, "the ids 0 to 1, each once, got 0, 0"),
        ({"x": "a", "1": "b"}, ValueError, "the ids 0 to 1, each once, got x, 1"),
        ({"01": "a", "0": "b"}, ValueError, "the ids 0 to 1, each once, got 01, 0"),
        ({0: "a", 1: 5}, TypeError, "map names to ids or ids to names$"),
        ({0: 0}, TypeError, "map names to ids or ids to names$"),
    ],
)
def test_other_dicts(labels, error, message):
    with pytest.raises(error, match=f"^labels given as a dict must .*{message}"):
        label_names(labels)


@pytest.mark.parametrize("labels", [["b", "a", "b"], np.array(["a", "b", "b"]), {0: "b", 1: "b"}, ("b", "b", "a", "a")])
def test_repeats(labels):
    with pytest.raises(ValueError, match=r"^labels must be distinct, got 'b' 2 times$"):
        label_names(labels)


def test_messages_are_one_short_line():
    for labels in (["x" * 5000] * 2, ["a\nb"] * 2, {f"l{i}": i + 1 for i in range(5000)}, {"a\n": "b"}):
        with pytest.raises(ValueError, match=r"^labels") as caught:
            label_names(labels)
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()

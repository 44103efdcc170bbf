"""``esim-fast explain``: pictures, pages and numbers."""

import json
import sys
from unittest import mock

import pytest

from tests.cli.commands import fails, succeeds

PAIR = ("--premise", "A man is sleeping.", "--hypothesis", "A robot runs.")


def test_files(model, tmp_path):
    for form, begin in (("png", b"\x89PNG"), ("html", b"<!DOCTYPE html>"), ("json", b"{")):
        assert succeeds("explain", model, *PAIR, "-o", tmp_path / f"map.{form}") == ""
        assert (tmp_path / f"map.{form}").read_bytes().startswith(begin)
    numbers = json.loads((tmp_path / "map.json").read_text())
    assert (numbers["premise"], numbers["unknown"]) == (["a", "man", "is", "sleeping", "."], ["robot"])
    assert [sum(row) for row in numbers["alpha"]] == pytest.approx([1] * 5, abs=1e-3)


def test_mistakes(model, tmp_path):
    message = "esim-fast: map.gif: expected a name that ends in .png, .html or .json"
    assert fails("explain", model, *PAIR, "-o", "map.gif") == message
    empty = "--premise", " ", "--hypothesis", "b", "-o", tmp_path / "map.json"
    assert fails("explain", model, *empty) == "esim-fast: the premise has no words to explain"
    assert "are required: -o/--output" in fails("explain", model, *PAIR)
    assert "no such model directory" in fails("explain", tmp_path / "none", *PAIR, "-o", "map.json")
    broken = "--premise", b"\xff".decode(errors="surrogateescape"), "--hypothesis", "b", "-o", "map.json"
    assert "argument --premise: not valid UTF-8 at character 1" in fails("explain", model, *broken)
    assert "No such file" in fails("explain", model, *PAIR, "-o", tmp_path / "nowhere" / "map.json")


def test_without_matplotlib(model, tmp_path):
    with mock.patch.dict(sys.modules, {"matplotlib": None}):
        message = fails("explain", model, *PAIR, "-o", tmp_path / "map.png")
        assert '.png needs matplotlib (pip install "esim_fast[plot]"); .html and .json do not' in message
        succeeds("explain", model, *PAIR, "-o", tmp_path / "map.html")
    assert not list(tmp_path.glob("map.png*"))

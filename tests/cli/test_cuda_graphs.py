"""``--cuda-graphs`` of the commands that use a model: the same answers, or why there are no graphs."""

import json
import re

import pytest

from esim_fast import graphs
from tests.cli.commands import fails, succeeds
from tests.training.training_tasks import GraphsOnCPU

NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture
def commands(model, corpus):
    return [
        ["predict", model, "--premise", "A man sleeps.", "--hypothesis", "A man runs."],
        ["predict", model, corpus],
        ["evaluate", model, corpus],
        ["rank", model, "--query", "A man is sleeping.", "--candidates", corpus.with_name("candidates.txt")],
    ]


@pytest.fixture(autouse=True)
def _candidates(corpus):
    corpus.with_name("candidates.txt").write_text("A man sleeps.\nDogs run.\n")


def test_the_same_answers(commands, monkeypatch):
    devices = []

    class Counted(GraphsOnCPU):
        def __init__(self, device):
            devices.append(device.type)

    monkeypatch.setattr(graphs, "CUDAGraphs", Counted)
    for command in commands:
        expected = succeeds(*command, "--device", "cpu")
        assert not devices
        found = succeeds(*command, "--device", "cpu", "--cuda-graphs", "on")
        assert NUMBER.sub("", found) == NUMBER.sub("", expected)
        numbers = [[float(number) for number in NUMBER.findall(text)] for text in (found, expected)]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-6)
        assert [devices.pop()] == ["cpu"]
        assert all(json.loads(line) for line in found.splitlines())


def test_without_a_gpu(commands):
    message = "esim-fast: --cuda-graphs: 'on' needs an NVIDIA GPU, and this device is cpu"
    for command in commands:
        assert fails(*command, "--device", "cpu", "--cuda-graphs", "on") == message
        assert "--cuda-graphs: invalid choice: 'yes'" in fails(*command, "--cuda-graphs", "yes")

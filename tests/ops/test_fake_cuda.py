"""The GPU in fake_cuda notices what a real one forbids, and its schedules differ."""

import collections
import re
import subprocess

import pytest

from tests.ops.cuda_on_cpu import build_mistakes, compiler


@pytest.fixture(scope="session")
def outcomes(once):
    """For each kernel in fake_cuda/mistakes.cpp, the outcomes of all schedules."""
    if (command := compiler()) is None:
        pytest.skip("no C++ compiler here to build CUDA code for the CPU")
    program = once("cuda-mistakes", lambda folder: build_mistakes(folder, command)) / "mistakes"
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found = collections.defaultdict(list)
    for line in printed.replace("\n ", " ").splitlines():  # a line for each outcome
        name, outcome = line.split(": ", 1)
        found[name].append(outcome)
    return found


DEADLOCK = r"deadlock: nobody goes on .*\bblock \d: "


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fewer bytes", rf"an asynchronous store is on its way to a block that has ended|{DEADLOCK}"),
        ("more bytes", DEADLOCK + r"32 threads at mbarrier 128 \(0 arrivals and 16 bytes are missing\)"),
        ("no first barrier", "an mbarrier that was not initialized"),
        ("no last barrier", r"an asynchronous store (is on its way )?to a block that has ended|^0 0 $"),
        ("a warp is missing", DEADLOCK + "32 threads at named barrier 1"),
        ("too little room", DEADLOCK + "1 threads at a counter in global memory"),
        ("writes too far", "wrote outside of its shared memory"),
        ("lanes differ", "shuffle where other lanes are at __syncwarp|__syncwarp where other lanes are at shuffle"),
        ("sends too far", "an address outside of shared memory"),
        ("sends between", "a misaligned address in shared memory"),
    ],
)
def test_mistakes_in_every_schedule(outcomes, name, message):
    assert outcomes[name]
    for outcome in outcomes[name]:
        assert re.search(message, outcome), outcome


@pytest.mark.parametrize("name", ["one buffer", "no wait", "no block barrier", "no last barrier", "late"])
def test_schedules_differ(outcomes, name):
    assert len(outcomes[name]) > 1


def test_no_mistake(outcomes):
    assert len(outcomes["none"]) == len(outcomes["enough room"]) == 1
    assert re.fullmatch(r"(\d+ ){8}", outcomes["none"][0])
    assert outcomes["nobody wrote"] == ["1 "]

"""The number of threads, and how long idle threads spin before they sleep."""

import os
from unittest import mock

import pytest

from esim_fast.cli import threads
from tests.processes import output_of

SPINS = {"GOMP_SPINCOUNT": str(threads.SPINS)}


@pytest.mark.parametrize(
    ("usable", "given", "chosen"),
    [
        (8, {}, SPINS),  # torch's default, which may be one thread per core with two processors
        (2, {}, {"OMP_NUM_THREADS": "2", **SPINS}),
        (2, {"OMP_NUM_THREADS": "5"}, SPINS),
        (2, {"MKL_NUM_THREADS": "5"}, SPINS),
        (2, {"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS": "2"}),
        (8, {"GOMP_SPINCOUNT": "7"}, {}),
    ],
)
def test_user_settings_are_kept(usable, given, chosen):
    with (
        mock.patch.object(threads, "usable_processors", return_value=usable),
        mock.patch.object(os, "cpu_count", return_value=8),
        mock.patch.object(os, "sched_getaffinity", create=True, return_value=set(range(8))),
        mock.patch.dict(os.environ, given, clear=True),
    ):
        threads.choose_threads()
        assert dict(os.environ) == {**given, **chosen}


def test_the_requested_number(model, corpus):
    """A file also gets as many processes; the environment has other settings."""
    program = """
import contextlib, io, sys
from unittest import mock
from esim_fast import cli
cli.choose_threads = lambda: print("torch" in sys.modules, file=sys.__stdout__)  # too late if so
*pair, model, corpus = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):
    cli.main(["predict", model, *pair, "--threads", "1"])
import torch
from esim_fast import streaming
from esim_fast.cli import common
print(torch.get_num_threads())
with (
    contextlib.redirect_stdout(io.StringIO()),
    mock.patch.object(common, "processors", return_value=8),
    mock.patch.object(streaming, "in_parts", wraps=streaming.in_parts) as parts,
):
    cli.main(["predict", model, corpus, "--device", "cpu", "--threads", "3"])
print(torch.get_num_threads(), parts.call_args.args[2])
"""
    pair = ["--premise", "a man", "--hypothesis", "a man"]
    assert output_of(program, *pair, model, corpus, OMP_NUM_THREADS="2").split() == ["False", "1", "3", "3"]

"""The ops with any number of threads, from several threads at once, and in workers of a data loader."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from esim_fast.ops import int8  # importing the ops defines the operators
from tests.ops.ops_in_workers import examples, run_ops
from tests.ops.test_direct_calls import bilstm_int8_call, int8_products_call

OPERATORS = torch.ops.esim_fast
MANY = [2, 3, 8, 64]  # the last ones exceed the cores, sentences and columns to split


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run_masked_pool(batch, dtype):
    x, lengths = drawn(batch, 40, 600, dtype=dtype), torch.arange(batch) * 7 % 41
    v, argmax, count = OPERATORS.masked_pool(x, None, None, lengths, None)
    return [v, argmax, count, OPERATORS.masked_pool_backward(v, argmax, count, None, None, lengths, None, 40)]


def run_local_inference(batch, dtype):
    a, b = drawn(batch, 30, 100, seed=1, dtype=dtype), drawn(batch, 20, 100, seed=2, dtype=dtype)
    arguments = a, b, None, None, torch.arange(batch) * 7 % 31, None, None, None, None, None, 30, 20, False
    m = OPERATORS.local_inference(*arguments)
    return [*m, *OPERATORS.local_inference_backward(*m, *arguments)]


def run_bilstm(batch, dtype):
    sizes = torch.tensor([batch, batch, (batch + 1) // 2, 1, 1])
    rows, hidden = int(sizes.sum()), 50
    gates = [drawn(rows, 4 * hidden, seed=seed) for seed in (3, 4)]
    weights = [drawn(4 * hidden, hidden, seed=seed) / 8 for seed in (5, 6)]
    states = OPERATORS.bilstm_states(torch.cat(gates, 1), OPERATORS.bilstm_pack(*weights), sizes)
    y, c = OPERATORS.bilstm(*gates, *weights, sizes)
    return [states, y, c, *gates, *OPERATORS.bilstm_backward(drawn(rows, 2 * hidden), y, c, *gates, *weights, sizes)]


def run_int8(batch, dtype):
    x = drawn(batch, 3000)
    if not int8.LANES:
        return OPERATORS.quantize_rows(x)
    y = OPERATORS.bilstm_int8(*bilstm_int8_call(torch.tensor([2 * batch, batch]), 7))
    return [*OPERATORS.quantize_rows(x), *OPERATORS.int8_products(*int8_products_call(batch, 300, 150)), y]


def run_embedding_backward(batch, dtype):
    table = torch.empty(9000, 300)  # more than one thread's share
    tokens = torch.arange(50 * batch) * 997 % 9000 // 3
    OPERATORS.embedding_backward(table, drawn(len(tokens), 300), tokens, 4)
    return [table]


RUNS = [run_masked_pool, run_local_inference, run_bilstm, run_int8, run_embedding_backward]


def assert_same_bits(ours, wanted):
    assert all(torch.equal(mine, other) for mine, other in zip(ours, wanted, strict=True))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", [1, 5, 33])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__[4:])
def test_any_number_of_threads(run, batch):
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_num_threads(1)
        alone = run(batch, dtype)
        for count in MANY:
            torch.set_num_threads(count)
            assert_same_bits(run(batch, dtype), alone)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("same_input", [True, False])
def test_several_callers_at_once(same_input):
    batches = [33] * 8 if same_input else [1, 33, 5, 17, 2, 64, 9, 20]
    calls = [(run, batch) for batch in batches for run in RUNS]
    data = examples(1) * 8 if same_input else examples(8)
    for count in (1, 4):
        torch.set_num_threads(count)
        alone = [run(batch, torch.float32) for run, batch in calls]
        alone_packed = [run_ops(*example) for example in data]
        with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(count,)) as pool:
            at_once = [pool.submit(run, batch, torch.float32) for run, batch in calls]
            packed = [pool.submit(run_ops, *example) for example in data]
            for future, wanted in zip([*at_once, *packed], [*alone, *alone_packed], strict=True):
                assert_same_bits(future.result(timeout=120), wanted)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_a_data_loader(method):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.ops.ops_in_workers", method]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            stdout, stderr = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also its workers
            raise
    assert stdout == "same bits\n", stderr

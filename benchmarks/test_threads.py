"""Training steps and predictions of 32 pairs with different settings for idle threads, on an idle and a busy CPU.

Each setting needs its own process, because libgomp reads it on loading. If all settings take less than 50 ms, a round
is the fastest of several calls, as in all benchmarks (measure.py), which hides most stalls.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from benchmarks.measure import DEVICE, Variant
from esim_fast.processors import usable_processors

SPINNING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
SETTINGS = {
    "300,000 spins, libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "100,000 spins": {"GOMP_SPINCOUNT": "100000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "esim_fast: 1,000 spins": {},
    "100 spins": {"GOMP_SPINCOUNT": "100"},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
ROOT = Path(__file__).resolve().parents[1]
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
# For each line on stdin, runs one step or prediction and prints a number computed from its result.
WORKER = """
import sys
from esim_fast.cli.threads import choose_threads
choose_threads()
import torch
from benchmarks.corpus import VOCABULARY, make_batches
from esim_fast import ESIM, data, training
torch.manual_seed(0)
hidden, is_training = int(sys.argv[1]), sys.argv[2] == "training"
net = ESIM(hidden, 300, VOCABULARY, 3, dropout=0.0).train(is_training)
made = make_batches(32, 1)[0]
batch = data.Batch(made.pairs, made.labels, torch.arange(32), 32)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
rest = torch.amp.GradScaler(enabled=False), training.Recipe()
for line in sys.stdin:
    if is_training:
        answer = training.training_step(net, [batch], optimizer, *rest).loss_sum
    else:
        with torch.no_grad():
            answer = net(batch.pairs).square().sum()
    print(answer.item(), flush=True)
"""


def started(stack: ExitStack, code: str, *arguments: str, **settings: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING} | settings
    command, pipe = [sys.executable, "-c", code, *arguments], subprocess.PIPE
    process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, env=environment, cwd=ROOT)
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def answer(process: subprocess.Popen) -> float:
    process.stdin.write(b"\n")
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"the process ended with {process.wait()}")
    return float(line)


@pytest.fixture(scope="module")
def processes():
    with ExitStack() as stack:
        yield stack


@pytest.mark.full
@pytest.mark.skipif(DEVICE.type != "cpu" or usable_processors() < 2, reason="needs several threads of a CPU")
@pytest.mark.parametrize("variant", SETTINGS)
@pytest.mark.parametrize("hidden", [300, 128])
@pytest.mark.parametrize("what", ["training", "inference"])
@pytest.mark.parametrize("busy", [0, 1, 4])
def test_threads(variant, busy, what, hidden, processes, race):
    def variants():
        processes.close()  # stop the previous group's
        for _ in range(busy):
            started(processes, BUSY)
        workers = {name: started(processes, WORKER, str(hidden), what, **own) for name, own in SETTINGS.items()}
        expected = answer(next(iter(workers.values())))

        def check(worker):
            assert answer(worker) == pytest.approx(expected, rel=1e-3)

        return {name: Variant(partial(answer, worker), partial(check, worker)) for name, worker in workers.items()}

    race(variant, variants)

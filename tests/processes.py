"""Commands in processes of their own, forked from one that has imported everything: starting Python takes seconds."""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

from esim_fast.cli import main

SECONDS = 120  # no command here may take longer, or it waits for somebody who is gone
# Modules that commands import when they are run, torch._dynamo with the first optimizer.
COMMANDS = ("train", "evaluate", "predict", "rank", "explain", "convert", "export", "data")
PRELOADED = [f"esim_fast.cli.{command}" for command in COMMANDS]
PRELOADED += [__name__, "tests.training.distributed_worker", "tests.training.interrupted_run", "torch._dynamo"]
PRELOADED += ["matplotlib.backends.backend_agg", "nltk"]

Found = TypeVar("Found")


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # what the server begins with
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # a GPU's addresses alone are more than some tests leave
        forkserver.ensure_running()
    return context


def fork(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Runs a function of a module in a process of its own."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    return process


def places(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of several processes on this machine, as variables of the environment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@dataclass
class Running:
    """A command, with its pipes."""

    process: BaseProcess
    stdin: IO[str] | None
    stdout: IO[str]
    stderr: IO[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def finish(self) -> tuple[int, str, str]:
        """Its exit code, and what it printed and said, when it has ended."""
        if self.stdin:
            self.stdin.close()
        said = "" if self.stdout.closed else self.stdout.read(), self.stderr.read()
        self.process.join(SECONDS)
        return self.process.exitcode, *said


@contextlib.contextmanager
def start(*arguments, stdin=False, together=False, environment=None, directory=None, prepare=None):
    """``esim-fast`` in a process group of its own, which is killed when it takes too long. ``stdin``: there is a pipe
    to write to; ``together``: stderr goes where stdout does; ``prepare`` is called in the process before."""
    (their_input, our_input), (our_output, their_output), (our_errors, their_errors) = (
        multiprocessing.Pipe(duplex=False) for _ in range(3)
    )
    theirs = [their_input if stdin else None, their_output, their_output if together else their_errors]
    process = fork(_command, list(map(str, arguments)), theirs, environment or {}, directory, prepare)
    for end in (their_input, their_output, their_errors):
        end.close()
    files = [_opened(our_input, "w"), _opened(our_output, "r"), _opened(our_errors, "r")]
    watchdog = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        yield Running(process, *files)
        process.join()
    finally:
        watchdog.cancel()
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        for file in files:
            with contextlib.suppress(BrokenPipeError):
                file.close()


def _opened(end: Connection, mode: str) -> IO[str]:
    file = open(os.dup(end.fileno()), mode, encoding="utf-8")  # noqa: SIM115
    end.close()
    return file


def _command(arguments, pipes, environment, directory, prepare):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where tests run in the background
    os.environ.update(environment)
    os.chdir(directory or Path.cwd())
    for number, pipe in enumerate(pipes):
        if pipe is not None:
            os.dup2(pipe.fileno(), number)
    for pipe in filter(None, pipes[:2]):
        pipe.close()
    pipes[2].close()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(look: Callable[[], Found]) -> Found:
    """What ``look`` finds at last."""
    end = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def assert_nobody_is_left(pid: int) -> None:
    """Of the process group that it began."""

    def is_gone() -> bool:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(is_gone)


def output_of(program, *arguments, **environment):
    """What a Python program prints, with what is added to its environment."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    run = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout

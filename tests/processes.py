"""Commands in separate processes, forked from a server that has imported everything, because starting takes seconds."""

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

SECONDS = 120  # longest time of a command, in case it hangs
# Modules that commands import lazily; the first optimizer imports torch._dynamo.
COMMANDS = ("train", "evaluate", "predict", "rank", "explain", "convert", "export", "data")
PRELOADED = [f"esim_fast.cli.{command}" for command in COMMANDS]
PRELOADED += [__name__, "tests.training.distributed_worker", "tests.training.interrupted_run", "torch._dynamo"]
PRELOADED += ["matplotlib.backends.backend_agg", "nltk"]

Found = TypeVar("Found")


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:  # the server's environment
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # a GPU's address space exceeds some tests' memory limits
        forkserver.ensure_running()
    return context


def fork(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Runs a function of a module in a new process."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    return process


def places(count: int) -> list[dict[str, str]]:
    """The environment variables that torchrun sets for each of several processes on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@dataclass
class Running:
    """A running command and its pipes."""

    process: BaseProcess
    stdin: IO[str] | None
    stdout: IO[str]
    stderr: IO[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def finish(self) -> tuple[int, str, str]:
        """Waits for its end; returns the exit code, stdout and stderr."""
        if self.stdin:
            self.stdin.close()
        said = "" if self.stdout.closed else self.stdout.read(), self.stderr.read()
        self.process.join(SECONDS)
        return self.process.exitcode, *said


@contextlib.contextmanager
def start(*arguments, stdin=False, together=False, environment=None, directory=None, prepare=None):
    """``esim-fast`` in a new process group, which is killed if it takes too long.

    ``stdin`` makes a pipe to write to, ``together`` sends stderr to stdout, and ``prepare`` is called first in the
    process.
    """
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
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
    """Calls ``look`` until it finds something, and returns that."""
    end = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def assert_nobody_is_left(pid: int) -> None:
    """Waits until the process group of a command is empty."""

    def is_gone() -> bool:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(is_gone)


def output_of(program, *arguments, **environment):
    """The output of a Python program, with additional environment variables."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    run = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout

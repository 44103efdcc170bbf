"""Runs the command in a process that test_interruptions.py may kill."""

import contextlib
import itertools
import os
import resource
import signal
from pathlib import Path

import torch

from esim_fast.cli import main
from esim_fast.training import Trainer


def run(arguments: list[str], log: Path, at: int | None, file_size: int | None, memory: int | None) -> None:
    """Runs the command and kills it before or after some fsync or rename, counted by ``at``.

    ``file_size`` limits the bytes of a file, and ``memory`` the bytes that training may add to the process.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if memory is not None:
        train = Trainer.run

        def limited(trainer):
            torch.set_num_threads(1)  # more threads would take memory
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
            return train(trainer)

        Trainer.run = limited
    moments, replace, fsync = itertools.count(), os.replace, os.fsync

    def killing(function):
        def step(*arguments):
            if next(moments) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*arguments)
            if next(moments) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        return step

    os.replace, os.fsync = killing(replace), killing(fsync)
    with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = main(arguments)
    os._exit(code)

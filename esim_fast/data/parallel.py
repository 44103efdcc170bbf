"""Distribute work to processes or threads, and return the results in order."""

import multiprocessing
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import torch

from ..errors import DataError
from ..processors import usable_processors

Item = TypeVar("Item")
Result = TypeVar("Result")
ShouldStop: TypeAlias = Callable[[], bool]  # polled in long loops; true once nobody needs the result

_MOST = 16  # workers; with more, the one process that joins their results is the bottleneck
_function: Callable[[Any], Any]  # the function that this worker computes


def processors() -> int:
    """Return how many processes to use: one for each usable CPU, up to ``_MOST``."""
    return min(usable_processors(), _MOST)


def can_fork() -> bool:
    """Return whether this process can fork workers.

    Forking is safe only on Linux, and spawned processes would run a script without a main guard again. Daemonic
    processes, such as a DataLoader's workers, cannot have children.
    """
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def map_in_processes(
    function: Callable[[Item, ShouldStop], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield ``function(item, should_stop)`` for each item in order, computed by ``workers`` processes.

    A long-running function should poll ``should_stop()`` and raise KeyboardInterrupt when it returns true. The workers
    end when this generator is closed or this process ends, in whatever way. Close the generator if you do not exhaust
    it.

    Raises:
        DataError: a process was killed.
        Exception: whatever ``function`` or ``items`` raise.
    """
    # Only this process holds the writing end, so the workers notice both a write and the end of this process.
    hears, tells = os.pipe()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (function, hears, tells))
    is_done = False
    try:
        yield from map_ahead(pool, _work, items, 3 * workers)
        is_done = True
    except BrokenProcessPool as error:
        if sys.version_info < (3, 11, 5):
            _drain(pool)
        raise DataError("a worker process was killed, possibly for lack of memory") from error
    finally:
        try:
            if not is_done:
                os.write(tells, b"." * workers)
            pool.shutdown(cancel_futures=True)
        finally:  # even if Ctrl-C is pressed again
            os.close(tells)
            os.close(hears)


def _drain(pool: ProcessPoolExecutor) -> None:
    """Empty the pipe to the workers until the thread that fills it has ended; else it waits for room (gh-94777)."""
    queue: Any = pool._call_queue  # type: ignore[attr-defined]
    with suppress(OSError):  # the thread has closed the pipe
        while queue._thread is not None and queue._thread.is_alive():
            if queue._reader.poll(0.01):
                os.read(queue._reader.fileno(), 2**16)


def never() -> bool:
    """Return False; the ``should_stop`` of work in this process."""
    return False


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, computed by ``pool``.

    At most ``count`` items are in progress at a time, so memory stays bounded if results are fetched slowly.
    """
    waiting: deque[Future[Result]] = deque()
    items = iter(items)
    while True:
        waiting.extend(pool.submit(function, item) for item in islice(items, count - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()


def _begin(function: Callable[..., Any], hears: int, tells: int) -> None:
    global _function
    gave_up = threading.Event()
    _function = partial(function, should_stop=gave_up.is_set)
    os.close(tells)
    torch.set_num_threads(1)  # each worker has one core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and tells its workers
    threading.Thread(target=_listen, args=(hears, gave_up), daemon=True).start()


def _listen(hears: int, gave_up: threading.Event) -> None:
    """Wait until this worker should stop, or until its parent has ended."""
    if os.read(hears, 1):
        gave_up.set()
        hung_up = select.poll()
        hung_up.register(hears, 0)  # only for hang-up; bytes left in the pipe are for other workers
        hung_up.poll()
    os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)

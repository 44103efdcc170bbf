"""Work dealt out to others, and its results in order."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from .reading import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # what this worker is there for


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Whether there can be other processes to work for this one.

    Only on Linux is forking safe; processes that start afresh would run an unguarded script once more. Daemonic
    processes, such as a DataLoader's workers, may have none.
    """
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in their order, computed by ``workers`` processes.

    They end with this generator and with this process, however these end. Close the generator if it is not exhausted.

    Raises:
        DataError: a process was killed.
        Exception: whatever ``function`` or ``items`` raise.
    """
    context = multiprocessing.get_context("fork")
    # Only this process holds the end to write to: whether it writes there or is gone, its workers hear of it.
    hears_of_end, tells_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin, (function, hears_of_end, tells_end))
    is_done = False
    try:
        yield from map_ahead(pool, _work, items, 3 * workers)
        is_done = True
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed; is memory short?") from error
    finally:
        if not is_done:  # nobody waits for what is under way
            for _ in range(workers):
                tells_end.send(None)
        pool.shutdown(cancel_futures=True)
        tells_end.close()
        hears_of_end.close()


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in their order, computed by ``pool``.

    At most ``count`` items are under way at a time: memory stays bounded if results are not fetched as fast.
    """
    waiting: deque[Future[Result]] = deque()
    items = iter(items)
    while True:
        waiting.extend(pool.submit(function, item) for item in islice(items, count - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()


def _begin(function: Callable[[Any], Any], hears_of_end: Connection, tells_end: Connection) -> None:
    global _function
    _function = function
    tells_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent hears, and ends its workers
    threading.Thread(target=_end_with_parent, args=(hears_of_end,), daemon=True).start()


def _end_with_parent(hears_of_end: Connection) -> None:
    with contextlib.suppress(EOFError):
        hears_of_end.recv()
    os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)

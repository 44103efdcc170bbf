"""Work dealt out to others, and its results in order."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from .reading import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # what this worker is there for


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_leave(function: Callable[..., object]) -> bool:
    """Whether other processes can run a function: on Linux any, elsewhere one that can be pickled.

    From a daemonic process, such as a DataLoader's worker, there are no others to be had.
    """
    if multiprocessing.current_process().daemon:
        return False
    if sys.platform == "linux":
        return True
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in their order, computed by ``workers`` processes.

    The processes end with this one, however it ends.

    Raises:
        DataError: a process was killed.
        Exception: whatever ``function`` or ``items`` raise.
    """
    # Forked processes have everything in memory already; elsewhere than on Linux forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    try:
        yield from map_ahead(ProcessPoolExecutor(workers, context, _begin, (function,)), _work, items, 3 * workers)
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed; is memory short?") from error


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in their order, computed by ``pool``, which ends with that.

    At most ``count`` items are under way at a time: memory stays bounded if results are not fetched as fast.
    """
    waiting: deque[Future[Result]] = deque()
    items = iter(items)
    try:
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(items, count - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent hears, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)

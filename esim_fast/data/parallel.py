"""Work dealt out to others, and its results in order."""

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
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import torch

from ..errors import DataError
from ..processors import usable_processors

Item = TypeVar("Item")
Result = TypeVar("Result")
ShouldStop: TypeAlias = Callable[[], bool]  # polled in long loops; True when nobody needs the result any more

_MOST = 16  # workers: one process puts their results together, and is busy then
_function: Callable[[Any], Any]  # what this worker is there for


def processors() -> int:
    """How many processes may work for this one: one for each processor that it may use, up to ``_MOST``."""
    return min(usable_processors(), _MOST)


def can_fork() -> bool:
    """Whether there can be other processes to work for this one.

    Only on Linux is forking safe; processes that start afresh would run an unguarded script once more. Daemonic
    processes, such as a DataLoader's workers, may have none.
    """
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def map_in_processes(
    function: Callable[[Item, ShouldStop], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield ``function(item, should_stop)`` for each item in their order, computed by ``workers`` processes.

    A function that takes long asks ``should_stop()`` now and then, and raises KeyboardInterrupt if it says so.
    The processes end with this generator and with this one, however these end. Close a generator that is not exhausted.

    Raises:
        DataError: a process was killed.
        Exception: whatever ``function`` or ``items`` raise.
    """
    # Only this process holds the end to write to: whether it writes there or is gone, its workers hear of it.
    hears, tells = os.pipe()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (function, hears, tells))
    is_done = False
    try:
        yield from map_ahead(pool, _work, items, 3 * workers)
        is_done = True
    except BrokenProcessPool as error:
        if sys.version_info < (3, 11, 5):  # where work that nobody takes any more would be waited for (gh-94777)
            pool._call_queue._reader.close()  # type: ignore[attr-defined]
        raise DataError("a worker process was killed; is memory short?") from error
    finally:
        try:
            if not is_done:
                os.write(tells, b"." * workers)
            pool.shutdown(cancel_futures=True)
        finally:  # even if somebody presses Ctrl-C again
            os.close(tells)
            os.close(hears)


def never() -> bool:
    """A ``should_stop`` for work of this process itself: it never stops early."""
    return False


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


def _begin(function: Callable[..., Any], hears: int, tells: int) -> None:
    global _function
    gave_up = threading.Event()
    _function = partial(function, should_stop=gave_up.is_set)
    os.close(tells)
    torch.set_num_threads(1)  # one of several, each on its core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent hears, and tells its workers
    threading.Thread(target=_listen, args=(hears, gave_up), daemon=True).start()


def _listen(hears: int, gave_up: threading.Event) -> None:
    """Waits for word that this worker should come to an end, or for the end of the process that wanted it."""
    if os.read(hears, 1):
        gave_up.set()
        hung_up = select.poll()
        hung_up.register(hears, 0)  # for nothing but that; what is there to be read is for other workers
        hung_up.poll()
    os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)

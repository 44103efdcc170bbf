"""The command line, one file for each command; what they ask for is in arguments.py.

Results go to stdout, progress and messages to stderr. Exit codes: 0; 2, with one line on stderr, for a user's mistake
or what the machine lacks; 1 where `data` finds bad rows; 128 and a signal's number.
"""

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..errors import DataError
from ..memory import bound_caches, short_of_memory
from .arguments import parse
from .options import UsageError, say
from .threads import choose_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    options = parse(arguments)
    bound_caches()
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 whatever the terminal speaks
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _imported(f"{__name__}.{options.command}").run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `esim-fast predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, UsageError) as error:
        # Of several processes, all find the same mistake.
        return 2 if os.environ.get("RANK", "0") != "0" else _fail(error)
    except FloatingPointError as error:
        return _fail(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        reason = short_of_memory(error)
        if reason is not None:
            return _fail(f"out of memory: {reason}")
        raise
    except KeyboardInterrupt:
        say("esim-fast: interrupted")
        return 130
    return code or 0


def _imported(name: str) -> Any:
    """The module of a command. It imports torch, which takes seconds, and so is not there before it is needed."""
    if "torch" not in sys.modules:
        choose_threads()
        gc.disable()  # what imports make stays: looking for garbage in it takes a tenth of a second each time
        try:
            import_module(name)
            gc.freeze()
        finally:
            gc.enable()
        atexit.register(gc.unfreeze)  # or some of them report a leak
    return import_module(name)


def _fail(message: object) -> int:
    say(f"esim-fast: {message}")
    return 2

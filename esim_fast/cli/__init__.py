"""The command line: one module for each command, and their arguments in ``arguments.py``.

Results go to stdout, progress and messages to stderr. Exit codes:

* 0: success.
* 1: ``data`` found bad rows.
* 2: a user's mistake or a limit of the machine, with one line on stderr.
* 128 + N: stopped by signal N.
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
    """Run a command and return its exit code."""
    options = parse(arguments)
    bound_caches()
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 whatever the locale says
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _imported(f"{__name__}.{options.command}").run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as in `esim-fast predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, UsageError) as error:
        # All processes of a run find the same mistake, so only the first one reports it.
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
    """Import a command's module, and with it torch, which takes seconds."""
    if "torch" not in sys.modules:
        choose_threads()
        gc.disable()  # objects that imports make stay, and each garbage collection would take 0.1 s
        try:
            import_module(name)
            gc.freeze()
        finally:
            gc.enable()
        atexit.register(gc.unfreeze)  # without this, some libraries report leaks
    return import_module(name)


def _fail(message: object) -> int:
    say(f"esim-fast: {message}")
    return 2

"""The command line, one file for each command.

Results go to stdout, progress and messages to stderr. Exit codes: 0; 2, with one line on stderr, for a user's mistake
or what the machine lacks; 1 where `data` finds bad rows; 128 and a signal's number.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ..errors import DataError
from ..memory import bound_caches, short_of_memory
from ..training.distributed import lost_connection
from . import convert, data, evaluate, explain, predict, train
from .options import Parser, UsageError, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    options = _parse(arguments)
    bound_caches()
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8 whatever the terminal speaks
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = options.run(options)
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
        if lost_connection(error):
            return _fail("another process of this run has ended")
        raise
    except KeyboardInterrupt:
        say("esim-fast: interrupted")
        return 130
    return code or 0


def _fail(message: object) -> int:
    say(f"esim-fast: {message}")
    return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="esim-fast", description="ESIM for sentence pairs.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('esim_fast')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (train, evaluate, predict, explain, convert, data):
        command.add(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # argparse itself would point to the help of the whole program
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options

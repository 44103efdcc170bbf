"""Errors in users' files and arguments, as messages of one line."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

_LONGEST_MESSAGE = 1000  # characters
# Control characters, line ends, half surrogate pairs, and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class DataError(ValueError):
    """A mistake in a user's file: one line that names the file, the line in it and what was expected."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class OwnTokenizerError(DataError):
    """A model was trained with a tokenizer of somebody's own, which is not imported unless it is asked for."""


class BadRowError(Exception):
    """What is wrong with one row, in a line; whoever knows its file and line makes a DataError of it."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


def one_line(message: object) -> str:
    """A message as a line of bounded length: what it quotes of a file cannot break the line or control a terminal."""
    text = _shortened(str(message))
    if text.isprintable():
        return text
    return _shortened(_CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def listed(names: Sequence[str]) -> str:
    """Names as a list that fits into a message."""
    text = ", ".join(names)
    return text if len(text) <= 200 else f"{text[:200]} …"


def first_line(error: Exception) -> str:
    """The first line of an error's message: libraries often add more."""
    return str(error).partition("\n")[0]


def kind_and_reason(error: Exception) -> str:
    """The type and the first line of an exception from code outside the library."""
    return f"{type(error).__name__}: {first_line(error)}"


def reason_of(error: BaseException) -> str:
    """What the system says went wrong, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError raised inside the block into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: {reason_of(error)}") from error


def _shortened(text: str) -> str:
    """Without its middle, if it is long: a message begins with its place and ends with what is wrong there."""
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} … {text[-half:]}"

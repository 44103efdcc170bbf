"""Errors in users' files and arguments, reported in one line."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

_LONGEST_MESSAGE = 1000  # characters
# Control characters, line ends, lone surrogates, and marks that change the writing direction.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class DataError(ValueError):
    """A mistake in a user's file. The message is one line: the file, the line in it, and what was expected."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class OwnTokenizerError(DataError):
    """The model was trained with a custom tokenizer, which is imported only if you pass it explicitly."""


class BadRowError(Exception):
    """What is wrong with one row, without file and line; the caller knows these and raises DataError."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


def one_line(message: object) -> str:
    """Return a message as one line of bounded length, with control characters escaped.

    Text quoted from a file therefore cannot break the line or control the terminal.
    """
    text = _shortened(str(message))
    if text.isprintable():
        return text
    return _shortened(_CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def listed(names: Sequence[str]) -> str:
    """Join names into a list that is short enough for a message."""
    text = ", ".join(names)
    return text if len(text) <= 200 else f"{text[:200]} …"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; libraries often append more."""
    return str(error).partition("\n")[0]


def kind_and_reason(error: Exception) -> str:
    """Return type and first line of an exception raised by code outside the library."""
    return f"{type(error).__name__}: {first_line(error)}"


def reason_of(error: BaseException) -> str:
    """Return the operating system's description of an error, without the error number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError inside the block into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: {reason_of(error)}") from error


def _shortened(text: str) -> str:
    """Drop the middle of a long text: a message starts with the place and ends with the problem."""
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} … {text[-half:]}"

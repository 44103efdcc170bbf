"""Files that are complete or not there."""

import json
import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under another name first: whoever reads ``path`` finds the old content or all of the new.

    That holds when the process is killed and when the machine stops: content reaches the disk before its name does.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # A full disk does not say whose; nobody knows the other name.
        if error.errno is not None and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes a file as :func:`replace_file` does, for people to read as well."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def first_line(error: Exception) -> str:
    """Of an error's message, which libraries continue over many lines."""
    return str(error).partition("\n")[0]

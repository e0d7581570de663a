"""What every reader of files keeps to, since a file may come from anywhere.

- A file that is refused was not worth more than `allowance` of memory: twice its size and 64 MiB.
  Readers estimate what a table or a text will take before they build it.
- Only regular files are opened: reading a pipe or a device may never end.
- Names and values out of a file are shown short and on one line.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NoReturn

from decodery.core.errors import ModelFileError

SPARE_BYTES = 64 << 20
_SHOWN = 80

# What a parsed value takes at most (key, value, its place in a table), measured on the worst texts
# for Python's parser and for safetensors'.
_VALUE_BYTES = 192


def allowance(size: int) -> int:
    """The bytes of memory that a file of `size` bytes may take before it is refused."""
    return 2 * size + SPARE_BYTES


def require_memory(path: Path, size: int, nbytes: int, what: str) -> None:
    """Raise `ModelFileError` where building `what` takes more than a file of `size` bytes may."""
    if nbytes > allowance(size):
        raise ModelFileError(
            f"{path}: {what} would take about {nbytes >> 20} MiB; a file of {size} bytes may take"
            f" {allowance(size) >> 20}"
        )


def parsed_bytes(text: bytes) -> int:
    """A bound on the memory that JSON takes while it is parsed, found by counting its commas."""
    values = text.count(b",") + text.count(b"[") + text.count(b"{") + 1
    # Text is decoded whole and then cut into strings; one rare character makes all of them wide.
    wide = 2 if text.isascii() else 8
    return _VALUE_BYTES * values + wide * len(text)


def file_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `ModelFileError`."""
    size = file_size(path)
    if size > most:
        raise ModelFileError(f"{path}: {size} bytes, at most {most} are read")
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        fail_to_read(path, error)


def file_size(path: Path) -> int:
    """The size of a regular file. Raises `ModelFileError` for anything else."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        fail_to_read(path, error)
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path}: is not a regular file")
    return status.st_size


def fail_to_read(path: Path, error: Exception) -> NoReturn:
    """Raise `ModelFileError` for a path that the system will not read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    raise ModelFileError(f"{path}: cannot be read: {reason}") from None


def shown(value: object) -> str:
    """A name or value out of a file, safe to print: short, and on one line."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)[:_SHOWN]
    if isinstance(value, dict):
        return "an object"
    return "a list"


def one_line(error: BaseException) -> str:
    """Another library's message, short and on one line; it may quote the file at any length."""
    return " ".join(str(error)[:1000].split())[:200] or type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Whether a compiled library gave up: pyo3's exception for that is no `Exception`."""
    return type(error).__name__ == "PanicException"

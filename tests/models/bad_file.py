"""A model file that is bad on purpose, and what its refusal has to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BIG = 2**64 - 1
NAN, INFINITE = float("nan"), float("inf")


@dataclass(frozen=True)
class BadFile:
    """`write` makes the file in an empty folder and returns what to load."""

    name: str
    write: Callable[[Path], Path]
    said: str

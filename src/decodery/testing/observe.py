"""What every law check uses: the error it raises, a comparable copy of any value, random guards."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np

from decodery.core.row import Row


class LawBroken(AssertionError):
    """A law of decodery does not hold; the message is one line that says which and where."""


def require(holds: bool, reason: str) -> None:
    """Raise `LawBroken` with `reason` unless the law holds."""
    if not holds:
        raise LawBroken(reason)


def fingerprint(value: Any) -> Any:
    """A deep, hashable copy of a value: equal exactly when the values are equal, bit for bit.

    >>> fingerprint([1, np.array([2.0])]) == fingerprint([1, np.array([2.0])])
    True
    """
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, Row):
        return ("row", value.vocab_size, fingerprint(value.scores), fingerprint(value.ids))
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, (str, bytes, int, type(None))):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return (type(value).__name__, *map(fingerprint, fields))
    if isinstance(value, Mapping):
        items = [(fingerprint(key), fingerprint(item)) for key, item in value.items()]
        return ("mapping", *sorted(items, key=repr))
    if isinstance(value, Set):
        return ("set", *sorted(map(fingerprint, value), key=repr))
    if isinstance(value, Sequence):
        return ("sequence", *map(fingerprint, value))
    own = getattr(value, "__dict__", None)
    return (type(value).__name__, fingerprint(own) if own else repr(value))


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def _global_states() -> Any:
    states: list[Any] = [random.getstate(), np.random.get_state()]
    if torch := sys.modules.get("torch"):
        states.append(torch.get_rng_state().numpy())
    return fingerprint(states)


@contextmanager
def _restored() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    own = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch:
            torch.set_rng_state(own)


def without_global_randomness(name: str, behaviour: Callable[[], Any]) -> Any:
    """The fingerprint of `behaviour()`, after a proof that it knows no global random state."""
    seen: list[Any] = []
    with _restored():
        for seed in (1, 2):
            _seed_everything(seed)
            before = _global_states()
            seen.append(fingerprint(behaviour()))
            require(_global_states() == before, f"{name} draws from a global random state")
    require(seen[0] == seen[1], f"{name} is not pure: the same call gave two results")
    return seen[0]

"""First guesses of a Jacobi window: what is put at the places that no law has drawn for yet.

A guess is a token and the law that it is verified against. Any guess is exact that does not look at
what it will be verified with: a token that was chosen somehow has the law of one token, a random
one may have the uniform law that it was drawn from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from decodery.core.errors import ParameterError
from decodery.methods.speculative.law import Law

GuessName = Literal["random", "uniform", "repeat", "lookup"]

HELP = (
    "First guesses: random; uniform (random, verified against the uniform law); repeat (the token"
    " jacobi_distance before); or lookup (what came after the same tokens before)."
)
DISTANCE_HELP = (
    "Where repeat looks: 1 is the token before, the length of a grid's row the one above; default"
    " 1."
)


class Guess(ABC):
    """How first guesses are made. Subclasses are frozen dataclasses of their parameters."""

    @abstractmethod
    def after(self, text: Sequence[int], size: int, uniform: float) -> tuple[int, Law]:
        """The guess after a text (prompt, answer and guesses) of a vocabulary of `size` tokens.

        `uniform` in [0, 1) is fresh noise.
        """

    def instead(self, text: Sequence[int], most: int) -> list[int]:
        """Guesses after a text (prompt and answer) that replace those of the step before.

        At most so many; none unless these know better.
        """
        return []


@dataclass(frozen=True)
class Random(Guess):
    """Any token; `spread` verifies it against the uniform law instead of the law of one token."""

    spread: bool = False

    def after(self, text: Sequence[int], size: int, uniform: float) -> tuple[int, Law]:
        token = int(size * uniform)
        law = Law(np.full(size, 1.0 / size), size) if self.spread else Law.certain(token, size)
        return token, law


@dataclass(frozen=True)
class Repeat(Guess):
    """The token so many places before: the last one, or, in a grid, the one above or beside."""

    distance: int = 1

    def after(self, text: Sequence[int], size: int, uniform: float) -> tuple[int, Law]:
        if len(text) < self.distance:
            return Random().after(text, size, uniform)
        token = text[-self.distance]
        return token, Law.certain(token, size)


@dataclass(frozen=True)
class Lookup(Guess):
    """What came after the same tokens before, in the prompt or the answer; else any token.

    Matches of `longest` down to `shortest` tokens, the last one counts. A text found so replaces
    the guesses of the step before: on text these rarely survive a refusal.
    """

    shortest: int = 2
    longest: int = 4

    def after(self, text: Sequence[int], size: int, uniform: float) -> tuple[int, Law]:
        return Random().after(text, size, uniform)

    def instead(self, text: Sequence[int], most: int) -> list[int]:
        for length in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            place = _last_before_end(text, length)
            if place is not None:
                known = list(text[place:])
                return [known[number % len(known)] for number in range(most)]
        return []


def _last_before_end(text: Sequence[int], length: int) -> int | None:
    """The place after the last earlier occurrence of the last `length` tokens."""
    tail = list(text[-length:])
    for place in range(len(text) - 1, length - 1, -1):
        if text[place - 1] == tail[-1] and list(text[place - length : place]) == tail:
            return place
    return None


def made(name: GuessName, distance: int | None, owner: str) -> Guess:
    """The guess that a method's parameters describe."""
    if distance is not None and name != "repeat":
        raise ParameterError(
            f"{owner}: jacobi_distance has no effect on jacobi_guess={name}; give"
            " jacobi_guess=repeat"
        )
    if name == "repeat":
        return Repeat(distance or 1)
    return Lookup() if name == "lookup" else Random(spread=name == "uniform")

"""Proposers: what may come next after a text, asked for one place at a time, and how sure it is.

A `Proposer` is asked at the end of a text and at places that are drafts themselves, so a tree can
be grown where it is most likely to be reached, and no further than it pays (`adaptive.py`). How
often guesses of a kind come true is learnt as the text goes on: `Chances`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.core.decoder import Task
from decodery.core.source import Source
from decodery.core.tree import Node
from decodery.methods.speculative.drafters import Stream

PRIOR_WEIGHT = 6.0  # guesses that what is assumed of a kind counts for
MEMORY = 60  # guesses after which older ones count half


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that may come next. Guesses of one `kind` come true equally often, at first with
    probability `chance`."""

    token: int
    kind: Hashable
    chance: float


class Watcher(ABC):
    """A proposer at work in one request. A state is what it knows of a place, never changed."""

    @abstractmethod
    def begin(self, stream: Stream) -> Any:
        """The state at the end of a stream."""

    @abstractmethod
    def guesses(self, state: Any) -> Sequence[Guess]:
        """What may come next, tokens all different, none twice."""

    @abstractmethod
    def after(self, state: Any, token: int) -> Any:
        """The state behind a token."""

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        """The stream has moved: these nodes were added below its old tip."""
        return

    def ended(self, stream: Stream) -> None:
        """The stream needs no more guesses."""
        return


class Proposer(ABC):
    """Makes watchers. `costly`: asking it takes time worth measuring."""

    costly: bool = False
    hidden: bool = False  # whether it reads hidden states of grown nodes

    @abstractmethod
    def watcher(self, task: Task) -> Watcher:
        """The proposer for one request. Raises `ParameterError` where it cannot work there."""

    def equipped(self, load: Callable[[str], Source]) -> Proposer:
        """This proposer with the models that it names, loaded."""
        return self


class Chances:
    """How often guesses of each kind came true, of late.

    Of a kind that was seen little, what is `known` of it elsewhere is assumed, such as in earlier
    requests, and of one that nobody has seen what the guess says itself. Who is told passes it on.

    >>> chances = Chances()
    >>> guess = Guess(7, "kind", 0.5)
    >>> chances.of(guess)
    0.5
    >>> for _ in range(40):
    ...     chances.learn(guess, came=True)
    >>> chances.of(guess) > 0.9
    True
    """

    def __init__(self, known: Chances | None = None, memory: int = MEMORY) -> None:
        self._known = known
        self._memory = memory
        self._seen: dict[Hashable, tuple[float, float]] = {}  # kind -> (came true, guesses)

    def of(self, guess: Guess) -> float:
        came, count = self._seen.get(guess.kind, (0.0, 0.0))
        prior = guess.chance if self._known is None else self._known.of(guess)
        return (came + PRIOR_WEIGHT * prior) / (count + PRIOR_WEIGHT)

    def learn(self, guess: Guess, *, came: bool) -> None:
        """One more guess, and whether it came true."""
        before, count = self._seen.get(guess.kind, (0.0, 0.0))
        if count >= self._memory:
            before, count = 0.5 * before, 0.5 * count
        self._seen[guess.kind] = (before + came, count + 1.0)
        if self._known is not None:
            self._known.learn(guess, came=came)

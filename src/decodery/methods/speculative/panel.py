"""Several proposers asked together: guesses of the same token are one, of different ones rivals.

A guess that several share, or that speaks against another, is a kind of its own, so how much to
trust it is learnt apart. A costly proposer is asked where the others are not sure, and rests while
it earns less time than it takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decodery.core.tree import Node
from decodery.methods.speculative.drafters import Stream
from decodery.methods.speculative.proposers import Chances, Guess, Proposer, Watcher

if TYPE_CHECKING:
    from decodery.methods.speculative.adaptive import Price

SURE = 0.5  # chance of a guess beside which costly proposers are not asked
LONGEST_REST = 64  # steps
SMOOTH = 0.1  # weight of the latest step in what a costly proposer earns and takes
MARGIN = 2.0  # times what it takes that a costly proposer must seem to earn: chosen guesses flatter
SHARED = 0.3  # how much of the doubt in the better of two equal guesses the other takes away


@dataclass(eq=False)
class Place:
    """An end of a text, or a candidate below it: how likely it is reached, what is guessed next.

    `states` has the states of proposers by number, as far as they were asked for; `guesses` each
    guess with the chance that it comes true here.
    """

    stream: Stream
    chance: float
    above: Place | None = None
    token: int = -1
    depth: int = 0
    states: dict[int, Any] = field(default_factory=dict[int, Any])
    guesses: list[tuple[Guess, float]] = field(default_factory=list[tuple[Guess, float]])
    origins: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    children: dict[int, Place] = field(default_factory=dict[int, Any])


@dataclass
class _Worth:
    """What a costly proposer has earned and taken, in seconds a step, and how long it rests."""

    earned: float = 0.0
    taken: float = 0.0
    steps: int = 0
    rest: int = 0
    longer: int = 4

    def note(self, earned: float, taken: float) -> None:
        self.steps += 1
        rate = max(SMOOTH, 1.0 / self.steps)
        self.earned += rate * (earned - self.earned)
        self.taken += rate * (taken - self.taken)
        if self.steps >= 4 and self.earned < MARGIN * self.taken:
            self.rest, self.longer = self.longer, min(2 * self.longer, LONGEST_REST)
        elif self.earned > MARGIN * self.taken:
            self.longer = 4


class Panel:
    """The proposers of one request."""

    def __init__(
        self, watchers: Sequence[Watcher], proposers: Sequence[Proposer], chances: Chances
    ) -> None:
        self.watchers = list(watchers)
        self.chances = chances
        self._worth = [_Worth() if item.costly else None for item in proposers]
        self._order = sorted(range(len(self.watchers)), key=lambda number: proposers[number].costly)
        self._seconds = [0.0] * len(self.watchers)  # that each took in this step

    def ask(self, place: Place) -> None:
        """Fill in a place's guesses."""
        found: dict[int, list[tuple[int, Guess]]] = {}
        asked: set[int] = set()
        sure = 0.0
        for number in self._order:
            worth = self._worth[number]
            if worth is not None and (worth.rest or sure > SURE):
                continue
            for guess in self._timed(number, self._guesses, place, number):
                found.setdefault(guess.token, []).append((number, guess))
                asked.add(number)
                sure = max(sure, self.chances.of(guess))
        rivals = len(asked) > 1
        for token, entries in found.items():
            guess = _joined(entries) if len(entries) > 1 else _alone(entries[0][1], rivals)
            place.guesses.append((guess, self.chances.of(guess)))
            place.origins[token] = tuple(number for number, _ in entries)

    def _guesses(self, place: Place, number: int) -> Sequence[Guess]:
        return self.watchers[number].guesses(self._state(place, number))

    def _state(self, place: Place, number: int) -> Any:
        """A proposer's state at a place, which follows from the one above."""
        if number not in place.states:
            watcher = self.watchers[number]
            if place.above is None:
                place.states[number] = watcher.begin(place.stream)
            else:
                above = self._state(place.above, number)
                place.states[number] = watcher.after(above, place.token)
        return place.states[number]

    def _timed(self, number: int, function: Any, *arguments: Any) -> Any:
        if self._worth[number] is None:
            return function(*arguments)
        started = time.thread_time()  # of this thread: not what others take of the processor
        answer = function(*arguments)
        self._seconds[number] += time.thread_time() - started
        return answer

    def settle(self, chosen: Sequence[Place], price: Price) -> None:
        """The step is drafted: weigh what each costly proposer earns against what it took."""
        unit = None if price.costs is None else price.costs.unit
        for number, worth in enumerate(self._worth):
            if worth is None:
                continue
            if worth.rest:
                worth.rest -= 1
            elif unit is not None:
                own = [item for item in chosen if _only(item) == number]
                rows, tokens = len(chosen), 1.0 + sum(item.chance for item in chosen)
                pace = price.of(rows) / tokens  # plain steps a token
                saved = sum(item.chance for item in own) * pace
                earned = saved - (price.of(rows) - price.of(rows - len(own)))
                worth.note(unit * earned, self._seconds[number])
            self._seconds[number] = 0.0

    def moved(self, stream: Stream, path: Sequence[Node], place: Place | None) -> None:
        """The stream has moved: judge what was guessed on the way, from `place` on."""
        for node in path:
            if place is None:
                break
            for guess, _ in place.guesses:
                self.chances.learn(guess, came=guess.token == node.token)
            place = place.children.get(node.token)
        for watcher in self.watchers:
            watcher.moved(stream, path)

    def ended(self, stream: Stream) -> None:
        for watcher in self.watchers:
            watcher.ended(stream)


def _only(place: Place) -> int | None:
    """The one proposer that guessed a candidate, if it was one."""
    assert place.above is not None
    origins = place.above.origins[place.token]
    return origins[0] if len(origins) == 1 else None


def _alone(guess: Guess, rivals: bool) -> Guess:
    return Guess(guess.token, (guess.kind, "against others"), guess.chance) if rivals else guess


def _joined(entries: Sequence[tuple[int, Guess]]) -> Guess:
    best = max(guess.chance for _, guess in entries)
    least = min(guess.chance for _, guess in entries)
    chance = best + SHARED * (1.0 - best) * least
    numbers = tuple(number for number, _ in entries)
    return Guess(entries[0][1].token, ("shared", numbers, round(5 * chance)), chance)

"""Shapes of draft trees that are drawn from a law: which nodes get which candidates.

A shape is asked level by level. It sees the ends of the last level with the draft's law at each
and says which tokens go below which end, in the order they were drawn. All noise is keyed by
sequence, position and how often that position was drafted before, so no two drafts share any.

Jeon et al.: Recursive Speculative Decoding (2024), arXiv:2402.14160, for draws without replacement
along a level (`Branching`, RSD-C) and of whole sequences (`Beam`, RSD-S; Kool, van Hoof, Welling:
Stochastic Beams and Where to Find Them (2019), arXiv:1903.06059).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from decodery.core.errors import ParameterError
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law

Uniform = Callable[[int], float]  # fresh noise of one end, by index, in [0, 1)


@dataclass(eq=False)
class End:
    """The end of a branch while a draft grows: its law, its noise, and what a shape notes on it.

    `log_chance` is ln q of the branch below the tip, `key` its perturbed value (`Beam`).
    """

    law: Law
    uniform: Uniform
    log_chance: float = 0.0
    key: float = 0.0


@dataclass(frozen=True)
class Pick:
    """A candidate below an end, with what the next level needs of it."""

    token: int
    log_chance: float = 0.0
    key: float = 0.0


class Shape(ABC):
    """How many candidates, where, drawn how. Subclasses are frozen dataclasses."""

    drawn: Drawn
    width: int  # candidates of one node, at most
    depth: int  # levels
    nodes: int  # at most

    @abstractmethod
    def level(self, number: int, ends: Sequence[End], most: int) -> list[list[Pick]]:
        """The candidates below each end at level `number`, from 0, in the order they were drawn.

        At most `most` in all. How many an end gets may not depend on which they are.
        """

    @abstractmethod
    def certain(self) -> Shape:
        """This shape with the most probable candidates in place of drawn ones."""


@dataclass(frozen=True)
class Branching(Shape):
    """So many candidates below every node of a level: (3, 2, 1), or (1, 1, 1, 1) for a chain."""

    branching: tuple[int, ...]
    drawn: Drawn = "distinct"

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise ParameterError(f"branching is {self.branching}; allowed are counts from 1 on")
        if self.drawn == "hub" and set(self.branching) != {2}:
            raise ParameterError(f"branching is {self.branching}; a hub draft has two at each node")

    @property
    def width(self) -> int:  # type: ignore[override]
        return max(self.branching)

    @property
    def depth(self) -> int:  # type: ignore[override]
        return len(self.branching)

    @property
    def nodes(self) -> int:  # type: ignore[override]
        level = total = 1
        for count in self.branching:
            level *= count
            total += level
        return total - 1

    def level(self, number: int, ends: Sequence[End], most: int) -> list[list[Pick]]:
        draw = _DRAWS[self.drawn]
        count = min(self.branching[number], most // len(ends))
        if count < (2 if self.drawn == "hub" else 1):
            return [[] for _ in ends]
        return [[Pick(token) for token in draw(end, count)] for end in ends]

    def certain(self) -> Branching:
        return replace(self, drawn="fixed")


@dataclass(frozen=True)
class Beam(Shape):
    """Stochastic beam search: `width` branches a level, drawn without replacement as sequences.

    Each end has ln q of its branch, perturbed by Gumbel noise, as its key; the keys of the
    candidates below it are such that the largest is its own, and the `width` largest of a level
    stay. The largest of Gumbel variables and which one it is are independent, so the candidates of
    an end come in the order of draws without replacement from its law: each next one is drawn from
    what is left of the law, and its key is a Gumbel variable truncated at the one before.

    With `drawn` "fixed" keys are not perturbed: the most probable branches, as in beam search.
    """

    beams: int = 3
    levels: int = 3
    drawn: Drawn = "distinct"

    def __post_init__(self) -> None:
        if min(self.beams, self.levels) < 1:
            raise ParameterError(f"{self.beams} beams and {self.levels} levels: allowed from 1 on")
        if self.drawn not in ("distinct", "fixed"):
            raise ParameterError(f"beams are drawn distinct or fixed, not {self.drawn}")

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.beams

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.levels

    @property
    def nodes(self) -> int:  # type: ignore[override]
        return self.beams * self.levels

    def level(self, number: int, ends: Sequence[End], most: int) -> list[list[Pick]]:
        below = self._likeliest if self.drawn == "fixed" else self._below
        found = [below(end) for end in ends]
        ranked = sorted(
            (-pick.key, place, rank)
            for place, picks in enumerate(found)
            for rank, pick in enumerate(picks)
        )
        kept = [0] * len(found)  # of each end, the first so many: keys fall along its candidates
        for _, place, _ in ranked[: min(self.beams, most)]:
            kept[place] += 1
        return [picks[:count] for picks, count in zip(found, kept, strict=True)]

    def certain(self) -> Beam:
        return replace(self, drawn="fixed")

    def _likeliest(self, end: End) -> list[Pick]:
        worth = [
            (token, end.log_chance + math.log(end.law[token])) for token in end.law.top(self.beams)
        ]
        return [Pick(token, log_chance, log_chance) for token, log_chance in worth]

    def _below(self, end: End) -> list[Pick]:
        picks: list[Pick] = []
        left, mass, key = end.law, 1.0, end.key
        for number in range(self.beams):
            token = left.draw(end.uniform(2 * number))
            if number:
                key = truncated_gumbel(
                    end.log_chance + math.log(mass), key, end.uniform(2 * number + 1)
                )
            picks.append(Pick(token, end.log_chance + math.log(end.law[token]), key))
            fewer = left.without(token)
            mass -= end.law[token]
            if fewer is None or mass <= 0.0:
                break
            left = fewer
        return picks


def truncated_gumbel(location: float, most: float, uniform: float) -> float:
    """A Gumbel variable with this location, given that it is at most `most`.

    G = location - ln E with E exponential; E is at least e^(location - most), and what it is beyond
    that is exponential again.
    """
    extra = -math.log1p(-uniform)
    return location - _log_add(location - most, math.log(extra) if extra > 0.0 else -math.inf)


def _log_add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


# -- candidates of one end -----------------------------------------------------------------------


def _iid(end: End, count: int) -> list[int]:
    return [end.law.draw(end.uniform(number)) for number in range(count)]


def _distinct(end: End, count: int) -> list[int]:
    tokens: list[int] = []
    left: Law | None = end.law
    while left is not None and len(tokens) < count:
        tokens.append(left.draw(end.uniform(len(tokens))))
        left = left.without(tokens[-1]) if len(tokens) < count else None
    return tokens


def _greedy(end: End, count: int) -> list[int]:
    tokens = end.law.top(count - 1)
    rest = end.law.without(*tokens) if tokens else end.law
    return tokens if rest is None else [*tokens, rest.draw(end.uniform(0))]


def _hub(end: End, count: int) -> list[int]:
    hub, first = end.law.argmax(), end.law.draw(end.uniform(0))
    if first != hub:
        return [first, hub]
    rest = end.law.without(hub)
    return [hub] if rest is None else [hub, rest.draw(end.uniform(1))]


def _top(end: End, count: int) -> list[int]:
    return end.law.top(count)


_DRAWS: dict[Drawn, Callable[[End, int], list[int]]] = {
    "iid": _iid,
    "distinct": _distinct,
    "greedy": _greedy,
    "hub": _hub,
    "fixed": _top,
}

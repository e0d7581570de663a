"""The optimal verifier for small vocabularies: a transport of the target's mass to the candidates.

How much of p(x) can be given out while candidate x lies in the set t of candidates, S(t, x):

    maximise sum S,   sum_x S(t, x) <= P(t),   sum_t S(t, x) <= p(x),   S(t, x) = 0 for x not in t.

That linear program is a flow from sets to their tokens; the largest is the best acceptance that any
lossless verifier has for these draws, `bound.bound`. Given t, x is accepted with probability
S(t, x) / P(t), else the token comes from norm(p - sum_t S(t, .)). The text has p's law whatever S
is; only the acceptance needs the largest. There are as many sets as candidates can make, so this is
for proofs and teaching.

Sun et al., SpecTr (2023), arXiv:2310.15141; Edmonds, Karp: Theoretical Improvements in Algorithmic
Efficiency for Network Flow Problems, Journal of the ACM 19 (1972).
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.errors import ParameterError
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law, Masses
from decodery.methods.speculative.verifiers import Rule, Trial

MOST_TOKENS = 8
MOST_CANDIDATES = 4

Set = tuple[int, ...]  # ascending
Plan = dict[Set, dict[int, float]]  # S

_NOTHING = 1e-16  # a way for less than this is closed


@dataclass(frozen=True)
class Transport(Rule):
    """The rule of the best acceptance, for candidates drawn as `of` says."""

    of: Drawn

    most: ClassVar[int | None] = MOST_CANDIDATES
    largest: ClassVar[int | None] = MOST_TOKENS

    def __post_init__(self) -> None:
        if self.of == "fixed":
            raise ParameterError("fixed candidates have no law to transport; rule match is optimal")

    @property
    def drawn(self) -> frozenset[Drawn]:  # type: ignore[override]
        return frozenset({self.of})

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        assert draft is not None
        if target.size > MOST_TOKENS:
            raise ParameterError(f"transport takes {MOST_TOKENS} tokens at most, not {target.size}")
        p, q = tuple(target.whole().tolist()), tuple(draft.whole().tolist())
        chances, plan = _planned(p, q, len(tokens), self.of)
        given = tuple(sorted(set(tokens)))
        left = chances[given]
        for token, mass in plan[given].items():
            yield tokens.index(token), min(1.0, mass / left) if left > 0.0 else 0.0
            left -= mass
        taken = np.zeros(target.size)
        for row in plan.values():
            taken[list(row)] += list(row.values())
        return target.less(Law(taken, target.size).over(target))


@functools.lru_cache(maxsize=64)
def _planned(
    p: tuple[float, ...], q: tuple[float, ...], count: int, drawn: Drawn
) -> tuple[dict[Set, float], Plan]:
    chances: dict[Set, float] = {}
    for tokens, chance in candidate_lists(Law(np.array(q), len(q)), count, drawn):
        given = tuple(sorted(set(tokens)))
        chances[given] = chances.get(given, 0.0) + chance
    return chances, best_plan(np.array(p), chances)


# -- the law of candidates -------------------------------------------------------------------------


def candidate_lists(draft: Law, count: int, drawn: Drawn) -> Iterator[tuple[Set, float]]:
    """All lists of candidates of a node in the order they are drawn, and their probabilities."""
    if drawn == "iid":
        for tokens in itertools.product(_possible(draft), repeat=count):
            yield tokens, float(np.prod([draft[token] for token in tokens]))
    elif drawn == "distinct":
        yield from _distinct(draft, count, (), 1.0)
    elif drawn == "greedy":
        top = tuple(draft.top(count - 1))
        rest = draft.without(*top)
        yield from [(top, 1.0)] if rest is None else _one_more(top, rest, 1.0)
    elif drawn == "hub":
        hub = draft.argmax()
        rest = draft.without(hub)
        if rest is None:
            yield (hub,), 1.0
            return
        yield from (((token, hub), draft[token]) for token in _possible(rest))
        yield from _one_more((hub,), rest, draft[hub])
    else:
        raise ParameterError(f"{drawn} candidates have no law")


def _possible(law: Law) -> list[int]:
    return [token for token in range(law.size) if law[token] > 0.0]


def _one_more(tokens: Set, law: Law, chance: float) -> Iterator[tuple[Set, float]]:
    for token in _possible(law):
        yield (*tokens, token), chance * law[token]


def _distinct(
    law: Law | None, count: int, before: Set, chance: float
) -> Iterator[tuple[Set, float]]:
    if law is None or len(before) == count:
        yield before, chance
        return
    for tokens, odds in _one_more(before, law, chance):
        yield from _distinct(law.without(tokens[-1]), count, tokens, odds)


# -- the flow --------------------------------------------------------------------------------------


def best_plan(target: Masses, chances: Mapping[Set, float]) -> Plan:
    """S of the largest sum: the shortest way that is still open is filled, until there is none."""
    plan: Plan = {given: dict.fromkeys(given, 0.0) for given in chances}
    supply, room = dict(chances), target.tolist()
    while way := _way(plan, supply, room):
        source, last = way[0][0], way[-1][1]
        back = [(after, token) for (_, token), (after, _) in itertools.pairwise(way)]
        amount = min(supply[source], room[last], *(plan[given][token] for given, token in back))
        supply[source] -= amount
        room[last] -= amount
        for given, token in way:
            plan[given][token] += amount
        for given, token in back:
            plan[given][token] -= amount
    return plan


def _way(
    plan: Plan, supply: Mapping[Set, float], room: Sequence[float]
) -> list[tuple[Set, int]] | None:
    """Pairs (set, token): the first set has supply, the last token room; each further set gives up
    the token that the pair before it takes."""
    reached: dict[int, Set] = {}  # token: the set it was reached from
    through: dict[Set, int | None] = {
        given: None for given, left in supply.items() if left > _NOTHING
    }
    waiting = deque(through)
    while waiting:
        given = waiting.popleft()
        for token in given:
            if token in reached:
                continue
            reached[token] = given
            if room[token] > _NOTHING:
                return _trace(token, reached, through)
            for other, row in plan.items():
                if other not in through and row.get(token, 0.0) > _NOTHING:
                    through[other] = token
                    waiting.append(other)
    return None


def _trace(
    token: int, reached: Mapping[int, Set], through: Mapping[Set, int | None]
) -> list[tuple[Set, int]]:
    way: list[tuple[Set, int]] = []
    last: int | None = token
    while last is not None:
        given = reached[last]
        way.append((given, last))
        last = through[given]
    return way[::-1]

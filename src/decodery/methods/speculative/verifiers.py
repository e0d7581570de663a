"""Verifiers: which of the candidates at a node are accepted, and what comes where none is.

A rule is a trial: it yields one candidate after another with the probability that it is accepted
now, and returns the law of the token that comes where all were refused. So one description serves
to decode (each chance meets its own number) and to prove (`outcome` adds up both branches of every
chance: the law of the token, exactly).

    single     x ~ q is accepted with probability min(1, p(x) / q(x)), else norm((p - q)_+)
    recursive  one candidate after another so; p becomes the residual each time, and where they
               were drawn without replacement q loses the refused candidate
    k_seq      SpecTr: all at once against p / rho, with the rho that uses them best
    hub        SpecHub: two candidates, of which one is the most probable token of q
    greedy     the drawn one against q', then whether the residual falls on a most probable one
    match      draw from p, and see whether it is there: for candidates of any origin
    transport  the best there is, by linear programming: small vocabularies (`transport.py`)

Leviathan, Kalman, Matias (2023), arXiv:2211.17192; Miao et al., SpecInfer (2024), arXiv:2305.09781;
Sun et al., SpecTr (2023), arXiv:2310.15141; Jeon et al., Recursive Speculative Decoding (2024),
arXiv:2402.14160; Sun et al., SpecHub (2024), arXiv:2411.05289; Hu et al., Towards Optimal
Multi-draft Speculative Decoding (2025), arXiv:2502.18779.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.distribution import RESIDUAL_FLOOR
from decodery.core.errors import ParameterError
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law, Masses, overlap, ratio

Trial = Generator[tuple[int, float], None, Law]
Chance = Callable[[int], float]  # a fresh number in [0, 1) for the k-th test of a node

BISECTIONS = 60


class Rule(ABC):
    """How the candidates of one node are tried. `drawn`: of which origin they may be.

    Subclasses are frozen dataclasses.
    """

    drawn: ClassVar[frozenset[Drawn]]
    most: ClassVar[int | None] = None  # candidates of a node that it can handle
    largest: ClassVar[int | None] = None  # vocabulary that it can handle

    @abstractmethod
    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        """Yield (number of a candidate, chance that it is accepted now); return the last law."""


@dataclass(frozen=True)
class Match(Rule):
    """Draw from p and look whether it is there. Exact for candidates of any origin."""

    drawn = frozenset({"fixed", "iid", "distinct", "greedy", "hub"})

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left: Law | None = target
        for number, token in enumerate(tokens):
            if token in tokens[:number]:
                continue
            assert left is not None
            yield number, left[token]
            left = left.without(token)
            if left is None:
                return target  # it was certain: never reached
        assert left is not None
        return left


@dataclass(frozen=True)
class Recursive(Rule):
    """Recursive rejection sampling; the single draft is the case of one candidate.

    `of` says which draws it judges, "iid" or "distinct": each needs a rule of its own.
    """

    of: Drawn

    def __post_init__(self) -> None:
        if self.of not in ("iid", "distinct"):
            raise ParameterError(f"recursive rejection is of iid or distinct draws, not {self.of}")

    @property
    def drawn(self) -> frozenset[Drawn]:  # type: ignore[override]
        return frozenset({self.of})

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        assert draft is not None
        left, rest = target, draft
        for number, token in enumerate(tokens):
            yield number, ratio(left[token], rest[token])
            left = left.residual(rest)
            if self.of == "distinct":
                fewer = rest.without(token)
                if fewer is None:
                    break
                rest = fewer
        return left


@dataclass(frozen=True)
class KSeq(Rule):
    """SpecTr's K-SEQ: every candidate against p / rho, i.i.d. drafts."""

    drawn = frozenset({"iid"})

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        assert draft is not None
        rho = k_seq_rho(target, draft, len(tokens))
        for number, token in enumerate(tokens):
            yield number, ratio(target[token] / rho, draft[token])
        beta = overlap(target, draft, rho) / rho
        if beta == 0.0:
            return target
        accepted = 1.0 - (1.0 - beta) ** len(tokens)
        own = draft.over(target)
        return target.less(np.minimum(own, target.masses / rho) * (accepted / beta))


def k_seq_rho(target: Law, draft: Law, count: int) -> float:
    """The rho in [1, count] with 1 - (1 - beta)^count = rho beta, beta = sum min(q, p / rho).

    From above, so that the residual is never negative.
    """

    own = draft.over(target)

    def gap(rho: float) -> float:
        accepted = float(np.minimum(target.masses, rho * own).sum())  # rho beta
        return 1.0 - (1.0 - accepted / rho) ** count - accepted

    low, high = 1.0, float(count)
    if gap(low) <= 0.0:
        return low
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if gap(middle) > 0.0 else (low, middle)
    return high


@dataclass(frozen=True)
class Hub(Rule):
    """SpecHub: two candidates, one of them the most probable token a of the draft."""

    drawn = frozenset({"hub"})
    most = 2

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        assert draft is not None
        hub = draft.argmax()
        rest = draft.without(hub)
        if rest is None:  # q has no other token
            yield 0, ratio(target[hub], draft[hub])
            return target.residual(draft)
        plan = _HubPlan.of(target, draft, rest, hub)
        first, second = tokens
        if second == hub:
            yield 0, ratio(target[first], draft[first])
            yield 1, plan.second
        else:
            wanted = max(0.0, target[second] - draft[second])
            yield 1, ratio(wanted, draft[hub] * rest[second])
            yield 0, plan.first
        return plan.left


@dataclass(frozen=True)
class _HubPlan:
    """The chances of the hub when it came first and second, and the law when both were refused."""

    first: float
    second: float
    left: Law

    @classmethod
    def of(cls, target: Law, draft: Law, others: Law, hub: int) -> _HubPlan:
        p, q = target.whole(), draft.whole()
        pairs = q[hub] * others.whole()  # the hub first, then i
        over, under = np.maximum(p - q, 0.0), np.maximum(q - p, 0.0)
        pairs[hub] = over[hub] = under[hub] = 0.0
        spare_first = float(np.maximum(pairs - over, 0.0).sum())
        spare_second = float(under.sum())
        rest = max(0.0, float(p[hub]) - spare_first)
        left = np.maximum(over - pairs, 0.0)
        left[hub] = max(0.0, rest - spare_second)
        total = float(left.sum())
        return cls(
            ratio(float(p[hub]), spare_first),
            ratio(rest, spare_second),
            Law(left / total, target.size) if total > RESIDUAL_FLOOR else target,
        )


@dataclass(frozen=True)
class Greedy(Rule):
    """The drawn candidate against q', then whether the residual falls on one of the top tokens."""

    drawn = frozenset({"greedy"})

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        assert draft is not None
        *top, last = tokens
        rest = draft.without(*top) if top else draft
        if rest is None:  # the draft has no token but these
            rest = Law.certain(last, target.size)
        yield len(top), ratio(target[last], rest[last])
        left: Law | None = target.residual(rest)
        assert left is not None
        for number, token in enumerate(top):
            yield number, left[token]
            fewer = left.without(token)
            if fewer is None:
                return left
            left = fewer
        return left


# -- what follows from a rule ------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The token that was decided on, and which candidate it is; None where it is none of them."""

    token: int
    number: int | None


def decide(trial: Trial, tokens: Sequence[int], chance: Chance, last: float) -> Verdict:
    """Run a trial: every test meets a number of its own, `last` draws where all were refused."""
    tests = 0
    try:
        while True:
            number, odds = next(trial)
            if chance(tests) < odds:
                return Verdict(tokens[number], number)
            tests += 1
    except StopIteration as end:
        return Verdict(end.value.draw(last), None)


def outcome(
    rule: Rule, target: Law, draft: Law | None, tokens: Sequence[int]
) -> tuple[Masses, float]:
    """The law [size] of the token that a rule decides on, given candidates, and its acceptance."""
    law = np.zeros(target.size)
    alive = 1.0
    trial = rule.trial(target, draft, tokens)
    try:
        while True:
            number, chance = next(trial)
            law[tokens[number]] += alive * chance
            alive *= 1.0 - chance
    except StopIteration as end:
        left: Law = end.value
    accepted = float(law.sum())
    return law + alive * left.whole(), accepted

"""Verifiers with one mistake each, for the tests to reject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law, overlap, ratio
from decodery.methods.speculative.transport import Plan, Set, _planned
from decodery.methods.speculative.verifiers import Recursive, Rule, Trial, k_seq_rho


class Wrong(Rule):
    """A rule with a mistake takes any candidates."""

    drawn = frozenset({"fixed", "iid", "distinct", "greedy", "hub"})


# -- recursive -------------------------------------------------------------------------------------


class Reversed(Wrong):
    """Candidates are tried from the last drawn to the first."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left, rest = target, draft
        for number in reversed(range(len(tokens))):
            yield number, ratio(left[tokens[number]], rest[tokens[number]])
            left = left.residual(rest)
            rest = rest.without(tokens[number])
            if rest is None:
                break
        return left


class WithoutRemoval(Wrong):
    """Refused candidates stay in q: the rule of i.i.d. draws."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        return Recursive("iid").trial(target, draft, tokens)


class RemovalFirst(Wrong):
    """The residual is taken with q after the refused candidate was removed from it."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left, rest = target, draft
        for number, token in enumerate(tokens):
            yield number, ratio(left[token], rest[token])
            rest = rest.without(token)
            if rest is None:
                break
            left = left.residual(rest)
        return left


class RemovalOfDrawsWithReplacement(Wrong):
    """Refused candidates leave q although they may be drawn again: the rule of distinct draws."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        return Recursive("distinct").trial(target, draft, tokens)


class NoResidual(Wrong):
    """Every candidate is judged by p itself, and what comes last is drawn from p."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        for number, token in enumerate(tokens):
            yield number, ratio(target[token], draft[token])
        return target


class LastFromTarget(Wrong):
    """The residual judges the candidates, but what comes last is drawn from p."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left = target
        for number, token in enumerate(tokens):
            yield number, ratio(left[token], draft[token])
            left = left.residual(draft)
        return target


class AcceptsAll(Wrong):
    """The first candidate is the token."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        yield 0, 1.0
        return target


# -- k_seq -----------------------------------------------------------------------------------------


class KSeqOfRho(Wrong):
    """K-SEQ with another rho."""

    def rho(self, target: Law, draft: Law, count: int) -> float:
        return 0.5 * (1.0 + k_seq_rho(target, draft, count))

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        rho = self.rho(target, draft, len(tokens))
        for number, token in enumerate(tokens):
            yield number, ratio(target[token] / rho, draft[token])
        return self.last(target, draft, len(tokens), rho)

    def last(self, target: Law, draft: Law, count: int, rho: float) -> Law:
        beta = overlap(target, draft, rho) / rho
        accepted = 1.0 - (1.0 - beta) ** count
        share = accepted / beta if beta > 0.0 else 0.0
        return target.less(np.minimum(draft.over(target), target.masses / rho) * share)


class KSeqOfOne(KSeqOfRho):
    """rho = 1: each candidate accepted as if it were the only one."""

    def rho(self, target: Law, draft: Law, count: int) -> float:
        return 1.0


class KSeqPlainResidual(KSeqOfRho):
    """The right rho, then the residual of a single draft."""

    def rho(self, target: Law, draft: Law, count: int) -> float:
        return k_seq_rho(target, draft, count)

    def last(self, target: Law, draft: Law, count: int, rho: float) -> Law:
        return target.residual(draft)


class KSeqUnscaledResidual(KSeqPlainResidual):
    """The right rho, then a residual that forgets how often something was accepted."""

    def last(self, target: Law, draft: Law, count: int, rho: float) -> Law:
        return target.less(np.minimum(draft.over(target), target.masses / rho))


# -- hub -------------------------------------------------------------------------------------------


class HubPairsByDraft(Wrong):
    """Both are judged by q, as if each had been drawn alone; then the plain residual."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        hub = draft.argmax()
        for number, token in sorted(enumerate(tokens), key=lambda item: item[1] == hub):
            yield number, ratio(target[token], draft[token])
        return target.residual(draft)


class HubFirst(Wrong):
    """The hub is judged first whatever came first, by its own q; the other one by the residual."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        hub = draft.argmax()
        yield list(tokens).index(hub), ratio(target[hub], draft[hub])
        left = target.residual(draft)
        for number, token in enumerate(tokens):
            if token != hub:
                yield number, ratio(left[token], draft[token])
        return left


class HubAsDistinct(Wrong):
    """Pairs with a hub judged as draws without replacement."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        return Recursive("distinct").trial(target, draft, tokens)


# -- greedy ----------------------------------------------------------------------------------------


class RatioOfTop(WithoutRemoval):
    """The certain candidates are judged by the ratio p / q, as if they had been drawn."""


class GreedyByDraft(Wrong):
    """The drawn candidate is judged by q, not by q' = q without the top tokens."""

    def judged(self, draft: Law, top: Sequence[int], last: int) -> Law:
        return draft

    def residual(self, target: Law, draft: Law, rest: Law) -> Law:
        return target.residual(draft)

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        *top, last = tokens
        rest = draft.without(*top) if top else draft
        rest = rest or Law.certain(last, target.size)
        yield len(top), ratio(target[last], self.judged(draft, top, last)[last])
        left = self.residual(target, draft, rest)
        for number, token in enumerate(top):
            yield number, left[token]
            left = left.without(token)
            if left is None:
                return target
        return left


class GreedyResidualByDraft(GreedyByDraft):
    """The drawn candidate is judged by q', the residual is that of q."""

    def judged(self, draft: Law, top: Sequence[int], last: int) -> Law:
        return (draft.without(*top) if top else draft) or Law.certain(last, draft.size)


class GreedyMembersFirst(Wrong):
    """Sees first whether p falls on a top token, then judges the drawn one by p itself."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        *top, last = tokens
        rest = (draft.without(*top) if top else draft) or Law.certain(last, target.size)
        left: Law | None = target
        for number, token in enumerate(top):
            yield number, left[token]
            left = left.without(token)
            if left is None:
                return target
        yield len(top), ratio(target[last], rest[last])
        return left.residual(rest)


# -- match -----------------------------------------------------------------------------------------


class MatchUnconditional(Wrong):
    """Every candidate is tried with p, though those before it were refused."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left: Law | None = target
        for number, token in enumerate(tokens):
            if token not in tokens[:number]:
                yield number, target[token]
                left = left.without(token) or target
        return left


class MatchRedraws(Wrong):
    """Where nothing matched a new token is drawn from p, which may be a refused one."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left: Law | None = target
        for number, token in enumerate(tokens):
            if token in tokens[:number]:
                continue
            yield number, left[token]
            left = left.without(token)
            if left is None:
                return target
        return target


class MatchByDraft(Wrong):
    """What is matched is drawn from q."""

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        left: Law | None = draft
        for number, token in enumerate(tokens):
            if token in tokens[:number]:
                continue
            yield number, left[token]
            left = left.without(token)
            if left is None:
                return target
        return target


# -- transport -------------------------------------------------------------------------------------


class TransportOf(Wrong):
    """The optimal verifier with a mistake, for candidates drawn as `of` says."""

    def __init__(self, of: Drawn) -> None:
        self.of = of

    def chance(self, mass: float, whole: float, left: float) -> float:
        return mass / left

    def last(self, target: Law, taken: np.ndarray) -> Law:
        return target.less(taken)

    def taking(self, plan: Plan, given: Set) -> list[dict[int, float]]:
        return list(plan.values())

    def trial(self, target: Law, draft: Law | None, tokens: Sequence[int]) -> Trial:
        p, q = tuple(target.masses.tolist()), tuple(draft.masses.tolist())
        chances, plan = _planned(p, q, len(tokens), self.of)
        given = tuple(sorted(set(tokens)))
        left = chances[given]
        for token, mass in plan[given].items():
            odds = self.chance(mass, chances[given], left) if left > 0.0 else 0.0
            yield tokens.index(token), min(1.0, odds)
            left -= mass
        taken = np.zeros(target.size)
        for row in self.taking(plan, given):
            taken[list(row)] += list(row.values())
        return self.last(target, taken)


class TransportLastFromTarget(TransportOf):
    """What comes last is drawn from p."""

    def last(self, target: Law, taken: np.ndarray) -> Law:
        return target


class TransportUnconditional(TransportOf):
    """S(t, x) / P(t) for every x, though those before it were refused."""

    def chance(self, mass: float, whole: float, left: float) -> float:
        return mass / whole


class TransportUnscaled(TransportOf):
    """S(t, x) itself is the chance."""

    def chance(self, mass: float, whole: float, left: float) -> float:
        return mass


class TransportOfOneSet(TransportOf):
    """The residual takes away only what the candidates at hand were given."""

    def taking(self, plan: Plan, given: Set) -> list[dict[int, float]]:
        return [plan[given]]


WRONG: dict[str, list[tuple[Drawn, Rule]]] = {
    "recursive": [
        ("distinct", Reversed()),
        ("distinct", WithoutRemoval()),
        ("distinct", RemovalFirst()),
        ("distinct", AcceptsAll()),
        ("iid", RemovalOfDrawsWithReplacement()),
        ("iid", NoResidual()),
        ("iid", LastFromTarget()),
    ],
    "k_seq": [
        ("iid", KSeqOfRho()),
        ("iid", KSeqOfOne()),
        ("iid", KSeqPlainResidual()),
        ("iid", KSeqUnscaledResidual()),
    ],
    "hub": [
        ("hub", HubPairsByDraft()),
        ("hub", HubFirst()),
        ("hub", HubAsDistinct()),
    ],
    "greedy": [
        ("greedy", RatioOfTop()),
        ("greedy", GreedyByDraft()),
        ("greedy", GreedyResidualByDraft()),
        ("greedy", GreedyMembersFirst()),
    ],
    "match": [
        ("iid", MatchUnconditional()),
        ("distinct", MatchRedraws()),
        ("greedy", MatchByDraft()),
    ],
    "transport": [
        ("iid", TransportLastFromTarget("iid")),
        ("distinct", TransportUnconditional("distinct")),
        ("greedy", TransportUnscaled("greedy")),
        ("iid", TransportOfOneSet("iid")),
    ],
}

"""How often a rule accepts a candidate, on average over its drafter's law: to set beside the bound.

Closed forms where there are any. Recursive rejection of draws without replacement has none: there
the chance that all n are refused is a product along the refused candidates,

    prod over t of (1 - sum min(r_t, q_t)),    x_t ~ norm((q_t - r_t)_+),

which is summed over all of them where the draft has few tokens, and otherwise averaged over `paths`
of them that a fixed low-discrepancy sequence draws: a function of p and q, without noise. `Match`
on such draws is treated alike.

Roberts: The Unreasonable Effectiveness of Quasirandom Sequences (2018), for the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.errors import ParameterError
from decodery.core.tree import Node
from decodery.methods.speculative.bound import bound
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.law import Law, overlap
from decodery.methods.speculative.speculation import Watch
from decodery.methods.speculative.verifiers import KSeq, Match, Recursive, Rule, k_seq_rho
from decodery.methods.speculative.walks import Place

PATHS = 32
SMALL = 8  # tokens of a draft's law over which sums are complete

Chooser = Callable[[Law, int], Iterator[tuple[int, float]]]  # tokens of a law and their weights


def acceptance(
    rule: Rule, target: Law, draft: Law, count: int, drawn: Drawn, paths: int = PATHS
) -> float:
    """The chance that a rule accepts one of `count` candidates that are drawn like this."""
    if drawn == "fixed":
        raise ParameterError("fixed candidates have no law to average over")
    if isinstance(rule, Match):
        return _matched(target, draft, count, drawn, paths)
    if isinstance(rule, KSeq):
        rho = k_seq_rho(target, draft, count)
        return 1.0 - (1.0 - overlap(target, draft, rho) / rho) ** count
    if isinstance(rule, Recursive) and drawn == "distinct":
        return 1.0 - _mean(draft, count, paths, lambda way: _refused(target, draft, count, way))
    if isinstance(rule, Recursive):
        return 1.0 - _refused_iid(target, draft, count)
    return bound(target, draft, count, drawn)  # greedy, hub and transport reach it


def _refused_iid(target: Law, draft: Law, count: int) -> float:
    refused, left = 1.0, target
    for _ in range(count):
        refused *= max(0.0, 1.0 - overlap(left, draft))
        left = left.residual(draft)
    return refused


def _refused(target: Law, draft: Law | None, count: int, way: Chooser) -> float:
    """The chance that `count` draws without replacement are all refused, along a way."""
    if count == 0 or draft is None:
        return 1.0
    missed = max(0.0, 1.0 - overlap(target, draft))
    if count == 1 or missed == 0.0:
        return missed
    left = target.residual(draft)
    return missed * sum(
        weight * _refused(left, draft.without(token), count - 1, way)
        for token, weight in way(draft.residual(target), count)
    )


def _matched(target: Law, draft: Law, count: int, drawn: Drawn, paths: int) -> float:
    if drawn == "iid":
        return float(target.over(draft) @ (1.0 - (1.0 - draft.masses) ** count))
    if drawn == "distinct":
        return _mean(draft, count, paths, lambda way: _found(target, draft, count, way))
    top = draft.top(count - 1)  # a hub draft has the sets of a greedy one, as often
    rest = draft.without(*top) if top else draft
    drawn_one = 0.0 if rest is None else float(target.over(rest) @ rest.masses)
    return sum(target[token] for token in top) + drawn_one


def _found(target: Law, draft: Law | None, count: int, way: Chooser) -> float:
    """The target's mass of `count` draws without replacement, along a way."""
    if draft is None:
        return 0.0
    first = float(target.over(draft) @ draft.masses)
    if count == 1:
        return first
    return first + sum(
        weight * _found(target, draft.without(token), count - 1, way)
        for token, weight in way(draft, count)
    )


def _mean(draft: Law, count: int, paths: int, along: Callable[[Chooser], float]) -> float:
    """The mean of `along` over ways: one that takes all tokens, or so many that draw."""
    if count == 1 or np.count_nonzero(draft.masses) <= SMALL:
        return along(_all)
    return sum(along(_path(number, count)) for number in range(paths)) / paths


def _all(law: Law, _left: int) -> Iterator[tuple[int, float]]:
    ids = np.arange(law.size) if law.ids is None else law.ids
    return ((int(ids[place]), float(law.masses[place])) for place in np.flatnonzero(law.masses))


def _path(number: int, count: int) -> Chooser:
    """The way that draws with point `number` of the sequence in count - 1 dimensions."""
    ratio = 1.5
    for _ in range(40):  # the root of x^count = x + 1
        ratio = (1.0 + ratio) ** (1.0 / count)

    def way(law: Law, left: int) -> Iterator[tuple[int, float]]:
        yield law.draw((0.5 + (number + 1) * ratio ** -(count - left + 1)) % 1.0), 1.0

    return way


@dataclass
class Optimum(Watch):
    """The acceptance of a rule at the nodes where it was asked, and the best there could be."""

    rule: Rule
    drawn: Drawn
    nodes: int = 0
    bound: float = 0.0
    acceptance: float = 0.0

    name: ClassVar[str] = "optimum"
    weight: ClassVar[str] = "nodes"
    means: ClassVar[tuple[str, ...]] = ("bound", "acceptance")

    def note(self, draft: Candidates, path: Sequence[Node], place: Place) -> None:
        for node in (draft.tip, *path[:-1]):
            children = draft.children.get(node)
            if not children or node not in draft.laws:  # certain candidates have no law
                return
            count = 2 if self.drawn == "hub" else len(children)
            target, law = place.law(node), draft.laws[node]
            self.nodes += 1
            self.bound += bound(target, law, count, self.drawn)
            self.acceptance += acceptance(self.rule, target, law, count, self.drawn)

    def to_dict(self) -> dict[str, float | None]:
        """Means over the nodes; none where no node was verified."""
        seen = self.nodes > 0
        return {
            "nodes": self.nodes,
            "bound": self.bound / self.nodes if seen else None,
            "acceptance": self.acceptance / self.nodes if seen else None,
        }

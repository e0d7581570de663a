"""Block verification with one mistake each, for the tests to reject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.law import Law, Masses
from decodery.methods.speculative.walks import Place, Walk


class PlainBlock(Walk):
    """Block verification of a chain without ends, in parts that a mistake can replace."""

    drawn = frozenset({"iid", "distinct"})
    most = 1

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        nodes: list[Node] = []
        while children := draft.children.get(([draft.tip, *nodes])[-1]):
            nodes.append(children[0])
        above = [draft.tip, *nodes]
        weights = [1.0]
        for parent, node in zip(above, nodes, strict=False):
            ratio = place.law(parent)[node.token] / draft.laws[parent][node.token]
            weights.append(self.weight(weights[-1], ratio))
        passed: list[bool] = []
        for number, node in enumerate(nodes, 1):
            inner = number < len(nodes)
            left = self.left(place.law(node), draft.laws[node], weights[number]) if inner else None
            passed.append(self.number(draft, place, number) < self.chance(weights[number], left))
        kept = self.kept(passed)
        end = above[kept]
        if kept == len(nodes):
            return [*nodes, place.last(end, place.draw(end))]
        left = self.left(place.law(end), draft.laws[end], self.last_weight(weights[kept]))
        law = Law.dense(left) if left.sum() > 0.0 else place.law(end)
        return [*nodes[:kept], place.last(end, law.draw(place.uniform(end, "residual")))]

    def number(self, draft: Candidates, place: Place, test: int) -> float:
        return place.uniform(draft.tip, "accept", test)

    def weight(self, before: float, ratio: float) -> float:
        return min(1.0, before * ratio)

    def left(self, target: Law, draft: Law, weight: float) -> Masses:
        return np.maximum(weight * target.whole() - draft.whole(), 0.0)

    def chance(self, weight: float, left: Masses | None) -> float:
        if left is None or weight > 1.0:
            return min(1.0, weight)
        mass = float(left.sum())
        return mass / (mass + 1.0 - weight) if mass > 0.0 else 0.0

    def kept(self, passed: Sequence[bool]) -> int:
        return max((number for number, one in enumerate(passed, 1) if one), default=0)

    def last_weight(self, weight: float) -> float:
        return weight


class Unclipped(PlainBlock):
    """The running product may exceed 1."""

    def weight(self, before: float, ratio: float) -> float:
        return before * ratio


class FirstFailure(PlainBlock):
    """Ends at the first test that fails, not behind the last that passes."""

    def kept(self, passed: Sequence[bool]) -> int:
        return [*passed, False].index(False)


class ChanceIsWeight(PlainBlock):
    """Every prefix is tested with its running product, as the last one is."""

    def chance(self, weight: float, left: Masses | None) -> float:
        return weight


class PlainResidual(PlainBlock):
    """What comes behind is drawn from norm((p - q)_+), as token by token."""

    def last_weight(self, weight: float) -> float:
        return 1.0


class OneNumber(PlainBlock):
    """All tests of a chain meet one number."""

    def number(self, draft: Candidates, place: Place, test: int) -> float:
        return place.uniform(draft.tip, "accept")


WRONG_BLOCKS: list[Walk] = [
    Unclipped(),
    FirstFailure(),
    ChanceIsWeight(),
    PlainResidual(),
    OneNumber(),
]

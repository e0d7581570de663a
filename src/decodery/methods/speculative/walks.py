"""Walks: from the grown candidates of a stream to the path that is accepted.

    NodeWise     at each node a rule (`verifiers.py`) accepts a candidate or ends the walk
    Block        a chain is judged as a whole: never fewer tokens than token by token, still exact
    Conditional  all candidates above an adaptive threshold; the longest path of such: lossy

Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami, Suresh: Block Verification Accelerates Speculative
Decoding (2024), arXiv:2403.10444. Wang et al.: Alignment-Augmented Speculative Decoding (2025),
arXiv:2505.13204, for the adaptive threshold.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from decodery.core.decoder import Task
from decodery.core.distribution import RESIDUAL_FLOOR
from decodery.core.errors import ParameterError
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.verifiers import Match, Rule, Verdict, decide


@dataclass
class Place:
    """What a walk may use at the nodes of one stream: laws, noise, ends."""

    task: Task
    sequence: int
    greedy: bool = False

    def law(self, node: Node) -> Law:
        """The policy's law of the token after a node."""
        return Law.of(node.policy_row(self.sequence))

    def draw(self, node: Node) -> int:
        """The token after a node as plain decoding takes it."""
        row = node.policy_row(self.sequence)
        return row.argmax() if self.greedy else node.draw(self.sequence)

    def uniform(self, node: Node, purpose: str, index: int = 0) -> float:
        return self.task.stream.uniform(self.sequence, node.depth, purpose, index)

    def is_over(self, node: Node) -> bool:
        """Whether the text ends with a node."""
        return self.task.stopping.reason(node) is not None

    def last(self, node: Node, token: int) -> Node:
        """The node of a token that was drawn behind the accepted candidates."""
        return node.child(token, self.sequence)


class Walk(ABC):
    """How a path is accepted. `drawn`: how candidates may be drawn; `lossless`: for which it is
    exact, which is all of them unless it says otherwise."""

    drawn: frozenset[Drawn]
    most: int | None = None  # candidates of a node that it can handle
    lossless: ClassVar[bool] = True
    draws: bool = True  # greedy decoding needs one that does not

    def check(self, task: Task) -> None:
        """Raise `ParameterError` where it cannot work; before the first forward."""
        return

    @abstractmethod
    def path(self, draft: Candidates, place: Place) -> list[Node]:
        """The nodes that the step adds below the tip, one at least: accepted candidates, and the
        token that is drawn behind them unless the last of them ends the text."""


@dataclass(frozen=True)
class NodeWise(Walk):
    """One node after the other, by a rule."""

    rule: Rule

    @property
    def drawn(self) -> frozenset[Drawn]:  # type: ignore[override]
        return self.rule.drawn

    @property
    def most(self) -> int | None:  # type: ignore[override]
        return self.rule.most

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return not isinstance(self.rule, Match)

    def check(self, task: Task) -> None:
        size, most = task.policy.source.vocab_size, self.rule.largest
        if most is not None and size > most:
            raise ParameterError(
                f"{self.rule!r} is for vocabularies of at most {most} tokens;"
                f" {task.policy.source.name} has {size}"
            )

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        node, path = draft.tip, list[Node]()
        while True:
            children = draft.children.get(node, [])
            verdict = self._judge(draft, place, node, [child.token for child in children])
            if verdict.number is None:
                return [*path, place.last(node, verdict.token)]
            node = children[verdict.number]
            path.append(node)
            if place.is_over(node):
                return path

    def _judge(self, draft: Candidates, place: Place, node: Node, tokens: Sequence[int]) -> Verdict:
        if not tokens or isinstance(self.rule, Match):
            token = place.draw(node)
            return Verdict(token, tokens.index(token) if token in tokens else None)
        return decide(
            self.rule.trial(place.law(node), draft.laws.get(node), tokens),
            tokens,
            lambda test: place.uniform(node, "accept", test),
            place.uniform(node, "residual"),
        )


@dataclass(frozen=True)
class Block(Walk):
    """A chain judged as a whole, with the running ratio w_i = min(1, w_i-1 p(x_i) / q(x_i)).

    The longest prefix i whose test passes, with chance h_i = m_i / (m_i + 1 - w_i) where
    m_i = sum (w_i p - q)_+ at the node behind it (w_L at the end), is accepted; then a token from
    norm((w_i p - q)_+) there, from p at the end.
    """

    drawn: frozenset[Drawn] = field(default=frozenset({"iid", "distinct"}), init=False)
    most: int | None = field(default=1, init=False)

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        nodes: list[Node] = []
        parents, weights = [draft.tip], [1.0]
        for node in _chain(draft):
            ratio = place.law(parents[-1])[node.token] / draft.laws[parents[-1]][node.token]
            nodes.append(node)
            weights.append(min(1.0, weights[-1] * ratio))
            if weights[-1] == 0.0 or place.is_over(node):
                break  # nothing comes after it
            parents.append(node)
        kept = 0
        for count, node in enumerate(nodes, 1):
            last = count == len(nodes)
            chance = weights[count] if last else self._chance(draft, place, node, weights[count])
            if place.uniform(draft.tip, "accept", count) < chance:  # a later step tests it anew
                kept = count
        end = nodes[kept - 1] if kept else draft.tip
        if kept and place.is_over(end):
            return nodes[:kept]
        if kept == len(nodes):
            return [*nodes, place.last(end, place.draw(end))]
        left = _excess(place.law(end), draft.laws[end], weights[kept])
        law = left[0] if left[1] > RESIDUAL_FLOOR else place.law(end)
        return [*nodes[:kept], place.last(end, law.draw(place.uniform(end, "residual")))]

    def _chance(self, draft: Candidates, place: Place, node: Node, weight: float) -> float:
        mass = _excess(place.law(node), draft.laws[node], weight)[1]
        return mass / (mass + 1.0 - weight) if mass > 0.0 else 0.0


def _excess(target: Law, draft: Law, weight: float) -> tuple[Law, float]:
    """norm((weight p - q)_+) and its mass before it is normalised."""
    left = np.maximum(weight * target.masses - draft.over(target), 0.0)
    mass = float(left.sum())
    return (Law(left / mass, target.size, target.ids) if mass > 0.0 else target), mass


def _chain(draft: Candidates) -> list[Node]:
    nodes: list[Node] = []
    children = draft.children.get(draft.tip, [])
    while children:
        nodes.append(children[0])
        children = draft.children.get(children[0], [])
    return nodes


@dataclass(frozen=True)
class Conditional(Walk):
    """Lossy: a candidate x is accepted where p(x) >= tau, tau = min(pmax, max(b - a H, floor)).

    H is the entropy of p in nats, so the threshold falls where the model is unsure; `constant`
    takes max(b, p(end)) instead. Of all paths of accepted candidates the longest counts, of equally
    long ones the most probable. The most probable token of a node always passes the adaptive form.
    """

    slope: float = 0.1
    base: float = 0.1
    floor: float = 0.02
    constant: bool = False
    drawn: frozenset[Drawn] = field(
        default=frozenset({"fixed", "iid", "distinct", "greedy", "hub"}), init=False
    )
    lossless: ClassVar[bool] = False
    draws: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0 or self.slope < 0.0:
            raise ParameterError(f"floor {self.floor} and slope {self.slope} must be 0..1 and >= 0")

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        found = self._longest(draft, place, draft.tip)[1]
        end = found[-1] if found else draft.tip
        return found if found and place.is_over(end) else [*found, place.last(end, place.draw(end))]

    def _longest(
        self, draft: Candidates, place: Place, node: Node
    ) -> tuple[tuple[int, float], list[Node]]:
        """The longest path of accepted candidates below a node, and (its length, its ln p)."""
        children = dict.fromkeys(draft.children.get(node, ()))
        best: tuple[tuple[int, float], list[Node]] = ((0, 0.0), [])
        if not children:
            return best
        law = place.law(node)
        least = self.threshold(law, place)
        for child in children:
            chance = law[child.token]
            if chance < least or chance == 0.0 or self._is_ending(law, place, child.token, chance):
                continue
            over = place.is_over(child)
            (length, worth), rest = (
                ((0, 0.0), list[Node]()) if over else self._longest(draft, place, child)
            )
            key = (length + 1, worth + math.log(chance))
            if key > best[0]:
                best = (key, [child, *rest])
        return best

    def _is_ending(self, law: Law, place: Place, token: int, chance: float) -> bool:
        """Whether an end token would be more probable: then nothing else is accepted."""
        ends = place.task.stopping.end_tokens
        return token not in ends and any(law[end] >= chance for end in ends)

    def threshold(self, law: Law, place: Place) -> float:
        """The least probability that is accepted."""
        if self.constant:
            return max([self.base, *(law[end] for end in place.task.stopping.end_tokens)])
        positive = law.masses[law.masses > 0]
        entropy = float(-(positive * np.log(positive)).sum())
        return min(float(law.masses.max()), max(self.base - self.slope * entropy, self.floor))

"""Candidates: what a drafter proposes below the end of a text, and how it drew them.

`drawn` says how the candidates of one node came to be, which decides who can verify them exactly:

    fixed     chosen in any way that no law describes: looked up, the most probable ones, ...
    iid       independent draws from the draft's law q
    distinct  draws from q without replacement, in this order
    greedy    the n - 1 most probable tokens of q, then one draw from q without them
    hub       two: a draw from q, then the most probable token a; or a, then a draw without a
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from decodery.core.tree import Node
from decodery.methods.speculative.law import Law

Drawn = Literal["fixed", "iid", "distinct", "greedy", "hub"]


@dataclass(eq=False)
class Candidates:
    """A tree of candidates below a stream's tip, on the policy's own tree; not grown yet.

    `children` has the candidates of a node in the order they were drawn; one drawn twice is there
    twice and is one node. `laws` has the draft's law q at a node, unless candidates are fixed.
    """

    tip: Node
    sequence: int
    children: dict[Node, list[Node]] = field(default_factory=dict[Node, list[Node]])
    laws: dict[Node, Law] = field(default_factory=dict[Node, Law])

    def add(self, parent: Node, tokens: Sequence[int], law: Law | None = None) -> list[Node]:
        """Put candidates below a node, in the order they were drawn; returns a node for each."""
        made: dict[int, Node] = {}
        for token in tokens:
            if token not in made:
                made[token] = parent.child(token, self.sequence)
        self.children[parent] = [made[token] for token in tokens]
        if law is not None:
            self.laws[parent] = law
            for token, node in made.items():
                node.proposed(law[token])
        return self.children[parent]

    @property
    def count(self) -> int:
        """How many candidates there are, each once."""
        return sum(len(set(nodes)) for nodes in self.children.values())

    def add_path(self, tokens: Sequence[int]) -> None:
        """Put one candidate below another, from the tip down."""
        node = self.tip
        for token in tokens:
            (node,) = self.add(node, [token])

    def levels(self) -> Iterator[list[Node]]:
        """The candidates by depth, each once."""
        level = [self.tip]
        while level:
            level = [
                node for above in level for node in dict.fromkeys(self.children.get(above, ()))
            ]
            if level:
                yield level

    def nodes(self) -> list[Node]:
        """Every candidate once, parents before children."""
        return [node for level in self.levels() for node in level]

    def prune(self, path: Sequence[Node]) -> None:
        """Drop every candidate that is not on the path, which begins below the tip."""
        kept = set(path)
        for node in (self.tip, *path):
            for child in dict.fromkeys(self.children.get(node, ())):
                if child not in kept:
                    child.drop()

"""What the steps of speculative decoding came to: for reports, and for the controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates


@dataclass
class Tally:
    """Sums over the steps of all streams of a request.

    `offered[d]` counts the steps that had a candidate at depth d below the tip, `taken[d]` those
    that accepted one there.
    """

    steps: int = 0
    emitted: int = 0
    accepted: int = 0
    nodes: int = 0
    offered: list[int] = field(default_factory=list[int])
    taken: list[int] = field(default_factory=list[int])

    def note(self, draft: Candidates, path: Sequence[Node]) -> None:
        """One step of one stream: its candidates, and the nodes that it added."""
        levels = [set(level) for level in draft.levels()]
        self.steps += 1
        self.emitted += len(path)
        self.nodes += sum(map(len, levels))
        self.offered += [0] * (len(levels) - len(self.offered))
        self.taken += [0] * (len(levels) - len(self.taken))
        for depth, level in enumerate(levels):
            self.offered[depth] += 1
            if depth < len(path) and path[depth] in level:
                self.taken[depth] += 1
                self.accepted += 1

    def to_dict(self) -> dict[str, Any]:
        steps = max(1, self.steps)
        pairs = zip(self.taken, self.offered, strict=True)
        return {
            "steps": self.steps,
            "tokens_per_step": self.emitted / steps,
            "accepted_per_step": self.accepted / steps,
            "nodes_per_step": self.nodes / steps,
            "acceptance_by_depth": [taken / offered for taken, offered in pairs],
        }

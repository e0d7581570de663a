"""How far accepted candidates depart from the policy, measured on every text."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.speculation import Watch
from decodery.methods.speculative.walks import Place

Against = Literal["itself", "argmax", "draw"]


@dataclass
class Departure(Watch):
    """Sums over the accepted tokens x of one sequence, and what they come to.

    `log_probability`, `not_argmax` and `from_alternatives` are means over accepted tokens: ln p(x),
    whether x is not the most probable token, whether x was an alternative. `total_variation` is a
    mean over all tokens: the distance between the law that a token comes from, given the text
    before it and the draft, and the policy's law (`draw`) or its argmax (`argmax`). An accepted
    token is certain, so its distance is 1 - p(x), or whether x is another; a token behind the
    accepted ones comes from the policy and has none. Summed over a text it is, on average over
    texts, no less than the distance of the laws of whole texts. A walk that is exact (`itself`) has
    none.

    `alternatives` are the nodes of the current draft that are some; a step's candidates are grown,
    what is drawn behind them is not.
    """

    name: ClassVar[str] = "departure"
    weight: ClassVar[str] = "tokens"
    means: ClassVar[tuple[str, ...]] = ("total_variation",)

    against: Against
    alternatives: Set[Node]
    tokens: int = 0
    accepted: int = 0
    log_chance: float = 0.0
    others: int = 0
    doubt: float = 0.0
    unlike: int = 0

    def note(self, draft: Candidates, path: Sequence[Node], place: Place) -> None:
        self.tokens += len(path)
        for node in path:
            if node.grown:
                self._accept(node, place)

    def _accept(self, node: Node, place: Place) -> None:
        assert node.parent is not None
        row = node.parent.policy_row(place.sequence)
        log_chance = row.log_probability(node.token)
        self.accepted += 1
        self.log_chance += log_chance
        self.others += node.token != row.argmax()
        self.doubt -= math.expm1(log_chance)
        self.unlike += node in self.alternatives

    def to_dict(self) -> dict[str, Any]:
        count = max(1, self.accepted)
        distances = {"itself": 0.0, "argmax": float(self.others), "draw": self.doubt}
        return {
            "tokens": self.tokens,
            "accepted": self.accepted,
            "from_alternatives": self.unlike / count,
            "log_probability": self.log_chance / count,
            "not_argmax": self.others / count,
            "total_variation": distances[self.against] / max(1, self.tokens),
        }

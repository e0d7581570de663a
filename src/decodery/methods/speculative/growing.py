"""Growing drafts of a shape from laws, level by level, whatever the laws come from.

A branch has its end on the policy's tree and the `mind` of whoever guesses there: a node on a draft
model's tree, the state of a head. A subclass says what law a mind has and what it becomes behind a
candidate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from decodery.core.decoder import Task
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.drafters import Session
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.shapes import End, Shape

Mind = TypeVar("Mind")


@dataclass
class Branch(Generic[Mind]):
    """The end of a branch: its node, what is known there, and how likely it is reached."""

    node: Node
    mind: Mind
    log_chance: float = 0.0
    key: float = 0.0
    reached: float = 1.0


class Growing(Session, Generic[Mind]):
    """Puts candidates below the ends of branches.

    `least` ends a branch that is reached with a smaller product of all q.
    """

    def __init__(self, shape: Shape, task: Task, least: float = 0.0) -> None:
        self.shape = shape
        self.task = task
        self.least = least
        self._ends = task.stopping.end_tokens
        self._drafted: Counter[tuple[int, int]] = Counter()  # (sequence, position) -> times

    @abstractmethod
    def law(self, mind: Mind, sequence: int) -> Law:
        """The draft's law of the next token."""

    @abstractmethod
    def after(self, mind: Mind, token: int, sequence: int) -> Mind:
        """The mind behind a candidate."""

    def level(
        self, draft: Candidates, branches: Sequence[Branch[Mind]], number: int, left: int
    ) -> list[Branch[Mind]]:
        """Put level `number` of candidates below branches, at most `left` in all.

        Returns the ends that a further level may have, none behind the last.
        """
        ends = [self._end(branch, draft.sequence) for branch in branches]
        below: list[Branch[Mind]] = []
        for branch, end, picks in zip(
            branches, ends, self.shape.level(number, ends, left), strict=True
        ):
            kept = [pick for pick in picks if self._is_likely(branch, end.law, pick.token)]
            if not kept:
                continue
            law = None if self.shape.drawn == "fixed" else end.law
            nodes = draft.add(branch.node, [pick.token for pick in kept], law)
            if number + 1 == self.shape.depth:
                continue
            made: dict[Node, Branch[Mind]] = {}
            for node, pick in zip(nodes, kept, strict=True):
                if node not in made and node.token not in self._ends:
                    mind = self.after(branch.mind, node.token, draft.sequence)
                    reached = branch.reached * end.law[node.token]
                    made[node] = Branch(node, mind, pick.log_chance, pick.key, reached)
            below += made.values()
        return below

    def _is_likely(self, branch: Branch[Mind], law: Law, token: int) -> bool:
        return not self.least or branch.reached * law[token] >= self.least

    def _end(self, branch: Branch[Mind], sequence: int) -> End:
        position = branch.node.depth
        self._drafted[sequence, position] += 1
        number = self._drafted[sequence, position]
        stream = self.task.stream
        return End(
            self.law(branch.mind, sequence),
            lambda index: stream.uniform(sequence, position, f"draft {index}", number),
            branch.log_chance,
            branch.key,
        )

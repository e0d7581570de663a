"""The drafter of alignment-augmented decoding: what a context goes on with, and alternatives to it.

No model drafts. `open` finds the alternatives of the context (`alignment_pool.py`); a step looks up
the end of the text and grows a tree (`alignment_tree.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Task
from decodery.core.source import Model, leaves
from decodery.core.tree import Node
from decodery.methods.speculative.alignment_pool import Alignment, Alternatives, align
from decodery.methods.speculative.alignment_tree import Branch, Limits, Suffixes, grow_tree
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.drafters import Drafter, Drafts, Session, Steps, Stream


@dataclass(frozen=True)
class Retrieval(Drafter):
    """Trees of at most `nodes` nodes and `depth` levels after matches of a text's last tokens.

    Matches have `longest` down to `shortest` tokens; the last `matches` of the longest are used.
    The context is the prompt without so many first and last tokens. With alignment, the `share` of
    the nodes goes to what was found before alternatives come. `opened` is a session whose context
    is aligned already.
    """

    drawn: ClassVar[Drawn] = "fixed"
    nodes: int = 64
    depth: int = 10
    shortest: int = 2
    longest: int = 16
    matches: int = 5000
    skip_first: int = 0
    skip_last: int = 0
    share: float = 0.75
    alignment: Alignment | None = Alignment()
    opened: RetrievalSession | None = field(default=None, repr=False, compare=False)

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.nodes

    def session(self, task: Task) -> RetrievalSession:
        return self.opened or RetrievalSession(self, task)

    def slots(self, task: Task, streams: int) -> dict[Model, int]:
        """What the pass over the prompt needs beyond what decoding after it does."""

        def footprint(prompt_length: int, max_tokens: int) -> int:
            return branch_footprint(streams, prompt_length, max_tokens) + streams * self.nodes

        if self.alignment is None:
            return {}
        source = task.policy.source
        model = leaves(source)[0]
        known = source.slots(task, task.prompt, footprint).get(model, 0)
        return {model: max(0, len(task.prompt) - known)}


class RetrievalSession(Session):
    """`aligned` are the context's alternatives, None until `open`; `offered` are the nodes of the
    latest drafts that are alternatives."""

    def __init__(self, drafter: Retrieval, task: Task) -> None:
        self.drafter = drafter
        self.task = task
        length = len(task.prompt)
        self.span = range(min(drafter.skip_first, length), max(0, length - drafter.skip_last))
        self.suffixes = Suffixes(task.prompt, self.span, drafter.shortest, drafter.longest)
        self.aligned: Alternatives | None = None if drafter.alignment is not None else {}
        self.offered: set[Node] = set()
        self._tails: dict[int, list[int]] = {}

    def open(self) -> Steps:
        if self.aligned is None:
            assert self.drafter.alignment is not None
            self.aligned = yield from align(self.task, self.span, self.drafter.alignment)

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        self.offered.clear()
        return [self._candidates(stream, budget) for stream in streams]
        yield  # a lookup asks for nothing

    def _candidates(self, stream: Stream, budget: int) -> Candidates:
        draft = Candidates(stream.tip, stream.sequence)
        limits = self._limits(stream, budget)
        _, places = self.suffixes.matches(self._tail(stream))
        if places and limits.depth > 0:
            assert self.aligned is not None
            chosen = places[-self.drafter.matches :]
            self._put(draft, grow_tree(self.suffixes, chosen, self.aligned, limits))
        return draft

    def _limits(self, stream: Stream, budget: int) -> Limits:
        share = self.drafter.share if self.aligned else 1.0
        depth = min(self.drafter.depth, stream.room - 1)
        return Limits(min(budget, self.drafter.nodes), depth, share, self.task.stopping.end_tokens)

    def _put(self, draft: Candidates, root: Branch) -> None:
        level = [(draft.tip, root)]
        while level:
            below: list[tuple[Node, Branch]] = []
            for node, branch in level:
                if branch.children:
                    children = branch.children.values()
                    nodes = draft.add(node, [child.token for child in children])
                    below += zip(nodes, children, strict=True)
            self.offered.update(node for node, branch in below if branch.is_alternative)
            level = below

    def _tail(self, stream: Stream) -> list[int]:
        """The last tokens of a stream's text, as many as are looked for."""
        if stream.sequence not in self._tails:
            self._tails[stream.sequence] = list(self.task.prompt[-self.drafter.longest :])
        return self._tails[stream.sequence]

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        tail = self._tail(stream)
        tail += [node.token for node in path]
        del tail[: -self.drafter.longest]

    def ended(self, stream: Stream) -> None:
        self._tails.pop(stream.sequence, None)

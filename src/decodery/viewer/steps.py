"""A run out of its trace: the steps it went in, and what became of every node.

A step is what happens from one emission to the next: the forwards, the nodes that they grew, and
the tokens that became final with them. A run that says nothing before its end, such as a beam
search, goes by its forwards instead.

A token that had been grown before it was emitted was a proposal that was accepted; one that had
not was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from decodery.core.errors import TraceError
from decodery.viewer.events import (
    CallEvent,
    CompletionEvent,
    DropEvent,
    EmitEvent,
    Event,
    NodeEvent,
    ScoreEvent,
    TraceFile,
    read_events,
)

Fate = Literal["accepted", "drawn", "chosen", "refused", "unreached", "prompt"]

FATES: dict[Fate, str] = {
    "accepted": "proposed before, and accepted",
    "drawn": "drawn from the policy, or from what a refusal left of it",
    "chosen": "on the way to an answer",
    "refused": "proposed, not taken",
    "unreached": "below one that was not taken",
    "prompt": "the prompt",
}


@dataclass(eq=False)
class TracedNode:
    """A node of the tree that the answers are on. Probabilities are of its token, where made."""

    number: int
    token: int
    depth: int
    sequence: int
    p: float | None
    q: float | None
    grown: bool
    top: list[tuple[int, float]]  # the most probable tokens after it, and their probabilities
    parent: TracedNode | None = None
    children: list[TracedNode] = field(default_factory=list["TracedNode"])
    step: int | None = None
    fate: Fate = "refused"
    dropped: bool = False

    @property
    def taken(self) -> bool:
        return self.fate in ("accepted", "drawn", "chosen", "prompt")


@dataclass
class Emitted:
    """A token that became final."""

    token: int
    step: int
    node: TracedNode | None

    @property
    def fate(self) -> Fate:
        return "drawn" if self.node is None else self.node.fate


@dataclass
class Step:
    """From one emission to the next."""

    number: int
    calls: list[CallEvent] = field(default_factory=list[CallEvent])
    emitted: dict[int, list[Emitted]] = field(default_factory=dict[int, list[Emitted]])
    nodes: list[TracedNode] = field(default_factory=list[TracedNode])
    scores: list[ScoreEvent] = field(default_factory=list[ScoreEvent])

    @property
    def tops(self) -> list[tuple[TracedNode, int]]:
        """The nodes of earlier steps that this one's hang on, and for which sequence."""
        own = set(self.nodes)
        ends = [
            (node.parent, node.sequence)
            for node in self.nodes
            if node.parent is not None and node.parent not in own
        ]
        return list(dict.fromkeys(ends))

    def below(self, node: TracedNode, sequence: int) -> list[TracedNode]:
        """The children of a node that this step made for a sequence."""
        return [
            child
            for child in node.children
            if child.step == self.number and child.sequence == sequence
        ]

    def count(self, *fates: Fate) -> int:
        """How many of its emitted tokens came about so."""
        return sum(item.fate in fates for items in self.emitted.values() for item in items)

    @property
    def proposed(self) -> int:
        return sum(node.fate != "drawn" for node in self.nodes)


@dataclass
class TracedRun:
    """A run, ready to be drawn. `streams` says whether tokens were emitted as it went."""

    about: dict[str, Any]
    report: dict[str, Any]
    texts: dict[str, str]
    prompt: list[int]
    streams: bool
    steps: list[Step]
    completions: list[CompletionEvent]

    @property
    def sequences(self) -> dict[int, list[Emitted]]:
        """All emitted tokens, by sequence."""
        found: dict[int, list[Emitted]] = {}
        for step in self.steps:
            for sequence, items in step.emitted.items():
                found.setdefault(sequence, []).extend(items)
        return dict(sorted(found.items()))

    @property
    def speculation(self) -> dict[str, Any] | None:
        """What the drafts came to, where there were any."""
        tally = self.report.get("details", {}).get("speculation")
        return tally if tally and tally.get("nodes") else None

    def text(self, token: int) -> str:
        """What a token looks like; its number where the trace has no texts."""
        return self.texts.get(str(token), f"<{token}>")

    def context(self, node: TracedNode, characters: int) -> str:
        """The last characters of the text that ends at a node."""
        tokens: list[int] = []
        above: TracedNode | None = node
        while above is not None and above.parent is not None:
            tokens.append(above.token)
            above = above.parent
        whole = [*self.prompt, *reversed(tokens)][-characters:]
        return "".join(map(self.text, whole))[-characters:]


def read_run(path: Path) -> TracedRun:
    """The run that a trace file holds. Raises `TraceError` where there is none in it."""
    file = read_events(path)
    trees = _trees(file, path)
    emits = [event for event in file.events if isinstance(event, EmitEvent)]
    main = max(trees.values(), key=lambda tree: _followed(tree, emits), default=None)
    if main is None:
        raise TraceError(f"{path} is the trace of a run that ended before its first forward")
    streams = _streams(file.events)
    steps = _Replay(main, streams).run(file.events)
    return TracedRun(
        file.about,
        file.report,
        file.texts,
        main.prompt,
        streams,
        steps,
        [event for event in file.events if isinstance(event, CompletionEvent)],
    )


@dataclass
class _Tree:
    number: int
    prompt: list[int]
    nodes: dict[int, TracedNode]

    @property
    def root(self) -> TracedNode:
        return self.nodes[0]


def _trees(file: TraceFile, path: Path) -> dict[int, _Tree]:
    trees: dict[int, _Tree] = {}
    events = [event for event in file.events if isinstance(event, NodeEvent)]
    for event in events:
        tree = trees.setdefault(event.tree, _Tree(event.tree, [], {}))
        if event.parent is None:
            tree.prompt = event.prompt
        tree.nodes[event.node] = _node(event)
    for event in sorted(events, key=lambda event: event.node):
        if event.parent is None:
            continue
        nodes = trees[event.tree].nodes
        if event.parent >= event.node or event.parent not in nodes:
            raise TraceError(f"{path} is a damaged trace: node {event.node} hangs on nothing")
        nodes[event.node].parent = nodes[event.parent]
        nodes[event.parent].children.append(nodes[event.node])
    for tree in trees.values():
        if 0 not in tree.nodes or tree.root.parent is not None:
            raise TraceError(f"{path} is a damaged trace: tree {tree.number} has no root")
    return trees


def _node(event: NodeEvent) -> TracedNode:
    top = [(token, _exp(log_p)) for token, log_p in event.policy_row or ()]
    return TracedNode(
        event.node,
        event.token,
        event.depth,
        event.sequence,
        _probability(event, "log_p"),
        _probability(event, "log_q"),
        event.event == "node",
        top,
        fate="prompt" if event.parent is None else "refused",
    )


def _probability(event: NodeEvent, name: Literal["log_p", "log_q"]) -> float | None:
    """None where nobody knows; a file has null for -inf."""
    return _exp(getattr(event, name)) if name in event.model_fields_set else None


def _exp(log_p: float | None) -> float:
    return 0.0 if log_p is None else math.exp(min(log_p, 0.0))


def _followed(tree: _Tree, emits: Sequence[EmitEvent]) -> tuple[int, int]:
    """How many tokens of the first answer are on a tree; of equals, the first one counts."""
    first = emits[0].sequence if emits else 0
    ends, count = {tree.root}, 0
    for token in (token for event in emits if event.sequence == first for token in event.tokens):
        ends = {child for end in ends for child in end.children if child.token == token}
        if not ends:
            break
        count += 1
    return count, -tree.number


def _streams(events: Sequence[Event]) -> bool:
    """Whether tokens were emitted as the run went, and not at its end only."""
    kinds = [event.event for event in events if event.event in ("call", "emit")]
    if "emit" not in kinds:
        return False
    return "call" in kinds[kinds.index("emit") :] or kinds.count("call") <= 1


class _Replay:
    """Goes through the events once more, with the tree of the answers at hand."""

    def __init__(self, tree: _Tree, streams: bool) -> None:
        self.tree = tree
        self.streams = streams
        self.steps: list[Step] = [Step(1)]
        self.round: int | None = None
        self.ends: dict[int, TracedNode | None] = {}
        self.grown: set[TracedNode] = set()

    def run(self, events: Sequence[Event]) -> list[Step]:
        for event in events:
            if isinstance(event, CallEvent):
                self._call(event)
            elif isinstance(event, NodeEvent):
                self._node(event)
            elif isinstance(event, EmitEvent):
                self._emit(event)
            elif isinstance(event, ScoreEvent):
                self._now().scores.append(event)
            elif isinstance(event, DropEvent) and event.tree == self.tree.number:
                for number in event.nodes:
                    if number in self.tree.nodes:
                        self.tree.nodes[number].dropped = True
        self._place_leaves()
        for node in self._walk():
            if not node.taken and node.parent is not None and not node.parent.taken:
                node.fate = "unreached"
            if node.step is not None:
                self.steps[node.step - 1].nodes.append(node)
        return self.steps

    def _now(self) -> Step:
        return self.steps[-1]

    def _call(self, event: CallEvent) -> None:
        over = bool(self._now().emitted) if self.streams else self.round not in (None, event.step)
        if over:
            self.steps.append(Step(len(self.steps) + 1))
        self.round = event.step
        self._now().calls.append(event)

    def _node(self, event: NodeEvent) -> None:
        if event.tree != self.tree.number or event.event == "leaf":
            return
        node = self.tree.nodes[event.node]
        self.grown.add(node)
        if node.step is None and node.parent is not None:
            node.step = self._now().number

    def _emit(self, event: EmitEvent) -> None:
        step = self._now()
        for token in event.tokens:
            node = self._next(self.ends.get(event.sequence, self.tree.root), token, event.sequence)
            self.ends[event.sequence] = node
            if node is not None:
                if node.step is None:
                    node.step = step.number
                if not self.streams:
                    node.fate = "chosen"
                elif not node.taken:
                    node.fate = "accepted" if node in self.grown else "drawn"
            step.emitted.setdefault(event.sequence, []).append(Emitted(token, step.number, node))

    def _next(self, end: TracedNode | None, token: int, sequence: int) -> TracedNode | None:
        """The node of an emitted token: of several, the sequence's own, still alive, the latest."""
        same = [] if end is None else [child for child in end.children if child.token == token]
        return max(
            same,
            key=lambda node: (node.sequence == sequence, not node.dropped, node.number),
            default=None,
        )

    def _place_leaves(self) -> None:
        """Nodes that were never grown nor emitted belong to the step of their siblings."""
        for node in self._walk():
            if node.step is None and node.parent is not None:
                known = [child.step for child in node.parent.children if child.step is not None]
                node.step = min(known, default=node.parent.step or 1)

    def _walk(self) -> Iterator[TracedNode]:
        """All nodes, parents first, in the order they were made."""
        return (self.tree.nodes[number] for number in sorted(self.tree.nodes))

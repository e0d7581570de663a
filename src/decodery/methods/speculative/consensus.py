"""Consensus drafts: what the other samples of the same prompt wrote after the same tokens.

Samples of one prompt repeat each other. The last tokens of one are looked for in the others; what
came after them there is merged into a graph of (depth, token), in which continuations that differ
in one token and agree after it still support each other, and the heaviest path through it is the
draft. Edges weigh the probability that the token had when it was drawn, or one each.

A draft is a function of what the others had written when the step began, and rule `Match` draws
each token with noise of its own sequence: the samples stay independent, and each is, token for
token, what it would be alone.

Li et al.: Speculative Decoding for Multi-Sample Inference (2025), arXiv:2503.05330. How their graph
weighs and cuts is not public in full; this is a reading of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from decodery.core.decoder import Task
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.drafters import Drafter, Drafts, Session, Stream

Weights = Literal["probability", "count"]
Place = tuple[int, int]  # a sequence and how many of its tokens came before


@dataclass(frozen=True)
class Continuation:
    """What a sample wrote after a match, the weight of each token; `ended`: after the last one."""

    tokens: Sequence[int]
    weights: Sequence[float]
    ended: bool = False


class Graph:
    """Continuations merged by (depth, token): weights of edges, and of ending at a node."""

    def __init__(self, continuations: Iterable[Continuation]) -> None:
        self.edges: defaultdict[Place, dict[int, float]] = defaultdict(dict)
        self.counts: defaultdict[Place, defaultdict[int, int]] = defaultdict(
            lambda: defaultdict(int)
        )
        self.stops: defaultdict[Place, float] = defaultdict(float)
        for item in continuations:
            self._add(item)

    def _add(self, item: Continuation) -> None:
        above: Place = (0, -1)
        for depth, (token, weight) in enumerate(zip(item.tokens, item.weights, strict=True), 1):
            edges = self.edges[above]
            edges[token] = edges.get(token, 0.0) + weight
            self.counts[above][token] += 1
            above = (depth, token)
        if item.ended:
            self.stops[above] += 1.0

    def consensus(self, least_edge: float, least_path: float) -> list[int]:
        """The path of heaviest edges, cut where an edge's share or the path's falls too low."""
        path: list[int] = []
        above: Place = (0, -1)
        share = 1.0
        while edges := self.edges.get(above):
            counts = self.counts[above]
            token = min(edges, key=lambda item: (-edges[item], -counts[item], item))
            own = edges[token] / (sum(edges.values()) + self.stops.get(above, 0.0))
            share *= own
            if own < least_edge or share < least_path:
                break
            path.append(token)
            above = (len(path), token)
        return path


@dataclass(frozen=True)
class Consensus(Drafter):
    """Drafts of at most `nodes` tokens after matches of `longest` down to `shortest` tokens.

    `matches` bounds how many are merged, the latest of each sample in turn.
    """

    drawn: ClassVar[Drawn] = "fixed"
    nodes: int = 8
    shortest: int = 2
    longest: int = 4
    weights: Weights = "probability"
    least_edge: float = 0.3
    least_path: float = 0.05
    matches: int = 64
    own: bool = False
    prompt: bool = False

    def session(self, task: Task) -> ConsensusSession:
        return ConsensusSession(self, task)


@dataclass
class _Written:
    """What one sample has written so far, and the weight of each token."""

    tokens: list[int] = field(default_factory=list[int])
    weights: list[float] = field(default_factory=list[float])
    ended: bool = False


_PROMPT = -1


class ConsensusSession(Session):
    def __init__(self, drafter: Consensus, task: Task) -> None:
        self.drafter = drafter
        self.written: defaultdict[int, _Written] = defaultdict(_Written)
        self._places: defaultdict[tuple[int, ...], list[Place]] = defaultdict(list)
        if drafter.prompt:
            for token in task.prompt:
                self._append(_PROMPT, token, 1.0)

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        return [self._candidates(stream, budget) for stream in streams]
        yield  # a lookup asks for nothing

    def _candidates(self, stream: Stream, budget: int) -> Candidates:
        draft = Candidates(stream.tip, stream.sequence)
        most = min(budget, self.drafter.nodes, stream.room - 1)
        if most > 0:
            graph = Graph(self._continuations(place, most) for place in self._matches(stream))
            draft.add_path(graph.consensus(self.drafter.least_edge, self.drafter.least_path))
        return draft

    def _matches(self, stream: Stream) -> list[Place]:
        """Where the longest suffix that occurs elsewhere went on, at most `matches` places."""
        own = self.written[stream.sequence].tokens
        for size in range(min(self.drafter.longest, len(own)), self.drafter.shortest - 1, -1):
            found = [
                place
                for place in self._places.get(tuple(own[-size:]), ())
                if self._usable(place, stream.sequence)
            ]
            if found:
                return _latest_in_turn(found, self.drafter.matches)
        return []

    def _usable(self, place: Place, sequence: int) -> bool:
        other, position = place
        if other == sequence and not self.drafter.own:
            return False
        return position < len(self.written[other].tokens)

    def _continuations(self, place: Place, most: int) -> Continuation:
        sequence, start = place
        written = self.written[sequence]
        tokens = written.tokens[start : start + most]
        counted = self.drafter.weights == "count"
        weights = [1.0] * len(tokens) if counted else written.weights[start : start + most]
        return Continuation(tokens, weights, written.ended and start + most > len(written.tokens))

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        for node in path:
            assert node.parent is not None
            weight = math.exp(node.parent.policy_row(stream.sequence).log_probability(node.token))
            self._append(stream.sequence, node.token, weight)

    def ended(self, stream: Stream) -> None:
        self.written[stream.sequence].ended = True

    def _append(self, sequence: int, token: int, weight: float) -> None:
        written = self.written[sequence]
        written.tokens.append(token)
        written.weights.append(weight)
        place = len(written.tokens)
        for size in range(self.drafter.shortest, min(self.drafter.longest, place) + 1):
            self._places[tuple(written.tokens[-size:])].append((sequence, place))


def _latest_in_turn(places: Sequence[Place], most: int) -> list[Place]:
    """At most so many places: the latest of each sequence, then the latest but one, and so on."""
    if len(places) <= most:
        return list(places)
    latest: defaultdict[int, list[Place]] = defaultdict(list)
    for place in reversed(places):
        latest[place[0]].append(place)
    ranked = sorted(
        (rank, sequence, place)
        for sequence, own in latest.items()
        for rank, place in enumerate(own)
    )
    return [place for _, _, place in ranked[:most]]

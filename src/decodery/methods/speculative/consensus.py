"""Consensus drafts: what the other samples of the same prompt wrote after the same tokens.

Samples of one prompt repeat each other. The last tokens of one are looked for in the others; what
came after them there is merged into a graph of (depth, token), in which continuations that differ
in one token and agree after it still support each other. Edges weigh the probability that the token
had when it was drawn, or one each; an edge's share of what leaves its node estimates how likely its
token is. From the graph is read (`shape`)

    greedy   the path of heaviest edges
    viterbi  the path with the most tokens accepted on average, if shares were probabilities
    tree     the most probable nodes, the heaviest `branches` edges of each, up to a budget

A draft is a function of what the others had written when the step began, and rule `Match` draws
each token with noise of its own sequence: the samples stay independent, and each is, token for
token, what it would be alone.

Li et al.: Speculative Decoding for Multi-Sample Inference (2025), arXiv:2503.05330. How their graph
weighs and cuts is not public in full; this is a reading of it.
"""

from __future__ import annotations

import heapq
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
Shape = Literal["greedy", "viterbi", "tree"]
Place = tuple[int, int]  # a sequence and how many of its tokens came before; or depth and token
Path = tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """What a sample wrote after a match, and the weight of each token."""

    tokens: Sequence[int]
    weights: Sequence[float]


ROOT: Place = (0, -1)


class Graph:
    """Continuations merged by (depth, token). An end token is an edge like any other."""

    def __init__(self, continuations: Iterable[Continuation]) -> None:
        self.edges: defaultdict[Place, dict[int, float]] = defaultdict(dict)
        self.counts: defaultdict[Place, defaultdict[int, int]] = defaultdict(
            lambda: defaultdict(int)
        )
        for item in continuations:
            self._add(item)

    def _add(self, item: Continuation) -> None:
        above = ROOT
        for depth, (token, weight) in enumerate(zip(item.tokens, item.weights, strict=True), 1):
            edges = self.edges[above]
            edges[token] = edges.get(token, 0.0) + weight
            self.counts[above][token] += 1
            above = (depth, token)

    def shares(self, above: Place) -> list[tuple[int, float]]:
        """The tokens after a node with their shares, heaviest first; of ties the more frequent."""
        if above not in self.edges:
            return []
        edges, counts = self.edges[above], self.counts[above]
        whole = sum(edges.values())
        ranked = sorted(edges, key=lambda token: (-edges[token], -counts[token], token))
        return [(token, edges[token] / whole) for token in ranked]

    def greedy(self) -> list[tuple[int, float]]:
        """The path of heaviest edges, and the share of each."""
        path: list[tuple[int, float]] = []
        above = ROOT
        while following := self.shares(above):
            path.append(following[0])
            above = (len(path), following[0][0])
        return path

    def viterbi(self) -> list[tuple[int, float]]:
        """The path with the largest sum of products of shares, and the share of each edge.

        value(u) = max over v of share(u -> v) (1 + value(v)) is the number of tokens accepted on
        average where shares are probabilities. A product alone would prefer the shortest path.
        """
        values: defaultdict[Place, float] = defaultdict(float)
        best: dict[Place, tuple[int, float]] = {}
        for above in sorted(self.edges, reverse=True):
            for token, share in self.shares(above):
                value = share * (1.0 + values[above[0] + 1, token])
                if value > values[above]:
                    values[above], best[above] = value, (token, share)
        path: list[tuple[int, float]] = []
        above = ROOT
        while above in best:
            path.append(best[above])
            above = (len(path), best[above][0])
        return path

    def tree(self, branches: int, budget: int, cuts: Cuts) -> list[Path]:
        """The `budget` most probable nodes as paths from the root, parents before children.

        Each node has its `branches` heaviest edges at most, and the cuts hold on all of them.
        """
        found: list[Path] = []
        waiting: list[tuple[float, int, Path]] = []
        number = 0

        def wait_below(path: Path, chance: float) -> None:
            nonlocal number
            above = (len(path), path[-1]) if path else ROOT
            for token, share in self.shares(above)[:branches]:
                if share >= cuts.edge and chance * share >= cuts.path:
                    number += 1
                    heapq.heappush(waiting, (-chance * share, number, (*path, token)))

        wait_below((), 1.0)
        while waiting and len(found) < budget:
            chance, _, path = heapq.heappop(waiting)
            found.append(path)
            wait_below(path, -chance)
        return found


@dataclass(frozen=True)
class Cuts:
    """A path ends where an edge's share is below `edge`, or the product of them below `path`."""

    edge: float = 0.3
    path: float = 0.05

    def apply(self, path: Sequence[tuple[int, float]]) -> list[int]:
        """The tokens of a path (each with its share) before the cut."""
        tokens: list[int] = []
        chance = 1.0
        for token, share in path:
            chance *= share
            if share < self.edge or chance < self.path:
                break
            tokens.append(token)
        return tokens


@dataclass(frozen=True)
class Consensus(Drafter):
    """Drafts of at most `tokens` tokens after matches of `longest` down to `shortest` tokens.

    A match that is one token shorter than the longest weighs `decay` as much, two tokens shorter
    its square; with 0 only the longest count. `matches` bounds how many are merged: the longest,
    of equally long ones the latest of each sample in turn. `budget` is of a tree.
    """

    drawn: ClassVar[Drawn] = "fixed"
    tokens: int = 8
    shortest: int = 2
    longest: int = 4
    weights: Weights = "probability"
    cuts: Cuts = Cuts()
    decay: float = 0.0
    shape: Shape = "greedy"
    branches: int = 4
    budget: int = 16
    matches: int = 64
    own: bool = False
    prompt: bool = False

    @property
    def nodes(self) -> int:  # type: ignore[override]
        return self.budget if self.shape == "tree" else self.tokens

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.branches if self.shape == "tree" else 1

    def session(self, task: Task) -> ConsensusSession:
        return ConsensusSession(self, task)

    def paths(self, graph: Graph, budget: int) -> list[Path]:
        """The candidates that a graph of continuations gives, parents before children."""
        if self.shape == "tree":
            return graph.tree(self.branches, budget, self.cuts)
        path = self.cuts.apply(graph.viterbi() if self.shape == "viterbi" else graph.greedy())
        return [tuple(path[:count]) for count in range(1, min(len(path), budget) + 1)]


@dataclass
class Sample:
    """What one sample has written so far, and the weight of each token."""

    tokens: list[int] = field(default_factory=list[int])
    weights: list[float] = field(default_factory=list[float])


PROMPT = -1  # the prompt as a sample


class Samples:
    """All that the samples of one prompt have written, and where every n-gram of it went on."""

    def __init__(self, drafter: Consensus, prompt: Sequence[int] = ()) -> None:
        self.drafter = drafter
        self.written: defaultdict[int, Sample] = defaultdict(Sample)
        self._places: defaultdict[tuple[int, ...], list[Place]] = defaultdict(list)
        for token in prompt if drafter.prompt else ():
            self.append(PROMPT, token, 1.0)

    def append(self, sequence: int, token: int, weight: float) -> None:
        """A sample's next token, with the probability that it was drawn with."""
        written = self.written[sequence]
        written.tokens.append(token)
        written.weights.append(1.0 if self.drafter.weights == "count" else weight)
        place = len(written.tokens)
        for size in range(self.drafter.shortest, min(self.drafter.longest, place) + 1):
            self._places[tuple(written.tokens[-size:])].append((sequence, place))

    def found(self, sequence: int) -> dict[Place, int]:
        """Where suffixes of a sample that occur elsewhere went on, and how long they are.

        A place is (sequence, how many of its tokens came before).
        """
        own = self.written[sequence].tokens
        found: dict[Place, int] = {}
        for size in range(min(self.drafter.longest, len(own)), self.drafter.shortest - 1, -1):
            more = [
                place
                for place in self._places.get(tuple(own[-size:]), ())
                if place not in found and self._is_usable(place, sequence)
            ]
            room = self.drafter.matches - len(found)
            found |= dict.fromkeys(latest_in_turn(more, room), size)
            if found and (self.drafter.decay == 0.0 or len(found) == self.drafter.matches):
                break
        return found

    def _is_usable(self, place: Place, sequence: int) -> bool:
        other, position = place
        if other == sequence and not self.drafter.own:
            return False
        return position < len(self.written[other].tokens)

    def draft(self, sequence: int, tokens: int, budget: int) -> list[Path]:
        """The candidates after a sample, `tokens` deep and `budget` in number at most."""
        places = self.found(sequence) if tokens > 0 and budget > 0 else {}
        if not places:
            return []
        longest = max(places.values())
        graph = Graph(
            self._continuation(place, tokens, self.drafter.decay ** (longest - size))
            for place, size in places.items()
        )
        return self.drafter.paths(graph, budget)

    def _continuation(self, place: Place, most: int, factor: float) -> Continuation:
        sequence, start = place
        written, end = self.written[sequence], start + most
        weights = [factor * weight for weight in written.weights[start:end]]
        return Continuation(written.tokens[start:end], weights)


class ConsensusSession(Session):
    def __init__(self, drafter: Consensus, task: Task) -> None:
        self.drafter = drafter
        self.samples = Samples(drafter, task.prompt)

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        return [self._candidates(stream, min(budget, self.drafter.nodes)) for stream in streams]
        yield  # a lookup asks for nothing

    def _candidates(self, stream: Stream, budget: int) -> Candidates:
        most = min(self.drafter.tokens, stream.room - 1)
        below: defaultdict[Path, list[int]] = defaultdict(list)
        for path in self.samples.draft(stream.sequence, most, budget):
            below[path[:-1]].append(path[-1])
        draft = Candidates(stream.tip, stream.sequence)
        made: dict[Path, Node] = {(): stream.tip}
        for above, tokens in below.items():
            for node in draft.add(made[above], tokens):
                made[*above, node.token] = node
        return draft

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        for node in path:
            assert node.parent is not None
            row = node.parent.policy_row(stream.sequence)
            weight = math.exp(row.log_probability(node.token))
            self.samples.append(stream.sequence, node.token, weight)


def latest_in_turn(places: Sequence[Place], most: int) -> list[Place]:
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

"""Adaptive drafts: a tree grown where it is most likely to be reached, as far as it pays.

All streams of a request are drafted together. The place that is most likely to be reached gets the
next node, and nodes are added while

    (tokens that the step is expected to give) / (what a forward of so many rows costs)

rises: both sides are measured while the text is decoded, the chances of guesses from what came
(`proposers.py`), the costs from the model's own forwards (`core/costs.py`). Where nothing pays,
nothing is drafted, and a step is a step of plain decoding. Guesses are judged in hindsight, also
those that were never verified, so a text that becomes predictable is noticed.

A proposer whose guesses take time is asked only while it earns that time back; else it rests,
longer each time, and is chosen again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from decodery.core.costs import StepCosts
from decodery.core.decoder import Task
from decodery.core.source import Source, leaves
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.drafters import Drafter, Drafts, Session, Stream
from decodery.methods.speculative.panel import Panel, Place
from decodery.methods.speculative.proposers import Proposer

GAIN = 1.05  # plain steps a step that a draft must be expected to be worth: making it takes time


@dataclass(frozen=True)
class Adaptive(Drafter):
    """Drafts of at most `nodes` nodes a stream, from several proposers."""

    drawn: ClassVar[Drawn] = "fixed"
    width: ClassVar[int] = 1_000_000  # Match takes any
    proposers: tuple[Proposer, ...] = ()
    nodes: int = 8

    def session(self, task: Task) -> AdaptiveSession:
        return AdaptiveSession(self, task)

    @property
    def hidden(self) -> bool:  # type: ignore[override]
        return any(proposer.hidden for proposer in self.proposers)

    def equipped(self, load: Callable[[str], Source]) -> Adaptive:
        return replace(self, proposers=tuple(item.equipped(load) for item in self.proposers))


class AdaptiveSession(Session):
    def __init__(self, drafter: Adaptive, task: Task) -> None:
        self.drafter = drafter
        self.panel = Panel([item.watcher(task) for item in drafter.proposers], drafter.proposers)
        models = list(leaves(task.policy.source))
        self.costs: StepCosts | None = models[0].costs
        self._each = models.count(models[0])  # rows of the model for one of the policy
        self.ends = task.stopping.end_tokens
        self._asked: dict[int, Place] = {}  # by sequence: what was guessed at its tip and below
        self._rows = 0  # of this request in the last forward

    # -- drafting --------------------------------------------------------------------------------

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        return self._drafts(streams, budget)
        yield  # guesses ask for no forward

    def _drafts(self, streams: Sequence[Stream], budget: int) -> list[Candidates]:
        tips = [Place(stream, 1.0) for stream in streams]
        self._asked = {tip.stream.sequence: tip for tip in tips}
        chosen = self._chosen(tips, min(budget, self.drafter.nodes))
        self._rows = self._each * (len(streams) + len(chosen))
        drafts = [Candidates(stream.tip, stream.sequence) for stream in streams]
        made: dict[int, Node] = {id(tip): tip.stream.tip for tip in tips}
        found = {draft.sequence: draft for draft in drafts}
        below: dict[int, list[Place]] = {}
        for place in chosen:  # parents come before children
            below.setdefault(id(place.above), []).append(place)
        for key, places in below.items():
            draft = found[places[0].stream.sequence]
            nodes = draft.add(made[key], [place.token for place in places])
            made.update((id(place), node) for place, node in zip(places, nodes, strict=True))
        self.panel.settle(chosen, self._price(len(streams)))
        return drafts

    def _chosen(self, tips: Sequence[Place], most: int) -> list[Place]:
        """The places that pay, the likeliest first."""
        front: list[tuple[float, int, Place]] = []
        serial = 0
        for place in tips:
            serial = self._expand(place, front, serial)
        chosen: list[Place] = []
        counts: dict[int, int] = {}
        price = self._price(len(tips))
        expected = float(len(tips))
        best = plain = expected / price.of(0)
        while front:
            place = heapq.heappop(front)[2]
            sequence = place.stream.sequence
            if counts.get(sequence, 0) == most:
                continue
            value = (expected + place.chance) / price.of(len(chosen) + 1)
            if value <= best:
                break  # whatever comes next is reached more seldom still
            best, expected = value, expected + place.chance
            counts[sequence] = counts.get(sequence, 0) + 1
            chosen.append(place)
            serial = self._expand(place, front, serial)
        return chosen if best > GAIN * plain else []

    def _expand(self, place: Place, front: list[tuple[float, int, Place]], serial: int) -> int:
        """Ask what may come after a place, and put it into the front."""
        if place.depth + 1 >= place.stream.room or place.token in self.ends:
            return serial
        self.panel.ask(place)
        for guess, chance in place.guesses:
            chance = place.chance * chance
            below = Place(place.stream, chance, place, guess.token, place.depth + 1)
            place.children[guess.token] = below
            heapq.heappush(front, (-below.chance, serial, below))
            serial += 1
        return serial

    def _price(self, streams: int) -> Price:
        others = 0 if self.costs is None else max(0, self.costs.rows - self._rows)
        return Price(self.costs, others + self._each * streams, self._each)

    # -- hindsight -------------------------------------------------------------------------------

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        self.panel.moved(stream, path, self._asked.pop(stream.sequence, None))

    def ended(self, stream: Stream) -> None:
        self.panel.ended(stream)


@dataclass(frozen=True)
class Price:
    """What a forward costs with so many rows beside the drafts, in plain steps."""

    costs: StepCosts | None
    rows: int
    each: int = 1  # rows of a node

    def of(self, nodes: int) -> float:
        """With so many drafted nodes. Where costs are not measured, nodes cost nothing."""
        return 1.0 if self.costs is None else self.costs.of(self.rows + self.each * nodes)

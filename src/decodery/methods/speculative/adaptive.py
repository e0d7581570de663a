"""Adaptive drafts: a tree grown where it is most likely to be reached, as far as it pays.

All streams of a request are drafted together. The place that is most likely to be reached gets the
next node, and nodes are added while

    (tokens that the step is expected to give) / (what a forward of so many rows costs)

rises: both sides are measured while the text is decoded, the chances of guesses from what came
(`proposers.py`), the costs from the model's own forwards (`core/costs.py`). Where nothing pays,
nothing is drafted, and a step is a step of plain decoding. Guesses are judged in hindsight, also
those that were never verified, so a text that becomes predictable is noticed. Where costs are
measured, a request begins with what earlier ones of the same source taught.

A proposer whose guesses take time is asked only while it earns that time back; else it rests,
longer each time, and is chosen again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from weakref import WeakKeyDictionary

from decodery.core.costs import StepCosts
from decodery.core.decoder import Task
from decodery.core.source import Source, leaves
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.drafters import Drafter, Drafts, Session, Stream
from decodery.methods.speculative.panel import Panel, Place
from decodery.methods.speculative.proposers import Chances, Proposer

GAIN = 1.05  # plain steps a step that a draft must be expected to be worth: making it takes time
LONG_MEMORY = 600  # guesses of a kind after which those of earlier requests count half

_known: WeakKeyDictionary[Source, dict[Hashable, Chances]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Adaptive(Drafter):
    """Drafts of at most `nodes` nodes a stream, from several proposers."""

    drawn: ClassVar[Drawn] = "fixed"
    width: ClassVar[int] = 1_000_000  # Match takes any
    proposers: tuple[Proposer, ...] = ()
    nodes: int = 8
    greedy: bool = False  # for texts that nobody draws, of which more comes true

    def session(self, task: Task) -> AdaptiveSession:
        return AdaptiveSession(self, task)

    @property
    def hidden(self) -> bool:  # type: ignore[override]
        return any(proposer.hidden for proposer in self.proposers)

    def certain(self) -> Adaptive:
        return replace(self, greedy=True)

    def equipped(self, load: Callable[[str], Source]) -> Adaptive:
        return replace(self, proposers=tuple(item.equipped(load) for item in self.proposers))

    def known(self, source: Source) -> Chances:
        """What earlier requests of a source have taught about guesses like these."""
        found = _known.setdefault(source, {})
        key = (self.greedy, *map(type, self.proposers))
        return found.setdefault(key, Chances(memory=LONG_MEMORY))


class AdaptiveSession(Session):
    def __init__(self, drafter: Adaptive, task: Task) -> None:
        self.drafter = drafter
        models = list(leaves(task.policy.source))
        self.costs: StepCosts | None = models[0].costs
        self._each = models.count(models[0])  # rows of the model for one of the policy
        # Drafts that heed the clock may heed earlier requests as well. All others are repeatable.
        known = None if self.costs is None else drafter.known(task.policy.source)
        watchers = [item.watcher(task) for item in drafter.proposers]
        self.panel = Panel(watchers, drafter.proposers, Chances(known))
        self.ends = task.stopping.end_tokens
        self._asked: dict[int, Place] = {}  # by sequence: what was guessed at its tip and below
        self._rows = 0  # of this request in the last forward
        self._serial = 0  # of places, so that of equally likely ones the first comes first

    # -- drafting --------------------------------------------------------------------------------

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        return self._drafts(streams, budget)
        yield  # guesses ask for no forward

    def _drafts(self, streams: Sequence[Stream], budget: int) -> list[Candidates]:
        tips = [Place(stream, 1.0) for stream in streams]
        self._asked = {tip.stream.sequence: tip for tip in tips}
        price = self._price(len(streams))
        chosen = self._chosen(tips, min(budget, self.drafter.nodes), price)
        self._rows = self._each * (len(streams) + len(chosen))
        self.panel.settle(chosen, price)
        drafts = [Candidates(stream.tip, stream.sequence) for stream in streams]
        if chosen:
            _put(chosen, drafts)
        return drafts

    def _chosen(self, tips: Sequence[Place], most: int, price: Price) -> list[Place]:
        """The places that pay, the likeliest first."""
        front: list[tuple[float, int, Place]] = []
        for place in tips:
            self._expand(place, front)
        chosen: list[Place] = []
        if not front:
            return chosen
        counts: dict[int, int] = {}
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
            self._expand(place, front)
        return chosen if best > GAIN * plain else []

    def _expand(self, place: Place, front: list[tuple[float, int, Place]]) -> None:
        """Ask what may come after a place, and put it into the front."""
        if place.depth + 1 >= place.stream.room or place.token in self.ends:
            return
        self.panel.ask(place)
        for guess, chance in place.guesses:
            chance = place.chance * chance
            below = Place(place.stream, chance, place, guess.token, place.depth + 1)
            place.children[guess.token] = below
            self._serial += 1
            heapq.heappush(front, (-chance, self._serial, below))

    def _price(self, streams: int) -> Price:
        others = 0 if self.costs is None else max(0, self.costs.rows - self._rows)
        return Price(self.costs, others + self._each * streams, self._each)

    # -- hindsight -------------------------------------------------------------------------------

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        self.panel.moved(stream, path, self._asked.pop(stream.sequence, None))

    def ended(self, stream: Stream) -> None:
        self.panel.ended(stream)


def _put(chosen: Sequence[Place], drafts: Sequence[Candidates]) -> None:
    """Make candidates of places, parents before children."""
    found = {draft.sequence: draft for draft in drafts}
    below: dict[int, list[Place]] = {}
    for place in chosen:
        below.setdefault(id(place.above), []).append(place)
    made: dict[int, Node] = {}
    for key, places in below.items():
        draft = found[places[0].stream.sequence]
        nodes = draft.add(made.get(key, draft.tip), [place.token for place in places])
        made.update((id(place), node) for place, node in zip(places, nodes, strict=True))


@dataclass(frozen=True)
class Price:
    """What a forward costs with so many rows beside the drafts, in plain steps."""

    costs: StepCosts | None
    rows: int
    each: int = 1  # rows of a node

    def of(self, nodes: int) -> float:
        """With so many drafted nodes. Where costs are not measured, nodes cost nothing."""
        return 1.0 if self.costs is None else self.costs.of(self.rows + self.each * nodes)

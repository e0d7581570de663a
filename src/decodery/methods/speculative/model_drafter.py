"""Drafts by a source: a small model, early exits of the large one, a table. One session, any shape.

The draft source has a tree of its own with a shadow of every stream. A draft grows it level by
level, all streams in one forward; the candidates are made on both trees. When a stream moves, its
shadow follows the same tokens: those that were drafted are there already, the last one or two are
grown with the next draft. The draft's law is the policy's sampler chain on the draft's rows unless
another one is given; any law is legal, the closer the better.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Requests, Task
from decodery.core.errors import ParameterError
from decodery.core.requests import Grow, Open
from decodery.core.sampler import Chain, Sampler
from decodery.core.source import Model, Policy, Source, same_tokens
from decodery.core.tree import Node
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.drafters import Drafter, Drafts, Steps, Stream
from decodery.methods.speculative.drafts import draft_source, loaded
from decodery.methods.speculative.growing import Branch, Growing
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.shapes import Shape


@dataclass(frozen=True)
class Drawing(Drafter):
    """Candidates of a shape, drawn from a source through `sampler` (None: the policy's own).

    `draft` is the source, or says which it is (`drafts.py`). `temperature` takes the place of the
    sampler's own; `most` cuts the shape to so many candidates below one end.
    """

    draft: str | Source | None
    shape: Shape
    sampler: Chain | None = None
    temperature: float | None = None
    most: int | None = None

    @property
    def drawn(self) -> Drawn:  # type: ignore[override]
        return self.shape.drawn

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.shape.width

    @property
    def nodes(self) -> int:  # type: ignore[override]
        return self.shape.nodes if self.most is None else min(self.most, self.shape.nodes)

    def certain(self) -> Drawing:
        """This drafter with the most probable candidates in place of drawn ones."""
        return replace(self, shape=self.shape.certain())

    def equipped(self, load: Callable[[str], Source]) -> Drawing:
        return replace(self, draft=loaded(self.draft, load))

    def policy(self, task: Task) -> Policy:
        """What drafts are drawn from. Raises `ParameterError` for a source of other tokens."""
        source = draft_source(task.policy.source, self.draft)
        if not same_tokens(task.policy.source, source):
            raise ParameterError(
                f"{source.name} and {task.policy.source.name} have different tokenizers; a draft"
                " needs the same one"
            )
        sampler = task.policy.sampler if self.sampler is None else self.sampler
        if self.temperature is not None:
            sampler = at_temperature(sampler, self.temperature)
        return Policy(source, sampler)

    def session(self, task: Task) -> SourceSession:
        return SourceSession(self, task)

    def slots(self, task: Task, streams: int) -> dict[Model, int]:
        def footprint(prompt_length: int, max_tokens: int) -> int:
            return branch_footprint(streams, prompt_length, max_tokens) + streams * self.nodes

        return self.policy(task).source.slots(task, task.prompt, footprint)


def at_temperature(sampler: Chain, temperature: float) -> Chain:
    """A chain with this temperature in place of its own, or before what truncates.

    Raises `ParameterError` where another stage sets the temperature.
    """
    kept: list[Sampler] = []
    place: int | None = None
    for stage in sampler.stages:
        if isinstance(stage, Temperature):
            place = len(kept) if place is None else place
            continue
        if stage.tempers:
            raise ParameterError(f"a temperature of the draft: {stage!r} already sets one")
        kept.append(stage)
    if place is None:
        cuts = (number for number, stage in enumerate(kept) if stage.truncates)
        place = next(cuts, len(kept))
    return Chain((*kept[:place], Temperature(temperature), *kept[place:]))


class SourceSession(Growing[Node]):
    def __init__(self, drafter: Drawing, task: Task) -> None:
        super().__init__(drafter.shape, task)
        self.policy = drafter.policy(task)
        self._shadows: dict[int, Node] = {}  # the end of each stream, on the draft's tree

    def open(self) -> Steps:
        self.root: Node = yield Open(self.policy, self.task.prompt)

    # -- drafting --------------------------------------------------------------------------------

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        yield from self._catch_up(streams)
        drafts = [Candidates(stream.tip, stream.sequence) for stream in streams]
        growing = [
            _Draft(item, [Branch(item.tip, self._shadow(stream))], stream.room - 1)
            for item, stream in zip(drafts, streams, strict=True)
        ]
        for number in range(self.shape.depth):
            growing = [item for item in growing if item.goes_on(number, budget)]
            if not growing:
                break
            if number:
                waiting = [branch.mind for item in growing for branch in item.branches]
                yield Grow(waiting, keep_rows=True)
            for item in growing:
                left = budget - item.made.count
                item.branches = self.level(item.made, item.branches, number, left)
        return drafts

    def _catch_up(self, streams: Sequence[Stream]) -> Generator[Requests, Any, None]:
        waiting = [node for item in streams for node in _not_grown(self._shadow(item))]
        if waiting:
            yield Grow(waiting, keep_rows=True)
        for stream in streams:
            for above in self._shadow(stream).ancestors():
                if not above.has_row:
                    break
                above.release_row()

    def law(self, mind: Node, sequence: int) -> Law:
        return Law.of(mind.policy_row(sequence))

    def after(self, mind: Node, token: int, sequence: int) -> Node:
        return mind.child(token, sequence)

    # -- following -------------------------------------------------------------------------------

    def _shadow(self, stream: Stream) -> Node:
        return self._shadows.get(stream.sequence, self.root)

    def moved(self, stream: Stream, path: Sequence[Node]) -> None:
        node = self._shadow(stream)
        for step in path:
            known = [item for item in node.children if _is_of(item, stream)]
            after = next((item for item in known if item.token == step.token), None)
            for other in known:
                if other is not after:
                    other.drop()
            node = after or node.child(step.token, stream.sequence)
        for rest in [item for item in node.children if _is_of(item, stream)]:
            rest.drop()
        self._shadows[stream.sequence] = node

    def ended(self, stream: Stream) -> None:
        shadow = self._shadows.pop(stream.sequence, None)
        if shadow is not None and not shadow.is_root:
            shadow.abandon()


@dataclass
class _Draft:
    """A draft in the making: the ends of its branches, and how deep it may go."""

    made: Candidates
    branches: list[Branch[Node]]
    room: int

    def goes_on(self, number: int, budget: int) -> bool:
        """Whether there may be candidates at level `number`."""
        return bool(self.branches) and self.room > number and budget > self.made.count


def _is_of(node: Node, stream: Stream) -> bool:
    return node.sequence == stream.sequence


def _not_grown(node: Node) -> list[Node]:
    """The node and those above it that are not grown yet, from the top."""
    found: list[Node] = []
    while not node.grown:
        found.append(node)
        assert node.parent is not None
        node = node.parent
    return found[::-1]

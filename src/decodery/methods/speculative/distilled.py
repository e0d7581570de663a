"""Drafts by a head distilled from the model itself, which reads the model's hidden states.

The head (`distilled_head.py`) is given the model's hidden state at the node above a text's end, and
the token at the end, and guesses on from there by itself, token after token. A draft needs no
forward, no cache and no second model, and costs little. `Distilled` proposes candidates of any
shape, with the head's law at each node, for any rule; `HeadProposer` answers an adaptive drafter
one place at a time.

A head belongs to the model that it was trained on and is refused for others. `decodery train
drafter` trains one; the embedded model comes with one.

Ankner et al.: Hydra (2024), arXiv:2402.05109; Li et al.: EAGLE (2024), arXiv:2401.15077.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar
from weakref import WeakKeyDictionary

from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.source import Model, Source
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates, Drawn
from decodery.methods.speculative.distilled_head import PART, Floats, Head, Thought
from decodery.methods.speculative.drafters import Drafter, Drafts, Stream
from decodery.methods.speculative.growing import Branch, Growing
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.proposers import Guess, Proposer, Watcher
from decodery.methods.speculative.shapes import Branching, Shape

CHAIN = Branching((1, 1, 1), "fixed")
TRUST = 0.75  # of q, how often guesses came true on questions unlike those it learnt from
_STEPS = 8  # guesses whose q falls into the same eighth are of one kind

_heads: WeakKeyDictionary[Source, dict[str | None, Head]] = WeakKeyDictionary()


def head_of(source: Source, file: str | None = None) -> Head:
    """The head that was trained for a source: from a file, or the one that comes with it.

    Raises `ParameterError` where there is none, and for a file that was trained for another model.
    """
    known = _heads.setdefault(source, {})
    if file not in known:
        known[file] = Head.of(source.part(PART, file), source.vocab_size)
    return known[file]


def propose(
    head: Head, hidden: Floats, token: int, depth: int, least: float = 0.0
) -> list[tuple[int, float]]:
    """The most probable tokens after `token`, one behind the other, each with its q.

    `hidden` is the hidden state before `token`; with `least` it ends before a token that is reached
    with a smaller product of all q so far.
    """
    thought = head.begin(hidden, token)
    found: list[tuple[int, float]] = []
    reached = 1.0
    while len(found) < depth:
        if found:
            thought = head.after(thought, found[-1][0])
        ((best, chance),) = head.best(thought, 1)
        reached *= chance
        if reached < least:
            break
        found.append((best, chance))
    return found


@dataclass(frozen=True)
class Distilled(Drafter):
    """Candidates of a shape, from the laws of a head.

    `temperature` is that of the laws, None as they were trained. `file` is a trained part, None the
    one that comes with the model. `least` ends a branch that is reached with a smaller product of
    all q, which is for fixed candidates only: of drawn ones, how many there are may not depend on
    which they are. `most` cuts the shape to so many candidates below one end.
    """

    hidden: ClassVar[bool] = True
    shape: Shape = field(default=CHAIN)
    temperature: float | None = None
    file: str | None = None
    least: float = 0.0
    most: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0.0 < self.temperature < float("inf"):
            raise ParameterError(f"a draft's temperature is {self.temperature}; it must be above 0")
        if not 0.0 <= self.least <= 1.0:
            raise ParameterError(f"least is {self.least}; allowed is 0..1")
        if self.least > 0.0 and self.shape.drawn != "fixed":
            raise ParameterError(
                f"least is {self.least}, and candidates are drawn {self.shape.drawn}; a draft that"
                " ends where it is unsure needs fixed ones"
            )

    @property
    def drawn(self) -> Drawn:  # type: ignore[override]
        return self.shape.drawn

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.shape.width

    @property
    def nodes(self) -> int:  # type: ignore[override]
        return self.shape.nodes if self.most is None else min(self.most, self.shape.nodes)

    def certain(self) -> Distilled:
        """This drafter with the most probable candidates in place of drawn ones."""
        return replace(self, shape=self.shape.certain())

    def slots(self, task: Task, streams: int) -> dict[Model, int]:
        head_of(task.policy.source, self.file)  # refused before the first forward
        return {}

    def session(self, task: Task) -> DistilledSession:
        return DistilledSession(self, task, head_of(task.policy.source, self.file))


class DistilledSession(Growing[Thought]):
    def __init__(self, drafter: Distilled, task: Task, head: Head) -> None:
        super().__init__(drafter.shape, task, drafter.least)
        self.drafter = drafter
        self.head = head

    def draft(self, streams: Sequence[Stream], budget: int) -> Drafts:
        return [self._candidates(stream, budget) for stream in streams]
        yield  # a head asks for no forward

    def _candidates(self, stream: Stream, budget: int) -> Candidates:
        draft = Candidates(stream.tip, stream.sequence)
        thought = thought_at(self.head, stream.tip)
        branches = [] if thought is None else [Branch(stream.tip, thought)]
        for number in range(min(self.shape.depth, stream.room - 1)):
            left = budget - draft.count
            if not branches or left < 1:
                break
            branches = self.level(draft, branches, number, left)
        return draft

    def law(self, mind: Thought, sequence: int) -> Law:
        return self.head.law(mind, self.drafter.temperature)

    def after(self, mind: Thought, token: int, sequence: int) -> Thought:
        return self.head.after(mind, token)


def thought_at(head: Head, tip: Node) -> Thought | None:
    """What the head knows at the end of a text; None while no hidden state is known above it."""
    above = tip.parent
    if tip.grown or above is None or above.hidden is None:
        return None
    return head.begin(above.hidden, tip.token)


# -- for adaptive drafts -----------------------------------------------------------------------


@dataclass(frozen=True)
class HeadProposer(Proposer):
    """The `count` likeliest tokens of a head at a place, with `TRUST` q as their chance.

    `optional` guesses nothing where no head was trained for the source, in place of refusing it.
    """

    costly = True
    hidden = True
    file: str | None = None
    count: int = 2
    optional: bool = False

    def watcher(self, task: Task) -> HeadWatcher:
        try:
            head = head_of(task.policy.source, self.file)
        except ParameterError:
            if not self.optional:
                raise
            head = None
        return HeadWatcher(self, head)


class HeadWatcher(Watcher):
    def __init__(self, proposer: HeadProposer, head: Head | None) -> None:
        self.count = proposer.count
        self.head = head

    def begin(self, stream: Stream) -> Thought | None:
        return None if self.head is None else thought_at(self.head, stream.tip)

    def guesses(self, state: Thought | None) -> Sequence[Guess]:
        if self.head is None or state is None:
            return ()
        found = self.head.best(state, self.count)
        return [
            Guess(token, (PART, rank, int(_STEPS * chance)), TRUST * chance)
            for rank, (token, chance) in enumerate(found)
        ]

    def after(self, state: Thought | None, token: int) -> Thought | None:
        return None if self.head is None or state is None else self.head.after(state, token)

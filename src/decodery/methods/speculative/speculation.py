"""Speculative decoding, written once: draft a tree, grow it in one forward, accept a path of it.

    candidates = yield from session.draft(streams)   the drafter's own forwards, streams together
    yield Grow([tip, *candidates])                   one forward of the policy's source
    walk down                                        at each node the rule accepts a candidate, or
                                                     says which token comes instead

Every step emits one token at least. A position is decided in one step only, so its tests and draws
have keys of their own. Where a node has no candidates its token is drawn with the number that plain
sampling draws it with; with rule `Match` every token is, so the text is, token for token, the text
without speculation.

Ends (end tokens, stop strings, budgets) are found on the path as anywhere else: what a draft has
beyond one is thrown away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.errors import BudgetExhausted, ParameterError
from decodery.core.requests import Emit, Grow, Open
from decodery.core.source import Model, Source, total
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.drafters import Drafter, Session, Stream
from decodery.methods.speculative.tally import KEY, Tallies, totals
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise, Place, Walk


class Watch(ABC):
    """Someone who looks at the steps of one sequence; what it noted goes into the details.

    `totals` of several sequences has `means`, each weighted by `weight`, and the sum of `weight`.
    """

    name: ClassVar[str]
    weight: ClassVar[str]
    means: ClassVar[tuple[str, ...]]

    @abstractmethod
    def note(self, draft: Candidates, path: Sequence[Node], place: Place) -> None:
        """A step: its candidates, all grown, and the nodes that it adds."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What it noted, as JSON; where `weight` is 0 the means say nothing."""

    @classmethod
    def totals(cls, completions: Sequence[Completion]) -> dict[str, Any]:
        """What completions' notes come to together, by name; nothing where none has any."""
        found = [item.details[cls.name] for item in completions if cls.name in item.details]
        if not found:
            return {}
        whole = sum(item[cls.weight] for item in found)
        means = {
            name: sum(item[name] * item[cls.weight] for item in found if item[cls.weight]) / whole
            if whole
            else None
            for name in cls.means
        }
        return {cls.name: {cls.weight: whole, **means}}


@dataclass(frozen=True)
class Speculation(Decoder):
    """A drafter and a walk; `n` sequences share the prompt, as in plain sampling.

    `greedy` takes the policy's most probable token everywhere, with a walk that does not draw.
    `watch` makes one that looks at a sequence.
    """

    drafter: Drafter
    walk: Walk
    n: int = 1
    greedy: bool = False
    watch: Callable[[], Watch] | None = None

    def __post_init__(self) -> None:
        drawn, most = self.drafter.drawn, self.walk.most
        if drawn not in self.walk.drawn:
            raise ParameterError(f"{self.walk!r} cannot verify {drawn} candidates exactly")
        if most is not None and self.drafter.width > most:
            raise ParameterError(
                f"{self.walk!r} takes at most {most} candidates of a node; the drafter makes"
                f" {self.drafter.width}"
            )
        if self.greedy and self.walk.draws:
            raise ParameterError(f"{self.walk!r} draws; greedy decoding needs rule Match")

    @property
    def sequences(self) -> int:
        return self.n

    @property
    def reads_argmax_only(self) -> bool:  # type: ignore[override]
        return self.greedy and self.walk.lossless

    def certain(self) -> Speculation:
        if self.watch is not None:
            raise ParameterError(
                f"{self.watch().name}: greedy decoding draws nothing, so there is nothing to"
                " average over; leave it out, or sample"
            )
        walk = NodeWise(Match()) if self.walk.draws else self.walk
        return replace(self, drafter=self.drafter.certain(), walk=walk, greedy=True)

    def equipped(self, load: Callable[[str], Source]) -> Speculation:
        return replace(self, drafter=self.drafter.equipped(load))

    def decode(self, task: Task) -> Decoding:
        run = _Run(self, task)
        try:
            yield from run.steps()
        except BudgetExhausted as spent:
            run.end_all(cast("FinishReason", spent.reason))
        return [run.ended[sequence] for sequence in sorted(run.ended)]

    def totals(self, completions: Sequence[Completion]) -> dict[str, Any]:
        watched = {} if self.watch is None else self.watch().totals(completions)
        return {**totals(completions), **watched}

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens) + self.n * self.drafter.nodes

    def slots(self, task: Task) -> dict[Model, int]:
        return total([super().slots(task), self.drafter.slots(task, self.n)])


class _Run:
    """One request: its streams, and what became of those that ended."""

    def __init__(self, decoder: Speculation, task: Task) -> None:
        self.decoder = decoder
        self.task = task
        self.session: Session = decoder.drafter.session(task)
        self.tallies = Tallies(task.policy.source)
        self.streams: list[Stream] = []
        self.ended: dict[int, Completion] = {}
        self.watches: dict[int, Watch] = {}
        decoder.walk.check(task)

    def steps(self) -> Decoding:
        root: Node = yield Open(self.task.policy, self.task.prompt)
        yield from self.session.open()
        most = self.task.stopping.max_tokens
        self.streams = [Stream(sequence, root, most) for sequence in range(self.decoder.n)]
        emits: list[Emit] = []  # of the last step, which go out with the next forward
        while self.streams:
            drafting = self.session.draft(self.streams, self.decoder.drafter.nodes)
            drafts = yield from self.tallies.drafting(drafting, emits)
            nodes = [node for item in drafts for node in _ungrown(item)]
            if nodes:
                yield (*emits, Grow(nodes, hidden=self.decoder.drafter.hidden, keep_rows=True))
                emits = []
            walks = [self.decoder.walk.path(item, self._place(item)) for item in drafts]
            for stream, draft, path in zip(self.streams, drafts, walks, strict=True):
                emits.append(Emit([node.token for node in path], stream.sequence))
                self._move(stream, draft, path)
            for path in walks:
                release_above(path[-1])
            if self.ended:
                self.streams = [item for item in self.streams if item.sequence not in self.ended]
        if emits:
            yield tuple(emits)
        return []

    def _move(self, stream: Stream, draft: Candidates, path: Sequence[Node]) -> None:
        self.tallies.note(draft, path)
        if self.decoder.watch is not None:
            watch = self.watches.setdefault(stream.sequence, self.decoder.watch())
            watch.note(draft, path, self._place(draft))
        if draft.children:
            draft.prune(path)
        stream.tip = path[-1]
        stream.room -= len(path)
        self.session.moved(stream, path)
        reason = self.task.stopping.reason(stream.tip)
        if reason is not None:
            self._end(stream, reason)
            self.session.ended(stream)
            stream.tip.abandon()

    def _place(self, draft: Candidates) -> Place:
        return Place(self.task, draft.sequence, self.decoder.greedy)

    def _end(self, stream: Stream, reason: FinishReason) -> None:
        details: dict[str, Any] = {KEY: self.tallies[stream.sequence].to_dict()}
        if stream.sequence in self.watches:
            watch = self.watches[stream.sequence]
            details[watch.name] = watch.to_dict()
        self.ended[stream.sequence] = completion(stream.tip, reason, details=details)

    def end_all(self, reason: FinishReason) -> None:
        """The budget is spent: streams that have begun end where they are."""
        for stream in self.streams:
            if stream.sequence not in self.ended and not stream.tip.is_root:
                self._end(stream, reason)


def _ungrown(draft: Candidates) -> list[Node]:
    """The tip unless its row is known, and every candidate below it."""
    candidates = draft.nodes() if draft.children else []
    return candidates if draft.tip.grown else [draft.tip, *candidates]


def release_above(tip: Node) -> None:
    """Rows above the end of a text are needed no more."""
    for above in () if tip.dropped else tip.ancestors():
        if not above.has_row:
            return
        above.release_row()

"""What the steps of speculative decoding came to: for reports, and for the controller.

A step drafts candidates, grows them in one forward of the policy's source, and emits at least one
token. Of the first token of all, where nothing was drafted for it, the prompt's own forward is all
that is needed: that step counts no forward, and its token not for the block efficiency.

    block efficiency   tau = tokens emitted / forwards of the policy's source
    MBSU               tokens / (forwards + draft forwards r) = tau / (1 + L r)

with L draft forwards a step, one after the other, each reading r times as many parameters as the
policy's source: the speed-up where only memory traffic costs. Prompts are counted in neither, and
tokens behind the end of a text nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from decodery.core.decoder import Completion, Requests
from decodery.core.errors import BudgetExhausted
from decodery.core.requests import Emit, Grow, Open
from decodery.core.source import Source
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.drafters import Drafts

KEY = "speculation"  # of the tally in a completion's details and in a report's


@dataclass
class Tally:
    """Sums over steps of one stream, or of several together.

    `offered[d]` counts the steps that had a candidate at depth d below the tip, `taken[d]` those
    that accepted one there. `forwards` are steps with a forward of the policy's source, `gained`
    their tokens. `draft_work` are the draft's forwards in forwards of the policy's source, by
    parameters; None where a source does not know how many it has.
    """

    steps: int = 0
    emitted: int = 0
    accepted: int = 0
    nodes: int = 0
    forwards: int = 0
    gained: int = 0
    draft_calls: int = 0
    draft_work: float | None = 0.0
    offered: list[int] = field(default_factory=list[int])
    taken: list[int] = field(default_factory=list[int])

    def note(self, draft: Candidates, path: Sequence[Node]) -> None:
        """One step: its candidates, and the nodes that it added below the tip."""
        levels = [set(level) for level in draft.levels()] if draft.children else []
        accepted = 0
        for node, level in zip(path, levels, strict=False):
            if node not in level:
                break
            accepted += 1
        forward = bool(levels) or not draft.tip.is_root
        self.note_counts(list(map(len, levels)), accepted, len(path), forward=forward)

    def note_counts(
        self, widths: Sequence[int], accepted: int, emitted: int, *, forward: bool = True
    ) -> None:
        """One step in numbers: candidates at each depth, how deep they were accepted, the tokens.

        When no token came behind the accepted ones, the text has ended there: what was drafted
        beyond could not be accepted, and was not refused either.
        """
        offered = len(widths) if emitted > accepted else accepted
        self.steps += 1
        self.emitted += emitted
        self.accepted += accepted
        self.nodes += sum(widths)
        self.forwards += forward
        self.gained += emitted if forward else 0
        if offered:
            self.offered = _sum(self.offered, [1] * offered)
            self.taken = _sum(self.taken, [1] * accepted + [0] * (offered - accepted))

    def note_draft(self, calls: int, work: float | None) -> None:
        """What a step asked of draft models."""
        self.draft_calls += calls
        self.draft_work = _known(self.draft_work, work)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.steps + other.steps,
            self.emitted + other.emitted,
            self.accepted + other.accepted,
            self.nodes + other.nodes,
            self.forwards + other.forwards,
            self.gained + other.gained,
            self.draft_calls + other.draft_calls,
            _known(self.draft_work, other.draft_work),
            _sum(self.offered, other.offered),
            _sum(self.taken, other.taken),
        )

    @property
    def acceptance(self) -> list[float]:
        """Of the steps that had a candidate at a depth, the share that accepted one there."""
        return [taken / offered for taken, offered in zip(self.taken, self.offered, strict=True)]

    @property
    def block_efficiency(self) -> float | None:
        """Tokens for each forward of the policy's source; None before the first."""
        return self.gained / self.forwards if self.forwards else None

    @property
    def mbsu(self) -> float | None:
        """The memory-bound speed-up; None where nobody knows what a draft reads."""
        if not self.forwards or self.draft_work is None:
            return None
        return self.gained / (self.forwards + self.draft_work)

    def to_dict(self) -> dict[str, Any]:
        """The sums and what follows from them, as data for JSON."""
        steps = max(1, self.steps)
        return {
            **asdict(self),
            "tokens_per_step": self.emitted / steps,
            "accepted_per_step": self.accepted / steps,
            "nodes_per_step": self.nodes / steps,
            "acceptance_by_depth": self.acceptance,
            "block_efficiency": self.block_efficiency,
            "mbsu": self.mbsu,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """The sums out of what `to_dict` gave."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


def totals(completions: Iterable[Completion]) -> dict[str, Any]:
    """What the completions' tallies come to together; nothing where none has one."""
    found = [item.details[KEY] for item in completions if KEY in item.details]
    whole = sum((Tally.from_dict(data) for data in found), Tally())
    return {KEY: whole.to_dict()} if found else {}


class Tallies:
    """The tally of each stream of a request; streams that draft together share those forwards."""

    def __init__(self, target: Source) -> None:
        self._target = target
        self._streams: dict[int, Tally] = {}
        self._calls = 0
        self._work: float | None = 0.0

    def __getitem__(self, sequence: int) -> Tally:
        return self._streams.setdefault(sequence, Tally())

    def drafting(self, steps: Drafts, emits: list[Emit]) -> Drafts:
        """The same coroutine; what it asks of models is counted for the steps noted next.

        If it asks anything, `emits` are sent first and cleared: no token waits for a draft model.
        """
        self._calls, self._work = 0, 0.0
        try:
            asked = next(steps)
            if emits:
                yield tuple(emits)
                emits.clear()
            while True:
                self._count(asked)
                try:
                    answer = yield asked
                except BudgetExhausted as spent:
                    asked = steps.throw(spent)
                else:
                    asked = steps.send(answer)
        except StopIteration as stop:
            return cast("list[Candidates]", stop.value)

    def note(self, draft: Candidates, path: Sequence[Node]) -> None:
        """One step of the stream that the candidates are of."""
        tally = self[draft.sequence]
        tally.note(draft, path)
        tally.note_draft(self._calls, self._work)

    def _count(self, asked: Requests) -> None:
        """A forward for each source that is asked."""
        sources: dict[Source, None] = {}
        for request in asked if isinstance(asked, tuple) else (asked,):
            if isinstance(request, Open):
                sources[request.policy.source] = None
            elif isinstance(request, Grow):
                sources |= dict.fromkeys(node.tree.policy.source for node in request.nodes)
        for source in sources:
            self._calls += 1
            self._work = _known(self._work, _ratio(source, self._target))


def _ratio(draft: Source, target: Source) -> float | None:
    if draft is target:
        return 1.0
    return draft.parameters / target.parameters if draft.parameters and target.parameters else None


def _known(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Term by term; the shorter one is zero from its end on."""
    size = max(len(one), len(other))
    longer = [[*counts, *[0] * (size - len(counts))] for counts in (one, other)]
    return [first + second for first, second in zip(*longer, strict=True)]

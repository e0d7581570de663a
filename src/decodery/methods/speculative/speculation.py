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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from decodery.core.branches import branch_footprint
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.errors import BudgetExhausted, ParameterError
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.source import Model, total
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.drafters import Drafter, Session, Stream
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.tally import Tally
from decodery.methods.speculative.verifiers import Match, Rule, Verdict, decide


@dataclass(frozen=True)
class Speculation(Decoder):
    """A drafter and a rule; `n` sequences share the prompt, as in plain sampling.

    `greedy` takes the policy's most probable token everywhere, which needs rule `Match`.
    """

    drafter: Drafter
    rule: Rule
    n: int = 1
    greedy: bool = False

    def __post_init__(self) -> None:
        rule, drawn = type(self.rule).__name__, self.drafter.drawn
        if drawn not in self.rule.drawn:
            raise ParameterError(f"rule {rule} cannot verify {drawn} candidates exactly")
        if self.rule.most is not None and self.drafter.width > self.rule.most:
            raise ParameterError(
                f"rule {rule} takes at most {self.rule.most} candidates of a node; the drafter"
                f" makes {self.drafter.width}"
            )
        if self.greedy and not isinstance(self.rule, Match):
            raise ParameterError(f"rule {rule} draws; greedy decoding needs rule Match")

    @property
    def sequences(self) -> int:
        return self.n

    def decode(self, task: Task) -> Decoding:
        run = _Run(self, task)
        try:
            yield from run.steps()
        except BudgetExhausted as spent:
            run.end_all(cast("FinishReason", spent.reason))
        return [run.ended[sequence] for sequence in sorted(run.ended)]

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
        self.tally = Tally()
        self.streams: list[Stream] = []
        self.ended: dict[int, Completion] = {}

    def steps(self) -> Decoding:
        root: Node = yield Open(self.task.policy, self.task.prompt)
        yield from self.session.open()
        most = self.task.stopping.max_tokens
        self.streams = [Stream(sequence, root, most) for sequence in range(self.decoder.n)]
        while self.streams:
            drafts = yield from self.session.draft(self.streams, self.decoder.drafter.nodes)
            nodes = [node for item in drafts for node in (*_tip(item), *item.nodes())]
            if nodes:
                yield Grow(nodes, keep_rows=True)
            walks = [self._walk(item) for item in drafts]
            emits: list[Request] = []
            for stream, draft, path in zip(self.streams, drafts, walks, strict=True):
                emits.append(Emit(tuple(node.token for node in path), stream.sequence))
                self._move(stream, draft, path)
            for path in walks:
                _release_above(path[-1])
            self.streams = [item for item in self.streams if item.sequence not in self.ended]
            yield tuple(emits)
        return []

    def _walk(self, draft: Candidates) -> list[Node]:
        """The nodes that the step adds below the tip: accepted candidates, then a drawn one."""
        node, path = draft.tip, list[Node]()
        while True:
            children = draft.children.get(node, [])
            verdict = self._judge(draft, node, [child.token for child in children])
            if verdict.number is None:
                return [*path, node.child(verdict.token, draft.sequence)]
            node = children[verdict.number]
            path.append(node)
            if self.task.stopping.reason(node) is not None:
                return path

    def _judge(self, draft: Candidates, node: Node, tokens: Sequence[int]) -> Verdict:
        sequence, stream, place = draft.sequence, self.task.stream, node.depth
        if not tokens or isinstance(self.decoder.rule, Match):
            row = node.policy_row(sequence)
            token = row.argmax() if self.decoder.greedy else node.draw(sequence)
            return Verdict(token, tokens.index(token) if token in tokens else None)
        law = Law.of(node.policy_row(sequence))
        return decide(
            self.decoder.rule.trial(law, draft.laws.get(node), tokens),
            tokens,
            lambda test: stream.uniform(sequence, place, "accept", test),
            stream.uniform(sequence, place, "residual"),
        )

    def _move(self, stream: Stream, draft: Candidates, path: Sequence[Node]) -> None:
        self.tally.note(draft, path)
        draft.prune(path)
        stream.tip = path[-1]
        stream.room -= len(path)
        self.session.moved(stream, path)
        reason = self.task.stopping.reason(stream.tip)
        if reason is not None:
            self._end(stream, reason)
            self.session.ended(stream)
            stream.tip.abandon()

    def _end(self, stream: Stream, reason: FinishReason) -> None:
        details = {"speculation": self.tally}
        self.ended[stream.sequence] = completion(stream.tip, reason, details=details)

    def end_all(self, reason: FinishReason) -> None:
        """The budget is spent: streams that have begun end where they are."""
        for stream in self.streams:
            if stream.sequence not in self.ended and not stream.tip.is_root:
                self._end(stream, reason)


def _tip(draft: Candidates) -> list[Node]:
    return [] if draft.tip.grown else [draft.tip]


def _release_above(tip: Node) -> None:
    """Rows above the end of a text are needed no more."""
    for above in () if tip.dropped else tip.ancestors():
        if not above.has_row:
            return
        above.release_row()

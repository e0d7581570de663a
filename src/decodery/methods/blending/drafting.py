"""Chunks drafted on a blend's reference and looked at on the whole blend: two trees in step.

The reference's tree grows a chunk token by token; the policy's tree then grows it as a chain, in
one forward of each model. Both trees hold the accepted path, and what is not kept is dropped from
both. The draft's law is the policy's sampler chain over the reference alone.

ln R_l = sum over the first l tokens of (ln policy - ln draft) is the log-ratio of a prefix: a blend
whose weights are on its nodes gives in it the ratio of whole chunks, whatever its scope.

A source that is no blend is its own reference. Draws are keyed by position and by how often that
position was drafted before, so no two drafts share noise, and a draft that is never rejected draws
what plain sampling from the reference draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decodery.core.decoder import Completion, Decoding, Requests, Task, completion
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.row import Row
from decodery.core.source import Blend, Model, Policy, Source, total
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node

Steps = Generator[Requests, Any, None]
Uniform = Callable[[int], float]  # a number in [0, 1) for a test of the first l tokens
Judge = Callable[[Sequence[float], Uniform], int]  # ln R of every prefix -> tokens to keep


@dataclass
class Draft:
    """A chunk on both trees, the ln of its tokens' probabilities in the draft, and its end."""

    drafted: list[Node]
    chain: list[Node]
    log_draft: list[float]
    numbers: list[int]  # how often each position was drafted before
    end: FinishReason | None  # why the answer would end with the last token

    def __len__(self) -> int:
        return len(self.chain)


class Pair:
    """The accepted path on the policy's tree (`tip`) and on the reference's (`shadow`)."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._drafted: Counter[int] = Counter()  # position -> times drafted

    def open(self) -> Steps:
        source, prompt = reference(self.task)
        sampler = self.task.policy.sampler
        self.tip, self.shadow = yield (
            Open(self.task.policy, self.task.prompt),
            Open(Policy(source, sampler), prompt),
        )

    def draft(self, length: int) -> Generator[Requests, Any, Draft]:
        """Draw up to `length` tokens from the reference; the last one is not grown."""
        waiting = not_grown(self.shadow)
        if waiting:
            yield Grow(waiting, keep_rows=True)
        draft = Draft([], [], [], [], None)
        node, twin = self.shadow, self.tip
        while True:
            number = self._number(twin.depth)
            row = node.policy_row()
            token = row.draw(self.uniform(twin.depth, "token", number))
            draft.log_draft.append(row.log_probability(token))
            draft.numbers.append(number)
            node, twin = node.child(token), twin.child(token)
            draft.drafted.append(node)
            draft.chain.append(twin)
            draft.end = self.task.stopping.reason(twin)
            if draft.end is not None or len(draft) == length:
                return draft
            yield Grow([node], keep_rows=True)

    def look(self, draft: Draft, *, ahead: bool) -> Steps:
        """Grow the chunk on the policy's tree; `ahead`, its last token on the reference's too."""
        nodes = [] if self.tip.grown else [self.tip]
        nodes += draft.chain if draft.end is None else draft.chain[:-1]
        requests: list[Request] = [Grow(nodes, keep_rows=True)] if nodes else []
        if ahead and draft.end is None:
            requests.append(Grow([draft.drafted[-1]], keep_rows=True))
        if requests:
            yield tuple(requests)

    def rows(self, draft: Draft) -> list[Row]:
        """The policy's row at each token of the chunk, when it has been looked at."""
        return [node.policy_row() for node in (self.tip, *draft.chain[:-1])]

    def log_ratios(self, draft: Draft) -> list[float]:
        """ln R_l for l = 1 .. len(draft); -inf where the policy cannot write the prefix."""
        target = [
            row.log_probability(node.token)
            for row, node in zip(self.rows(draft), draft.chain, strict=True)
        ]
        return np.cumsum(np.subtract(target, draft.log_draft)).tolist()

    def keep(self, draft: Draft, count: int) -> Emit:
        """Accept the first `count` tokens and drop the rest of the chunk."""
        if count < len(draft):
            draft.chain[count].drop()
            draft.drafted[count].drop()
        if count:
            self.tip, self.shadow = draft.chain[count - 1], draft.drafted[count - 1]
            self._let_go()
        return Emit(tuple(node.token for node in draft.chain[:count]))

    def append(self, row: Row, purpose: str) -> Emit:
        """Draw one token from a row at the tip and accept it; neither tree has grown it yet."""
        token = row.draw(self.uniform(self.tip.depth, purpose, self._number(self.tip.depth)))
        self.tip, self.shadow = self.tip.child(token), self.shadow.child(token)
        self._let_go()
        return Emit((token,))

    def uniform(self, position: int, purpose: str, number: int) -> float:
        """Noise of a position and a purpose, in [0, 1)."""
        return self.task.stream.uniform(self.tip.sequence, position, purpose, number)

    def _number(self, position: int) -> int:
        self._drafted[position] += 1
        return self._drafted[position] - 1

    def _let_go(self) -> None:
        """Rows above the accepted path's ends are needed no more."""
        for node in (self.tip, self.shadow):
            for above in node.ancestors():
                if not above.grown or not above.has_row:
                    break
                above.release_row()


def chunks(task: Task, length: int, max_tries: int, judge: Judge) -> Decoding:
    """Draft, let `judge` say how much to keep; after `max_tries` redrafts, one exact token.

    The completion's details have, for each draft, how many tokens it had and how many were kept,
    and how many tokens were drawn from the policy itself.
    """
    pair = Pair(task)
    yield from pair.open()
    rounds: list[tuple[int, int]] = []
    fallbacks = tries = 0
    while True:
        draft = yield from pair.draft(length)
        yield from pair.look(draft, ahead=True)
        kept = judge(pair.log_ratios(draft), _tests(pair, draft))
        rounds.append((len(draft), kept))
        end = draft.end if kept == len(draft) else None
        emit = pair.keep(draft, kept)
        tries = 0 if kept else tries + 1
        if tries > max_tries:
            emit = pair.append(pair.tip.policy_row(), "fallback")
            end = task.stopping.reason(pair.tip)
            fallbacks, tries = fallbacks + 1, 0
        if emit.tokens:
            yield emit
        if end is not None:
            details = {"rounds": rounds, "fallbacks": fallbacks}
            return [completion(pair.tip, end, details=details)]


def _tests(pair: Pair, draft: Draft) -> Uniform:
    start = pair.tip.depth
    return lambda length: pair.uniform(start + length, "accept", draft.numbers[length - 1])


def accepts(uniform: float, log_ratio: float, log_bound: float) -> bool:
    """Whether a test passes that passes with probability min(1, R / M); never where R is 0."""
    return uniform < math.exp(min(0.0, log_ratio - log_bound))


def reference(task: Task) -> tuple[Source, Sequence[int]]:
    """Whom drafts are drawn from, and its prompt: a blend's first member, or the source itself."""
    source = task.policy.source
    if isinstance(source, Blend):
        return source.members[0], source.prompts(task.prompt)[0]
    return source, task.prompt


def slots(task: Task, footprint: Callable[[int, int], int]) -> dict[Model, int]:
    """What both trees need: a path on every member, and one more on the reference."""
    source, prompt = reference(task)
    return total(
        [
            task.policy.source.slots(task, task.prompt, footprint),
            source.slots(task, prompt, footprint),
        ]
    )


def acceptance(items: Sequence[Completion]) -> dict[str, float]:
    """How drafts fared in completions of these decoders: shares of drafts and of their tokens.

    `accepted`: kept whole; `salvaged`: cut short; `rejected`: nothing kept; `length`: mean tokens
    kept; `fallbacks`: share of tokens that were drawn from the policy itself.
    """
    rounds = [pair for item in items for pair in item.details["rounds"]]
    drafts = max(1, len(rounds))
    whole = sum(kept == size for size, kept in rounds)
    none = sum(kept == 0 for _, kept in rounds)
    tokens = max(1, sum(len(item.tokens) for item in items))
    return {
        "accepted": whole / drafts,
        "rejected": none / drafts,
        "salvaged": (len(rounds) - whole - none) / drafts,
        "length": sum(kept for _, kept in rounds) / drafts,
        "fallbacks": sum(item.details["fallbacks"] for item in items) / tokens,
    }


def not_grown(node: Node) -> list[Node]:
    """The node and those above it that are not grown yet, from the top."""
    found: list[Node] = []
    while not node.grown:
        found.append(node)
        assert node.parent is not None
        node = node.parent
    return found[::-1]

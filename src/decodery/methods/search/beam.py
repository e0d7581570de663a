"""Beam search: keep the `beams` most probable prefixes, extend all, keep the best again.

A step looks at the 2 * beams best continuations over all beams. Those that end and rank among the
first `beams` become hypotheses; the best of the others stay alive. A hypothesis is worth its
log-probability under the policy divided by length ** length_penalty, the end token counted. The
search stops when nothing alive can still beat the worst of `beams` hypotheses; log-probabilities
only fall, so the bound is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.errors import BudgetExhausted, ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.requests import Emit, Grow, Open, Request
from decodery.core.stopping import FinishReason
from decodery.core.tree import Node

CARD = Card(
    name="beam",
    kind="decoder",
    family="search",
    summary="Keep the most probable prefixes, extend them all, return the best hypotheses.",
    guarantee="heuristic",
    law="deterministic; the exact best sequence once beams reaches the number of prefixes",
    title="The HARPY speech recognition system (beam search)",
    authors="Lowerre",
    year=1976,
    source="textbook; details as in transformers' generate",
    calls_per_token="1 (beams tokens wide)",
    reductions=(Reduction({"beams": 1, "early_stopping": True}, "greedy"),),
    deviations=(
        "early_stopping=False stops by the exact bound on what a live beam can reach, where"
        " transformers uses a heuristic",
    ),
)


class Params(Parameters):
    beams: int = parameter(4, ge=1, le=256, unit="prefixes", help="How many prefixes stay alive.")
    n: int = parameter(1, ge=1, le=256, unit="sequences", help="How many hypotheses to return.")
    length_penalty: float = parameter(
        1.0, ge=-10, le=10, help="Exponent of the length that divides the log-probability."
    )
    early_stopping: bool = parameter(
        False, help="Stop as soon as there are as many hypotheses as beams."
    )


@dataclass(frozen=True, slots=True)
class Beam:
    """A live prefix and its log-probability under the policy (nats)."""

    tip: Node
    log_probability: float


@dataclass
class Hypotheses:
    """The best `size` finished sequences."""

    size: int
    length_penalty: float
    items: list[Completion] = field(default_factory=list[Completion])

    def worth(self, log_probability: float, length: int) -> float:
        return log_probability / length**self.length_penalty

    def add(self, beam: Beam, reason: FinishReason) -> None:
        length = beam.tip.depth - len(beam.tip.tree.prompt)
        score = self.worth(beam.log_probability, length)
        self.items.append(
            completion(beam.tip, reason, log_probability=beam.log_probability, score=score)
        )
        self.items.sort(key=_score, reverse=True)  # stable: of equals, the earlier stays first
        del self.items[self.size :]

    def closed(self, best: float, length: int, max_tokens: int) -> bool:
        """No live prefix of log-probability at most `best` can enter any more."""
        if len(self.items) < self.size:
            return False
        reachable = max(self.worth(best, length), self.worth(best, max_tokens))
        return reachable <= _score(self.items[-1])


@dataclass(frozen=True)
class BeamSearch(Decoder):
    beams: int
    n: int
    length_penalty: float
    early_stopping: bool

    @property
    def sequences(self) -> int:
        return self.n

    def decode(self, task: Task) -> Decoding:
        root: Node = yield Open(task.policy, task.prompt)
        live = [Beam(root, 0.0)]
        found = Hypotheses(self.beams, self.length_penalty)
        try:
            while live:
                live = self._extend(task, live, found)
                if self._done(task, live, found):
                    break
                if live:
                    yield Grow([beam.tip for beam in live])
        except BudgetExhausted as spent:
            for beam in live:
                if not beam.tip.is_root:
                    found.add(beam, spent.reason)  # type: ignore[arg-type]
        best = found.items[: self.n]
        best = [_numbered(item, place) for place, item in enumerate(best)]
        emits: list[Request] = [Emit(item.tokens, item.sequence) for item in best]
        if emits:
            yield tuple(emits)
        return best

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return prompt_length + self.beams * max_tokens

    def _extend(self, task: Task, live: list[Beam], found: Hypotheses) -> list[Beam]:
        """One step: rank continuations, take ended ones as hypotheses, keep the best others."""
        extended: list[Beam] = []
        parents = [beam.tip for beam in live]
        for rank, (beam, token, log_probability) in enumerate(self._continuations(live)):
            if len(extended) == self.beams:
                break
            candidate = Beam(beam.tip.child(token), log_probability)
            reason = task.stopping.reason(candidate.tip)
            if reason is None:
                extended.append(candidate)
                continue
            # An ended continuation outside the first `beams` is no hypothesis, unless the budget
            # ended it: then it is what this beam has to show.
            if rank < self.beams or reason == "max_tokens":
                found.add(candidate, reason)
            candidate.tip.drop()
        for parent in parents:
            if not parent.children and not parent.is_root:
                parent.abandon()
        return extended

    def _continuations(self, live: list[Beam]) -> Iterator[tuple[Beam, int, float]]:
        """The 2 * beams best (beam, token, log-probability) over all beams, best first."""
        width = 2 * self.beams
        pool: list[tuple[float, int, int]] = []
        for order, beam in enumerate(live):
            row = beam.tip.policy_row()
            best = np.argsort(-row.scores, kind="stable")[:width]
            tokens, scores = row.token_ids()[best], row.scores[best] - row.log_normaliser
            pool += [
                (beam.log_probability + float(score), order, int(token))
                for token, score in zip(tokens, scores, strict=True)
                if score > -np.inf
            ]
        pool.sort(key=lambda item: (-item[0], item[1], item[2]))
        return ((live[order], token, value) for value, order, token in pool[:width])

    def _done(self, task: Task, live: list[Beam], found: Hypotheses) -> bool:
        if not live:
            return True
        if self.early_stopping:
            return len(found.items) >= self.beams
        length = live[0].tip.depth - len(task.prompt)
        return found.closed(live[0].log_probability, length, task.stopping.max_tokens)


def _score(item: Completion) -> float:
    assert item.score is not None
    return item.score


def _numbered(item: Completion, place: int) -> Completion:
    return Completion(
        item.tokens, item.finish_reason, place, item.log_probability, item.score, item.details
    )


def build(params: Params) -> BeamSearch:
    if params.n > params.beams:
        raise ParameterError(f"beam: n is {params.n}; allowed is at most beams = {params.beams}")
    return BeamSearch(params.beams, params.n, params.length_penalty, params.early_stopping)


METHOD = Method(CARD, Params, build)

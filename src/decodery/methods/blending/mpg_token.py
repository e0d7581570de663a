"""Token-level acceptance of chunks drafted on a blend's reference: exact, one look a chunk.

The reference drafts a chunk, every model looks at it in one forward, and token after token is
accepted with probability min(1, p / q), p the policy's and q the draft's probability of it. The
first one that is not is replaced by a draw from norm((p - q)_+), and the rest is dropped; after a
chunk that was accepted whole one more token is drawn from p. Each token has exactly the law p.

The target of Chen, Li, Yuan, Xu, Shen: Multi-Personality Generation of LLMs at Decoding-time
(2026), arXiv:2511.01891; the test of Leviathan, Kalman, Matias: Fast Inference from Transformers
via Speculative Decoding (2023), arXiv:2211.17192, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from decodery.core.card import Card, Method
from decodery.core.decoder import Decoder, Decoding, Task, completion
from decodery.core.distribution import residual
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.source import Model
from decodery.methods.blending.drafting import Draft, Pair, slots

CARD = Card(
    name="mpg_token",
    kind="decoder",
    family="blending",
    summary="Draft chunks on a blend's reference; accept them token by token, exactly.",
    guarantee="exact",
    law="the policy's own law, token by token",
    title="Fast Inference from Transformers via Speculative Decoding",
    authors="Leviathan, Kalman, Matias",
    year=2023,
    arxiv="2211.17192",
    calls_per_token="(L + 1 of the reference + 1 of every other member) / (tokens kept + 1)",
    notes="The exact baseline of mpg_scr; a source that is no blend is its own reference.",
)


class Params(Parameters):
    draft_length: int = parameter(
        8, ge=1, le=256, unit="tokens", help="Tokens of a drafted chunk, at most."
    )


@dataclass(frozen=True)
class MpgToken(Decoder):
    draft_length: int = 8

    def decode(self, task: Task) -> Decoding:
        pair = Pair(task)
        yield from pair.open()
        rounds: list[tuple[int, int]] = []
        while True:
            draft = yield from pair.draft(self.draft_length)
            yield from pair.look(draft, ahead=False)
            rows = pair.rows(draft)
            drafts = [pair.shadow.policy_row(), *(n.policy_row() for n in draft.drafted[:-1])]
            kept = _accepted(pair, draft, rows)
            rounds.append((len(draft), kept))
            end = draft.end if kept == len(draft) else None
            yield pair.keep(draft, kept)
            if end is None:
                whole = kept == len(draft)
                row = pair.tip.policy_row() if whole else _residual(rows[kept], drafts[kept])
                yield pair.append(row, "token" if whole else "residual")
                end = task.stopping.reason(pair.tip)
            if end is not None:
                details = {"rounds": rounds, "fallbacks": 0}
                return [completion(pair.tip, end, details=details)]

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return 2 * (prompt_length + max_tokens)

    def slots(self, task: Task) -> dict[Model, int]:
        return slots(task, super().footprint)


def _accepted(pair: Pair, draft: Draft, rows: list[Row]) -> int:
    """How many tokens of the chunk are accepted before the first that is not."""
    start = pair.tip.depth
    for place, (node, row) in enumerate(zip(draft.chain, rows, strict=True)):
        ratio = _ratio(row.log_probability(node.token), draft.log_draft[place])
        if pair.uniform(start + place, "accept", draft.numbers[place]) >= ratio:
            return place
    return len(draft)


def _ratio(log_target: float, log_draft: float) -> float:
    return math.exp(min(0.0, log_target - log_draft))


def _residual(target: Row, draft: Row) -> Row:
    """norm((p - q)_+): the law of the token after a rejection."""
    return Row.of_probabilities(residual(target.dense_probabilities(), draft.dense_probabilities()))


def build(params: Params) -> MpgToken:
    return MpgToken(params.draft_length)


METHOD = Method(CARD, Params, build)

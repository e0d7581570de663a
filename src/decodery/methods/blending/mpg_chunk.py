"""Chunk-level rejection with a bound that is given: exact where the bound is large enough.

The reference drafts a chunk c, every model looks at it in one forward, and it is accepted as a
whole with probability min(1, R / M), R = pi*(c) / draft(c). With M >= sup R, which the caller must
know, an accepted chunk has exactly the law pi*, and a draft is accepted with probability 1 / M.
After `max_tries` redrafts one token is drawn from pi* itself: whether that happens does not depend
on what would be drawn, so the answer's law is still the target's.

With a bound below sup R an accepted chunk has the law draft * min(1, R / M), normalised; how many
drafts had a ratio above the bound is in the completion's details.

Chen, Li, Yuan, Xu, Shen: Multi-Personality Generation of LLMs at Decoding-time (2026),
arXiv:2511.01891. Rejection sampling: von Neumann (1951).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from decodery.core.card import Card, Method
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.params import Parameters, parameter
from decodery.core.source import Model
from decodery.methods.blending.drafting import Uniform, accepts, chunks, slots

CARD = Card(
    name="mpg_chunk",
    kind="decoder",
    family="blending",
    summary="Draft chunks on a blend's reference; accept them whole under a bound that is given.",
    guarantee="law",
    law="the policy's where bound >= sup R; else accepted chunks have ~ draft * min(1, R / bound)",
    title="Multi-Personality Generation of LLMs at Decoding-time",
    authors="Chen, Li, Yuan, Xu, Shen",
    year=2026,
    arxiv="2511.01891",
    calls_per_token="(L of the reference + 1 of every other member) bound / L",
    deviations=("The exact mode of mpg_scr, a baseline of our own: the bound is given.",),
    examples=({"bound": 3.0},),
    notes="Samplers that truncate may leave the draft without a token that the policy has; then no"
    " bound is large enough. Ratios above the bound are counted in the details (`above`).",
)


class Params(Parameters):
    bound: float = parameter(
        help="M: at least the largest ratio of policy to draft over all chunks.", ge=1.0
    )
    draft_length: int = parameter(
        8, ge=1, le=256, unit="tokens", help="Tokens of a drafted chunk, at most."
    )
    max_tries: int = parameter(
        16, ge=0, le=1_000_000, unit="drafts", help="Redrafts before one token of the policy."
    )


@dataclass(frozen=True)
class MpgChunk(Decoder):
    bound: float
    draft_length: int = 8
    max_tries: int = 16

    def decode(self, task: Task) -> Decoding:
        log_bound, above = math.log(self.bound), 0

        def judge(log_ratios: Sequence[float], uniform: Uniform) -> int:
            nonlocal above
            above += log_ratios[-1] > log_bound + 1e-9
            whole = len(log_ratios)
            return whole if accepts(uniform(whole), log_ratios[-1], log_bound) else 0

        answer = yield from chunks(task, self.draft_length, self.max_tries, judge)
        answer[0].details["above"] = above
        return answer

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return 2 * (prompt_length + max_tokens)

    def slots(self, task: Task) -> dict[Model, int]:
        return slots(task, super().footprint)


def build(params: Params) -> MpgChunk:
    return MpgChunk(params.bound, params.draft_length, params.max_tries)


METHOD = Method(CARD, Params, build)

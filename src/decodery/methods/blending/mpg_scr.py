"""Speculative chunk-level rejection: the reference drafts a chunk, the blend accepts or cuts it.

A chunk c of L tokens is drawn from the reference, and every model looks at it in one forward. With
R_l = pi*(c_1..c_l) / draft(c_1..c_l) for each of its prefixes:

    M_l = max(1, q-quantile of the last W values of R_l, this one included)
    accept the whole chunk with probability min(1, R_L / M_L); otherwise
    for l = L-1 .. 1: accept c_1..c_l with probability min(1, R_l / M_l) and cut there;
    nothing accepted: draft again, at most `max_tries` times, then draw one token from pi* itself.

E[R_l] = 1 under the draft, so no bound below 1 can hold. A window that has seen fewer than
`warm_up` values uses `first_bound`. Accepting prefixes and bounds that are too low both favour what
the reference would write: the law is not the target's. mpg_chunk, mpg_token and mpg_route are.

Chen, Li, Yuan, Xu, Shen: Multi-Personality Generation of LLMs at Decoding-time (2026),
arXiv:2511.01891.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from decodery.core.card import Card, Method
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.params import Parameters, parameter
from decodery.core.source import Model
from decodery.methods.blending.drafting import Uniform, accepts, chunks, slots

CARD = Card(
    name="mpg_scr",
    kind="decoder",
    family="blending",
    summary="Draft chunks on a blend's reference; accept, cut or redraft them by density ratios.",
    guarantee="lossy",
    law="nearest to the policy's where prefixes are not salvaged and every bound is above all"
    " ratios; otherwise it leans towards the reference",
    title="Multi-Personality Generation of LLMs at Decoding-time",
    authors="Chen, Li, Yuan, Xu, Shen",
    year=2026,
    arxiv="2511.01891",
    calls_per_token="(L of the reference + 1 of every other member) / tokens kept of a chunk",
    deviations=(
        "No code of the chunk loop is published; it is rebuilt from the paper's description."
        " Window, quantile, warm-up, first bound and tries are our own numbers.",
        "Ratios are those of the policy: samplers act on the blended row and on the draft's, not on"
        " each member's.",
        "Until its window is warm the bound is first_bound, so even of models that all agree only"
        " one draft in first_bound is kept then; with 1 all are.",
    ),
)


class Params(Parameters):
    draft_length: int = parameter(
        8, ge=1, le=256, unit="tokens", help="Tokens of a drafted chunk, at most."
    )
    window: int = parameter(
        64, ge=1, le=65536, unit="ratios", help="Last ratios of each length that set its bound."
    )
    quantile: float = parameter(
        1.0, gt=0.0, le=1.0, help="Which quantile of them; below 1 accepts more and errs more."
    )
    warm_up: int = parameter(
        8, ge=1, le=65536, unit="ratios", help="Until a length has so many, first_bound counts."
    )
    first_bound: float = parameter(2.0, ge=1.0, help="The bound until then.")
    salvage: bool = parameter(True, help="Keep an acceptable prefix of a chunk that is rejected.")
    max_tries: int = parameter(
        4, ge=0, le=1024, unit="drafts", help="Redrafts before one token of the policy itself."
    )


@dataclass
class Windows:
    """The last ln R of each length, and the bounds they give."""

    params: Params
    seen: defaultdict[int, deque[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = defaultdict(lambda: deque(maxlen=self.params.window))

    def push(self, log_ratios: Sequence[float]) -> None:
        for length, value in enumerate(log_ratios, 1):
            self.seen[length].append(value)

    def log_bound(self, length: int) -> float:
        """ln M_l >= 0: the smallest value seen that a share of `quantile` does not exceed."""
        values = sorted(self.seen[length])
        if len(values) < min(self.params.warm_up, self.params.window):
            return math.log(self.params.first_bound)
        place = math.ceil(self.params.quantile * len(values) - 1e-9) - 1
        return max(0.0, values[place])


@dataclass(frozen=True)
class MpgScr(Decoder):
    params: Params

    def decode(self, task: Task) -> Decoding:
        windows = Windows(self.params)
        bounds: list[float] = []

        def judge(log_ratios: Sequence[float], uniform: Uniform) -> int:
            windows.push(log_ratios)
            bounds.append(windows.log_bound(len(log_ratios)))
            shortest = 1 if self.params.salvage else len(log_ratios)
            for length in range(len(log_ratios), shortest - 1, -1):
                bound = windows.log_bound(length)
                if accepts(uniform(length), log_ratios[length - 1], bound):
                    return length
            return 0

        answer = yield from chunks(task, self.params.draft_length, self.params.max_tries, judge)
        answer[0].details["log_bounds"] = bounds
        return answer

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return 2 * (prompt_length + max_tokens)

    def slots(self, task: Task) -> dict[Model, int]:
        return slots(task, super().footprint)


def build(params: Params) -> MpgScr:
    return MpgScr(params)


METHOD = Method(CARD, Params, build)

"""Best of n: draw n sequences from the policy, score them all, return the one that scores best.

With scores that have no ties, sequence y is returned with probability F(y)^n - F(y-)^n, where F is
the distribution function of the score under the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from decodery.core import registry
from decodery.core.branches import branch_footprint, branches
from decodery.core.card import Card, Method, Reduction
from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.params import Parameters, parameter
from decodery.core.requests import Emit, Score
from decodery.core.scorer import Candidate, Scorer

CARD = Card(
    name="best_of_n",
    kind="decoder",
    family="selection",
    summary="Draw n sequences and return the one a scorer likes best.",
    guarantee="law",
    law="P(y) = F(y)^n - F(y-)^n, F the distribution function of the score under the policy",
    title="Learning to summarize from human feedback (best-of-n)",
    authors="Stiennon, Ouyang, Wu, Ziegler, Lowe, Voss, Radford, Amodei, Christiano",
    year=2020,
    arxiv="2009.01325",
    needs=("scorer",),
    calls_per_token="1 (n tokens wide), then one call of the scorer",
    reductions=(Reduction({"n": 1}, "sample"),),
)


class Params(Parameters):
    n: int = parameter(4, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")
    scorer: str | Scorer = parameter(
        "likelihood", help="A scorer, or the name of a registered one."
    )


@dataclass(frozen=True)
class BestOfN(Decoder):
    n: int
    scorer: Scorer

    def decode(self, task: Task) -> Decoding:
        pool: list[Completion] = yield from branches(
            task, self.n, emit=False, log_probabilities=True
        )
        if not pool:  # the budget ended before a first token
            return []
        scores = yield Score(self.scorer, [_candidate(task, item) for item in pool])
        scores = np.where(np.isnan(scores), -np.inf, scores)
        best = int(scores.argmax())
        chosen = pool[best]
        yield Emit(chosen.tokens)
        details: dict[str, Any] = {
            "chosen": best,
            "scorer": self.scorer.name,
            "scores": scores.tolist(),
        }
        return [
            Completion(
                chosen.tokens,
                chosen.finish_reason,
                log_probability=chosen.log_probability,
                score=float(scores[best]),
                details=details,
            )
        ]

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens)


def _candidate(task: Task, item: Completion) -> Candidate:
    assert item.log_probability is not None
    text = task.stopping.cut(task.decode(item.tokens))
    return Candidate(task.prompt_text, text, item.tokens, item.log_probability)


def build(params: Params) -> BestOfN:
    scorer = params.scorer
    if isinstance(scorer, str):
        scorer = registry.get(scorer, "scorer")()
    return BestOfN(params.n, scorer)


METHOD = Method(CARD, Params, build)

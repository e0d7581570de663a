"""Min-p: keep every token at least `min_p` times as probable as the most probable one.

The floor rises when the model is sure and falls when it is not. It is decided on the scores,
z_v >= z_max + ln b, which needs no softmax and does not underflow; tokens exactly on the floor
stay. After a temperature T, base b keeps the set that base b^T keeps before it. Larger is stricter.

Nguyen, Baker, Neo, Roush, Kirsch, Shwartz-Ziv: Turning Up the Heat: Min-p Sampling for Creative and
Coherent LLM Outputs (2024), arXiv:2407.01082. A re-analysis, arXiv:2506.13681, finds it robust at
high temperature and not better than others at their best settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.heads import head, kth_highest

CARD = Card(
    name="min_p",
    kind="sampler",
    family="sampling",
    summary="Keep tokens at least min_p times as probable as the most probable one.",
    guarantee="law",
    law="the row restricted to {v: p_v >= b * p_max} and renormalised, b = min_p",
    title="Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
    authors="Nguyen, Baker, Neo, Roush, Kirsch, Shwartz-Ziv",
    year=2024,
    arxiv="2407.01082",
    place=80,
    reductions=(
        Reduction({"min_p": 0.0}, "identity"),
        Reduction({"min_p": 1.0}, "top_k", {"top_k": 1}),
    ),
    notes=(
        "The paper applies the temperature first. An engine that applies it last (llama.cpp) with "
        "base b and temperature T keeps the set of b^(1/T) here."
    ),
)


class Params(Parameters):
    min_p: float = parameter(
        0.05,
        ge=0.0,
        le=1.0,
        unit="of the highest probability",
        help="Floor relative to the most probable token; 0 keeps all, larger is stricter.",
    )
    min_p_keep: int = parameter(
        1, ge=1, unit="tokens", help="Keep at least this many of the most probable tokens."
    )


@dataclass(frozen=True)
class MinP(Sampler):
    """{v: p_v >= b * p_max}, and at least `keep` tokens (of equals, the lowest ids).

    >>> row = Row.of_probabilities([0.5, 0.3, 0.15, 0.05])
    >>> MinP(0.2).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 1, 2])
    """

    keeps_argmax: ClassVar[bool] = True
    min_p: float = 0.05
    keep: int = 1

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.min_p > 0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.min_p == 0 or self.keep >= len(row):
            return row
        kept = row.scores >= row.maximum + math.log(self.min_p)
        if np.count_nonzero(kept) >= self.keep:
            return row.keep(kept)
        return row.keep_at(head(row.scores, kth_highest(row.scores, self.keep), self.keep))


def build(params: Params) -> MinP:
    return MinP(params.min_p, params.min_p_keep)


METHOD = Method(CARD, Params, build)

"""Epsilon sampling: keep every token of at least a fixed probability.

{v: p_v >= eps}. Where no token reaches it, the most probable ones stay, all that tie. The cut is
decided on the scores, z_v >= ln(sum of exp z) + ln eps. Unlike min-p's, the floor does not move
with the model's confidence: on a flat row it may leave one token.

Hewitt, Manning, Liang: Truncation Sampling as Language Model Desmoothing (2022), arXiv:2210.15191,
section 3.1; `epsilon_cutoff` in transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="epsilon",
    kind="sampler",
    family="sampling",
    summary="Keep tokens of at least a fixed probability.",
    guarantee="law",
    law="the row restricted to {v: p_v >= eps}, or to the most probable tokens, and renormalised",
    title="Truncation Sampling as Language Model Desmoothing",
    authors="Hewitt, Manning, Liang",
    year=2022,
    arxiv="2210.15191",
    place=92,
    reductions=(Reduction({"epsilon_cutoff": 0.0}, "identity"),),
    notes="transformers' rule. Where no token reaches the cut, all that tie for the top stay.",
)


class Params(Parameters):
    epsilon_cutoff: float = parameter(
        3e-4, ge=0.0, lt=1.0, unit="probability", help="Lowest probability to keep; 0 keeps all."
    )


@dataclass(frozen=True)
class Epsilon(Sampler):
    """{v: p_v >= epsilon}, and the most probable tokens in any case.

    >>> row = Row.of_probabilities([0.5, 0.3, 0.15, 0.05])
    >>> Epsilon(0.1).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 1, 2])
    """

    keeps_argmax: ClassVar[bool] = True
    epsilon: float = 3e-4

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.epsilon > 0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.epsilon == 0:
            return row
        floor = min(row.maximum, row.log_normaliser + math.log(self.epsilon))
        return row.keep(row.scores >= floor)


def build(params: Params) -> Epsilon:
    return Epsilon(params.epsilon_cutoff)


METHOD = Method(CARD, Params, build)

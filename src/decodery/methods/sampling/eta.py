"""Eta sampling: a floor on the probability that sinks where the model is uncertain.

{v: p_v >= min(eps, sqrt(eps) * exp(-H))} with H the entropy of the row in nats: epsilon sampling
while the entropy is low, a floor below eps once H > -ln(eps) / 2. Where no token reaches the floor,
the most probable ones stay, all that tie.

Hewitt, Manning, Liang: Truncation Sampling as Language Model Desmoothing (2022), arXiv:2210.15191,
eq. 4 with alpha = sqrt(eps); `eta_cutoff` in transformers.
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
    name="eta",
    kind="sampler",
    family="sampling",
    summary="Keep tokens above a floor on the probability that sinks with the entropy.",
    guarantee="law",
    law="the row restricted to {v: p_v >= min(eps, sqrt(eps) exp(-H))}, or to the most probable"
    " tokens, and renormalised",
    title="Truncation Sampling as Language Model Desmoothing",
    authors="Hewitt, Manning, Liang",
    year=2022,
    arxiv="2210.15191",
    place=94,
    reductions=(Reduction({"eta_cutoff": 0.0}, "identity"),),
    notes="transformers' rule. Where no token reaches the floor, all that tie for the top stay.",
)


class Params(Parameters):
    eta_cutoff: float = parameter(
        3e-4, ge=0.0, lt=1.0, unit="probability", help="The floor's highest value; 0 keeps all."
    )


@dataclass(frozen=True)
class Eta(Sampler):
    """{v: p_v >= min(eps, sqrt(eps) exp(-H))}, and the most probable tokens in any case.

    >>> row = Row.of_probabilities([0.55, 0.35, 0.1])  # entropy 0.93: the floor is 0.144
    >>> Eta(0.134).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 1])
    """

    keeps_argmax: ClassVar[bool] = True
    epsilon: float = 3e-4

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.epsilon > 0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.epsilon == 0:
            return row
        log_epsilon = math.log(self.epsilon)
        log_floor = min(log_epsilon, log_epsilon / 2.0 - row.entropy())
        return row.keep(row.scores >= min(row.maximum, row.log_normaliser + log_floor))


def build(params: Params) -> Eta:
    return Eta(params.eta_cutoff)


METHOD = Method(CARD, Params, build)

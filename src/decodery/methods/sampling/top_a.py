"""Top-a: keep every token of at least a times the square of the highest probability.

{v: p_v >= a * p_max^2}: a floor that rises faster with the model's confidence than min-p's, which
is linear in p_max. Decided on the scores, z_v - z_max >= ln a + ln p_max. The most probable token
always stays, since a * p_max <= 1.

From RWKV-LM and KoboldAI; the same formula in KoboldCpp and text-generation-webui.
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
    name="top_a",
    kind="sampler",
    family="sampling",
    summary="Keep tokens of at least a times the squared highest probability.",
    guarantee="law",
    law="the row restricted to {v: p_v >= a * p_max^2} and renormalised",
    title="Top-a sampling",
    authors="the RWKV-LM and KoboldAI projects",
    year=2022,
    source="RWKV-LM, KoboldCpp, text-generation-webui",
    place=78,
    reductions=(Reduction({"top_a": 0.0}, "identity"),),
    notes="Tokens on the floor stay.",
)


class Params(Parameters):
    top_a: float = parameter(
        0.2, ge=0.0, le=1.0, help="Factor of the squared highest probability; 0 keeps all."
    )


@dataclass(frozen=True)
class TopA(Sampler):
    """{v: p_v >= a * p_max^2}.

    >>> row = Row.of_probabilities([0.6, 0.3, 0.07, 0.03])  # the floor is 0.072
    >>> TopA(0.2).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 1])
    """

    keeps_argmax: ClassVar[bool] = True
    top_a: float = 0.2

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.top_a > 0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.top_a == 0:
            return row
        # ln p_max, at most 0: rounding must not lift the floor above the most probable token.
        log_top = min(0.0, row.maximum - row.log_normaliser)
        return row.keep(row.scores >= row.maximum + math.log(self.top_a) + log_top)


def build(params: Params) -> TopA:
    return TopA(params.top_a)


METHOD = Method(CARD, Params, build)

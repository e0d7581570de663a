"""Locally typical sampling: keep the tokens whose surprise is nearest to the entropy, up to a mass.

People choose words that carry about the expected information, neither too little nor too much.
Tokens are taken in the order of |-ln p_v - H| until their mass reaches m; tokens that tie with the
last one stay, as in transformers. The most probable token may go.

The row is not sorted. Of n tokens, those with p_v < (1-m)/n hold less than 1-m together; with the
bound on the surprise raised to 2H + ln p_max, at which a token is as far above H as the most
probable one is below it, no token beyond the bound can come before one within it.

Meister, Pimentel, Wiher, Cotterell: Locally Typical Sampling (2022), arXiv:2202.00666, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="typical",
    kind="sampler",
    family="sampling",
    summary="Keep the tokens whose surprise is nearest to the entropy, up to a mass.",
    guarantee="law",
    law="the row restricted to the smallest set, by |-ln p - H|, of mass >= m and renormalised",
    title="Locally Typical Sampling",
    authors="Meister, Pimentel, Wiher, Cotterell",
    year=2022,
    arxiv="2202.00666",
    place=90,
    reductions=(Reduction({"typical_p": 1.0}, "identity"),),
    notes="All tokens that tie with the last one kept are kept. The most probable token may go.",
)

# exp of it is 0 in float64, so 0 * WEIGHTLESS stands for p ln p at p = 0; every bound is above it.
WEIGHTLESS = -1000.0


class Params(Parameters):
    typical_p: float = parameter(
        0.95, gt=0.0, le=1.0, unit="probability", help="Mass of the set to keep; 1 keeps all."
    )


@dataclass(frozen=True)
class Typical(Sampler):
    """The tokens nearest to the entropy whose mass reaches `mass`.

    >>> row = Row.of_probabilities([0.4, 0.2, 0.2, 0.2])  # entropy 1.33, surprises 0.92, 1.61
    >>> Typical(0.5).apply(row, None, Context((0,), 1)).token_ids()
    array([1, 2, 3])
    """

    mass: float = 0.95

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.mass < 1

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.mass == 1:
            return row
        shifted = row.scores - row.scores.dtype.type(row.maximum)
        np.maximum(shifted, WEIGHTLESS, out=shifted)
        weights = np.exp(shifted)
        total = float(weights.sum(dtype=np.float64))
        log_total = math.log(total)  # also the surprise of the most probable token
        weighted = np.multiply(weights, shifted, out=weights)
        entropy = log_total - float(weighted.sum(dtype=np.float64)) / total

        bound = max(math.log(len(row) / (1.0 - self.mass)), 2.0 * entropy - log_total)
        candidates = np.flatnonzero(shifted >= log_total - bound)
        surprise = log_total - shifted[candidates].astype(np.float64)
        deviation = np.abs(surprise - entropy)
        order = np.argsort(deviation)
        mass = np.cumsum(np.exp(-surprise[order]))
        last = min(int(np.searchsorted(mass, self.mass)), order.size - 1)
        return row.keep_at(candidates[deviation <= deviation[order[last]]])


def build(params: Params) -> Typical:
    return Typical(params.typical_p)


METHOD = Method(CARD, Params, build)

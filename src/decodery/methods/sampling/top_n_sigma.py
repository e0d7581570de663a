"""Top-n-sigma: keep the scores within n standard deviations of the highest one.

{v: z_v >= z_max - n * std(z)}, the population deviation over the possible tokens. Scaling all
scores scales both sides, so the set does not depend on a temperature before it; and as only
differences count, it does not depend on where zero is either. It does depend on which tokens the
row holds: after a truncation the deviation is that of the survivors.

Tang, Liu, Xu, Huang, et al.: Top-nσ: Not All Logits Are You Need (2024), arXiv:2411.07641;
`--top-nsigma` in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="top_n_sigma",
    kind="sampler",
    family="sampling",
    summary="Keep tokens within n standard deviations of the highest score.",
    guarantee="law",
    law="the row restricted to {v: z_v >= z_max - n * std(z)} and renormalised",
    title="Top-nσ: Not All Logits Are You Need",
    authors="Tang, Liu, Xu, Huang, et al.",
    year=2024,
    arxiv="2411.07641",
    place=38,
    notes=(
        "llama.cpp takes 0 for off; here 0 is refused, as the formula's limit is the opposite:"
        " only the most probable token. Impossible tokens are no part of the deviation."
    ),
)


class Params(Parameters):
    top_n_sigma: float = parameter(
        1.0,
        gt=0.0,
        le=100.0,
        unit="standard deviations",
        help="How far below the highest score a token may lie.",
    )


@dataclass(frozen=True)
class TopNSigma(Sampler):
    """{v: z_v >= z_max - n * std(z)}.

    >>> row = Row.dense([4.0, 2.0, 0.0, -2.0])  # deviation 2.24
    >>> TopNSigma(1.0).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 1])
    """

    keeps_argmax: ClassVar[bool] = True
    truncates: ClassVar[bool] = True
    n: float = 1.0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        possible = row.scores[row.scores > -np.inf].astype(np.float64)
        with np.errstate(over="ignore"):  # an infinite deviation keeps all
            deviation = float(np.std(possible - row.maximum))
        return row.keep(row.scores >= row.maximum - self.n * deviation)


def build(params: Params) -> TopNSigma:
    return TopNSigma(params.top_n_sigma)


METHOD = Method(CARD, Params, build)

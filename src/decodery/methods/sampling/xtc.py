"""XTC, exclude top choices: now and then remove the most probable tokens and leave the next best.

With probability P, among the tokens with p_v >= t, if they are at least two, all but the least
probable of them are removed. What remains of the head is still a good choice, and the obvious
continuation is gone: this breaks cliches without admitting the tail. One toss of a coin a position,
from the noise of this place. Averaged over it, the law is (1 - P) p + P p'.

By p-e-w for text-generation-webui (pull request 6335); the same rule in llama.cpp and KoboldCpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Mask, Row
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="xtc",
    kind="sampler",
    family="sampling",
    summary="At random, remove the most probable tokens and keep the least of them.",
    guarantee="law",
    law="with probability P, the row without those of {v: p_v >= t} that are not the least"
    " probable of it, renormalised; else the row",
    title="Exclude Top Choices (XTC): a sampler that boosts creativity",
    authors="p-e-w",
    year=2024,
    source="text-generation-webui pull request 6335, llama.cpp",
    place=96,
    reductions=(Reduction({"xtc_probability": 0.0}, "identity"),),
    notes=(
        "A threshold above 0.5 never reaches two tokens and is refused. Of tokens that tie for the"
        " least probable, the lowest id stays. End tokens are treated as any other."
    ),
)


class Params(Parameters):
    xtc_probability: float = parameter(
        0.5, ge=0.0, le=1.0, unit="probability", help="How often it acts; 0 is off."
    )
    xtc_threshold: float = parameter(
        0.1, gt=0.0, le=0.5, unit="probability", help="From which probability on a token is a top."
    )


@dataclass(frozen=True)
class Xtc(Sampler):
    """With `probability`, the tokens of at least `threshold` but the last of them are removed.

    >>> row = Row.of_probabilities([0.5, 0.3, 0.15, 0.05])
    >>> Xtc(1.0, 0.1).apply(row, None, Context((0,), 1)).token_ids()
    array([2, 3])
    """

    needs_noise: ClassVar[bool] = True
    probability: float = 0.5
    threshold: float = 0.1

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in before:
            if self.probability > 0 and stage.most_tokens == 1:
                raise ParameterError(
                    f"xtc needs two tokens, and {stage!r} before it leaves one; put xtc before it"
                    " (sampler_order), or leave one of them out"
                )

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if context.uniform("xtc") >= self.probability:
            return row
        tops = row.scores >= row.log_normaliser + math.log(self.threshold)
        if np.count_nonzero(tops) < 2:
            return row
        return row.keep(~_but_the_least(row, tops))


def _but_the_least(row: Row, tops: Mask) -> Mask:
    """The tops without the least probable of them; of ties, without the lowest id."""
    positions = np.flatnonzero(tops)
    removed = tops.copy()
    removed[positions[row.scores[positions].argmin()]] = False
    return removed


def build(params: Params) -> Xtc:
    return Xtc(params.xtc_probability, params.xtc_threshold)


METHOD = Method(CARD, Params, build)

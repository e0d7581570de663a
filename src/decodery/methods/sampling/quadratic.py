"""Quadratic smoothing: bend the scores by a parabola, and a cubic, around the highest one.

z'_v = z_max - f * (k d^2 - s d^3) with d = z_v - z_max <= 0, k = (3 - c) / 2, s = (c - 1) / 2. With
c = 1 it is the plain parabola: tokens near the top come closer to each other and the tail sinks
faster than linearly, which is temperature above 1 for the head and below 1 for the rest. Only
differences to the maximum count, so it does not depend on where zero is.

By kalomaze: "smoothing factor" f and "smoothing curve" c in text-generation-webui and koboldcpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decodery.core.card import Card, Method
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="quadratic",
    kind="sampler",
    family="sampling",
    summary="Bend the scores by a parabola around the highest one.",
    guarantee="law",
    law="softmax(-f (k d^2 - s d^3)), d = z - z_max, k = (3 - c) / 2, s = (c - 1) / 2",
    title="Quadratic sampling (smoothing factor and curve)",
    authors="kalomaze",
    year=2024,
    source="text-generation-webui pull requests 5403 and 5551, koboldcpp",
    place=44,
    notes=(
        "The engines take f = 0 for off; here 0 is refused, as the formula would make all tokens"
        " equal. Above c = 3, k is negative: tokens a little below the top rise above it."
    ),
)


class Params(Parameters):
    smoothing_factor: float = parameter(
        0.3, gt=0.0, le=100.0, help="Strength f of the bend; small is flat, large is steep."
    )
    smoothing_curve: float = parameter(
        1.0, ge=1.0, le=10.0, help="Shape c: 1 is a parabola, 3 a cubic; above 3 the top moves."
    )


@dataclass(frozen=True)
class Quadratic(Sampler):
    """softmax(-f (k d^2 - s d^3)) with d = z - z_max.

    >>> row = Row.dense([0.0, -1.0, -2.0])
    >>> Quadratic(0.5).apply(row, None, Context((0,), 1)).scores
    array([-0. , -0.5, -2. ])
    """

    factor: float = 0.3
    curve: float = 1.0

    @property
    def keeps_argmax(self) -> bool:  # type: ignore[override]
        return self.curve <= 3

    def apply(self, row: Row, state: State, context: Context) -> Row:
        k, s = (3.0 - self.curve) / 2.0, (self.curve - 1.0) / 2.0
        scores = np.full(len(row), -np.inf)
        possible = row.scores > -np.inf
        below = row.scores[possible].astype(np.float64) - row.maximum
        with np.errstate(over="ignore"):  # a score that falls to -inf had no weight left
            scores[possible] = -self.factor * (below * below * (k - s * below))
            return row.with_scores(scores.astype(row.scores.dtype))


def build(params: Params) -> Quadratic:
    return Quadratic(params.smoothing_factor, params.smoothing_curve)


METHOD = Method(CARD, Params, build)

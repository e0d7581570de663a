"""Temperature: divide the scores by T, which sharpens the law below 1 and flattens it above.

p_T(v) is proportional to p(v)^(1/T). T = 1 changes nothing; T -> 0 is greedy, and T = 0 is taken
as that limit, with the lowest id among equals. The name is that of the Boltzmann law.

Ackley, Hinton, Sejnowski: A Learning Algorithm for Boltzmann Machines, Cognitive Science 9 (1985).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row, Scores
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="temperature",
    kind="sampler",
    family="sampling",
    summary="Divide the scores by T: below 1 sharper, above 1 flatter, 0 greedy.",
    guarantee="law",
    law="softmax(z / T); at T = 0 all mass on the most probable token, the lowest id among equals",
    title="A Learning Algorithm for Boltzmann Machines",
    authors="Ackley, Hinton, Sejnowski",
    year=1985,
    source="Cognitive Science 9",
    place=40,
    reductions=(Reduction({"temperature": 1.0}, "identity"),),
    notes="Penalties and biases act on scores as they find them: put them before the temperature.",
)


class Params(Parameters):
    temperature: float = parameter(
        1.0, ge=0.0, le=100.0, help="Divides the scores; 1 changes nothing, 0 is greedy."
    )


@dataclass(frozen=True)
class Temperature(Sampler):
    """softmax(z / T).

    >>> row = Row.of_probabilities([0.6, 0.3, 0.1])
    >>> cooler = Temperature(0.5).apply(row, None, Context((0,), 1))
    >>> cooler.probabilities().round(4)
    array([0.7826, 0.1957, 0.0217])
    """

    keeps_argmax: ClassVar[bool] = True
    temperature: float = 1.0

    @property
    def tempers(self) -> bool:  # type: ignore[override]
        return self.temperature != 1

    @property
    def most_tokens(self) -> int | None:  # type: ignore[override]
        return 1 if self.temperature == 0 else None

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.temperature == 1:
            return row
        if self.temperature == 0:
            return row.keep_at(np.array([row.scores.argmax()]))
        return row.with_scores(_quotient(row, self.temperature))


def _quotient(row: Row, temperature: float) -> Scores:
    largest = float(np.finfo(row.scores.dtype).max)
    with np.errstate(over="ignore"):  # a score that falls to -inf had no weight left
        if temperature * largest > max(abs(row.maximum), 1.0):
            return row.scores / temperature
        # z / T leaves the range of the type: measured from the maximum, the law is the same.
        return (row.scores.astype(np.float64) - row.maximum) / temperature


def build(params: Params) -> Temperature:
    return Temperature(params.temperature)


METHOD = Method(CARD, Params, build)

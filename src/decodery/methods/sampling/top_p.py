"""Top-p (nucleus): keep the smallest head of the law whose mass reaches p.

A token stays exactly when the tokens ahead of it hold less than p. Of tokens that tie at the cut,
those with the lowest ids stay, and only as many as are needed; transformers leaves that choice to
an unstable sort, so there only the number of tied tokens is defined.

Weights have the precision of the row, their sums are float64. The row is not sorted: of n tokens,
those lighter than (1-p)·Z/n hold less than (1-p)·Z together, so the head lies in the others.

Holtzman, Buys, Du, Forbes, Choi: The Curious Case of Neural Text Degeneration (2019),
arXiv:1904.09751, eq. 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.heads import head

CARD = Card(
    name="top_p",
    kind="sampler",
    family="sampling",
    summary="Keep the smallest set of most probable tokens whose mass reaches p.",
    guarantee="law",
    law="the row restricted to the smallest head of mass >= p and renormalised",
    title="The Curious Case of Neural Text Degeneration",
    authors="Holtzman, Buys, Du, Forbes, Choi",
    year=2019,
    arxiv="1904.09751",
    place=70,
    reductions=(Reduction({"top_p": 1.0}, "identity"),),
    notes="Of tokens that tie at the cut, the lowest ids are kept, as many as needed.",
)


class Params(Parameters):
    top_p: float = parameter(
        0.95, gt=0.0, le=1.0, unit="probability", help="Mass of the head to keep; 1 keeps all."
    )


@dataclass(frozen=True)
class TopP(Sampler):
    """The smallest head whose mass reaches p.

    >>> row = Row.of_probabilities([0.1, 0.5, 0.3, 0.1])
    >>> TopP(0.75).apply(row, None, Context((0,), 1)).token_ids()
    array([1, 2])
    """

    keeps_argmax: ClassVar[bool] = True
    top_p: float = 0.95

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.top_p < 1

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.top_p == 1:
            return row
        maximum = row.scores.dtype.type(row.maximum)
        weights = row.scores - maximum
        np.exp(weights, out=weights)
        total = float(weights.sum(dtype=np.float64))
        candidates = np.flatnonzero(weights >= (1.0 - self.top_p) * total / len(row))
        scores = row.scores[candidates]
        descending = np.sort(scores)[::-1]
        mass = np.cumsum(np.exp(descending - maximum), dtype=np.float64)
        last = min(int(np.searchsorted(mass, self.top_p * total)), scores.size - 1)
        if last + 1 == len(row):
            return row
        return row.keep_at(candidates[head(scores, float(descending[last]), last + 1)])


def build(params: Params) -> TopP:
    return TopP(params.top_p)


METHOD = Method(CARD, Params, build)

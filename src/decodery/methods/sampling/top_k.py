"""Top-k: keep the k most probable tokens.

Tokens that tie with the k-th are kept too, as in transformers and vLLM, so the result does not
depend on the order of a sort; with ties more than k tokens may stay.

Fan, Lewis, Dauphin: Hierarchical Neural Story Generation (2018), arXiv:1805.04833, section 5.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.heads import kth_highest

CARD = Card(
    name="top_k",
    kind="sampler",
    family="sampling",
    summary="Keep the k most probable tokens.",
    guarantee="law",
    law="the row restricted to {v: z_v >= the k-th highest score} and renormalised",
    title="Hierarchical Neural Story Generation",
    authors="Fan, Lewis, Dauphin",
    year=2018,
    arxiv="1805.04833",
    place=60,
    reductions=(Reduction({"top_k": 0}, "identity"),),
    notes="All tokens that tie with the k-th are kept.",
)


class Params(Parameters):
    top_k: int = parameter(50, ge=0, unit="tokens", help="How many tokens to keep; 0 keeps all.")


@dataclass(frozen=True)
class TopK(Sampler):
    """The k most probable tokens and those that tie with the k-th.

    >>> row = Row.of_probabilities([0.2, 0.4, 0.2, 0.2])
    >>> TopK(1).apply(row, None, Context((0,), 1)).token_ids()
    array([1])
    >>> len(TopK(2).apply(row, None, Context((0,), 1)))
    4
    """

    keeps_argmax: ClassVar[bool] = True
    top_k: int = 50

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.top_k > 0

    @property
    def most_tokens(self) -> int | None:  # type: ignore[override]
        return self.top_k or None

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.top_k == 0 or self.top_k >= len(row):
            return row
        return row.keep(row.scores >= kth_highest(row.scores, self.top_k))


def build(params: Params) -> TopK:
    return TopK(params.top_k)


METHOD = Method(CARD, Params, build)

"""Allowed tokens: only the listed tokens may come.

The law of the row, given that the token is in the list. An empty list is off.

`allowed_token_ids` of vLLM's sampling parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Ids, Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.exclusion import named_ids, require_known

CARD = Card(
    name="allowed_tokens",
    kind="sampler",
    family="sampling",
    summary="Only the listed tokens may come.",
    guarantee="law",
    law="the row restricted to the listed tokens and renormalised",
    title="Sampling parameters: allowed_token_ids",
    authors="the vLLM project",
    year=2024,
    source="vLLM",
    place=36,
    reductions=(Reduction({"allowed_tokens": ()}, "identity"),),
    notes="An id that the vocabulary does not have is an error.",
)


class Params(Parameters):
    allowed_tokens: tuple[int, ...] = parameter(
        (), unit="token ids", help="The only tokens that may come; an empty list allows all."
    )


@dataclass(frozen=True)
class AllowedTokens(Sampler):
    """The row restricted to `tokens` (ascending, distinct); none means all.

    >>> row = Row.dense([0.0, 1.0, 2.0])
    >>> AllowedTokens((0, 2)).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 2])
    """

    tokens: tuple[int, ...] = ()

    @cached_property
    def ids(self) -> Ids:
        """The tokens as an array."""
        return np.array(self.tokens, dtype=np.intp)

    @property
    def most_tokens(self) -> int | None:  # type: ignore[override]
        return len(self.tokens) or None

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if not self.tokens:
            return row
        require_known(self.ids, row, "allowed_tokens")
        positions, _ = row.positions(self.ids)
        return row.keep_at(positions)


def build(params: Params) -> AllowedTokens:
    return AllowedTokens(named_ids(params.allowed_tokens, "allowed_tokens"))


METHOD = Method(CARD, Params, build)

"""Banned tokens: the listed tokens may not come.

The law of the row, given that the token is not in the list.

`suppress_tokens` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Ids, Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.exclusion import named_ids, require_known, without

CARD = Card(
    name="banned_tokens",
    kind="sampler",
    family="sampling",
    summary="The listed tokens may not come.",
    guarantee="law",
    law="the row restricted to the tokens not listed and renormalised",
    title="Generation parameters: suppress_tokens",
    authors="the transformers project",
    year=2022,
    source="transformers",
    place=34,
    reductions=(Reduction({"banned_tokens": ()}, "identity"),),
    notes="An id that the vocabulary does not have is an error.",
)


class Params(Parameters):
    banned_tokens: tuple[int, ...] = parameter(
        (), unit="token ids", help="Tokens that may not come."
    )


@dataclass(frozen=True)
class BannedTokens(Sampler):
    """The row without `tokens` (ascending, distinct).

    >>> row = Row.dense([0.0, 1.0, 2.0])
    >>> BannedTokens((0, 2)).apply(row, None, Context((0,), 1)).scores
    array([-inf,   1., -inf])
    """

    tokens: tuple[int, ...] = ()

    @cached_property
    def ids(self) -> Ids:
        """The tokens as an array."""
        return np.array(self.tokens, dtype=np.intp)

    def apply(self, row: Row, state: State, context: Context) -> Row:
        require_known(self.ids, row, "banned_tokens")
        return without(row, self.ids)


def build(params: Params) -> BannedTokens:
    return BannedTokens(named_ids(params.banned_tokens, "banned_tokens"))


METHOD = Method(CARD, Params, build)

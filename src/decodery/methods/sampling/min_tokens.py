"""Minimum length: end tokens are impossible until enough tokens were generated.

The end tokens are those of the source; other stop conditions (texts, budgets) are not held back.

`min_tokens` of vLLM's sampling parameters, `min_new_tokens` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.exclusion import without

CARD = Card(
    name="min_tokens",
    kind="sampler",
    family="sampling",
    summary="Forbid the end tokens until enough tokens were generated.",
    guarantee="law",
    law="the row without end tokens, renormalised, at the first n places; the row itself after",
    title="Sampling parameters: min_tokens",
    authors="the vLLM project",
    year=2024,
    source="vLLM, transformers",
    place=32,
    reductions=(Reduction({"min_tokens": 0}, "identity"),),
)


class Params(Parameters):
    min_tokens: int = parameter(
        0, ge=0, unit="tokens", help="How many tokens must come before an end token may."
    )


@dataclass(frozen=True)
class MinTokens(Sampler):
    """No end token among the first `count` generated tokens.

    >>> row = Row.dense([0.0, 0.0, 0.0])
    >>> MinTokens(2).apply(row, None, Context((0, 1), 1, eos_ids=frozenset({2}))).scores
    array([  0.,   0., -inf])
    """

    count: int = 0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if context.position - context.prompt_length >= self.count:
            return row
        return without(row, np.array(sorted(context.eos_ids), dtype=np.intp))


def build(params: Params) -> MinTokens:
    return MinTokens(params.min_tokens)


METHOD = Method(CARD, Params, build)

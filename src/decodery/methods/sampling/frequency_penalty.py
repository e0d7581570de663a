"""Frequency penalty: subtract a constant from a token's score for each time it was generated.

z_v - f * count(v). Only the output counts by default, as in vLLM and the OpenAI API.

OpenAI API reference, `frequency_penalty`; the same formula in vLLM's sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.history import history, occurrences

CARD = Card(
    name="frequency_penalty",
    kind="sampler",
    family="sampling",
    summary="Subtract a constant from a token's score for each time it was generated.",
    guarantee="law",
    law="softmax of z_v - f * count(v)",
    title="API reference: frequency_penalty",
    authors="OpenAI",
    year=2020,
    source="OpenAI API, vLLM",
    place=12,
    reductions=(Reduction({"frequency_penalty": 0.0}, "identity"),),
    notes="Negative values encourage repetition.",
)


class Params(Parameters):
    frequency_penalty: float = parameter(
        0.0,
        ge=-100.0,
        le=100.0,
        unit="nats an occurrence",
        help="Subtracted for each time a token occurred.",
    )
    frequency_prompt: bool = parameter(False, help="Whether tokens of the prompt count too.")


@dataclass(frozen=True)
class FrequencyPenalty(Sampler):
    """z_v - f * count(v).

    >>> row = Row.dense([2.0, 2.0, 2.0])
    >>> FrequencyPenalty(0.5).apply(row, None, Context((0, 1, 1), 1)).scores
    array([2., 1., 2.])
    """

    penalty: float = 0.0
    prompt: bool = False

    def apply(self, row: Row, state: State, context: Context) -> Row:
        tokens = history(context, prompt=self.prompt)
        if self.penalty == 0 or not tokens:
            return row
        seen, counts = occurrences(tokens)
        return row.adjusted(seen, -self.penalty * counts)


def build(params: Params) -> FrequencyPenalty:
    return FrequencyPenalty(params.frequency_penalty, params.frequency_prompt)


METHOD = Method(CARD, Params, build)

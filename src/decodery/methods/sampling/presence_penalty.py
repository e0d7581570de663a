"""Presence penalty: subtract a constant from the score of every token that was already generated.

z_v - s * 1[v was generated]: how often a token occurred does not matter. Only the output counts by
default, as in vLLM and the OpenAI API.

OpenAI API reference, `presence_penalty`; the same formula in vLLM's sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.history import history, occurrences

CARD = Card(
    name="presence_penalty",
    kind="sampler",
    family="sampling",
    summary="Subtract a constant from the scores of tokens already generated.",
    guarantee="law",
    law="softmax of z_v - s * 1[v was generated]",
    title="API reference: presence_penalty",
    authors="OpenAI",
    year=2020,
    source="OpenAI API, vLLM",
    place=14,
    reductions=(Reduction({"presence_penalty": 0.0}, "identity"),),
    notes="Negative values encourage repetition.",
)


class Params(Parameters):
    presence_penalty: float = parameter(
        0.0, ge=-100.0, le=100.0, unit="nats", help="Subtracted once for a token that occurred."
    )
    presence_prompt: bool = parameter(False, help="Whether tokens of the prompt count too.")


@dataclass(frozen=True)
class PresencePenalty(Sampler):
    """z_v - s for every token v that was generated.

    >>> row = Row.dense([2.0, 2.0, 2.0])
    >>> PresencePenalty(0.5).apply(row, None, Context((0, 1, 1), 1)).scores
    array([2. , 1.5, 2. ])
    """

    penalty: float = 0.0
    prompt: bool = False

    def apply(self, row: Row, state: State, context: Context) -> Row:
        tokens = history(context, prompt=self.prompt)
        if self.penalty == 0 or not tokens:
            return row
        seen, _ = occurrences(tokens)
        return row.adjusted(seen, -self.penalty)


def build(params: Params) -> PresencePenalty:
    return PresencePenalty(params.presence_penalty, params.presence_prompt)


METHOD = Method(CARD, Params, build)

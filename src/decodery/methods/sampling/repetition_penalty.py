"""Repetition penalty: make tokens that were already seen less likely, by division of their scores.

Once for each seen token, z > 0 becomes z / r and z < 0 becomes z * r. The rule depends on the sign
of the scores and so on their origin: it is meant for raw logits, before any other sampler, and a
shift of the row changes it. Prompt and output count by default, as in transformers and vLLM;
llama.cpp counts the last 64 tokens.

Keskar, McCann, Varshney, Xiong, Socher: CTRL (2019), arXiv:1909.05858, section 4.1; the paper
divides whatever the sign, which would favour seen tokens of negative score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.history import history, occurrences

CARD = Card(
    name="repetition_penalty",
    kind="sampler",
    family="sampling",
    summary="Divide the positive scores of seen tokens by r and multiply the negative ones.",
    guarantee="law",
    law="softmax of z with z / r (z > 0) or z * r (z < 0) for each token seen in the history",
    title="CTRL: A Conditional Transformer Language Model for Controllable Generation",
    authors="Keskar, McCann, Varshney, Xiong, Socher",
    year=2019,
    arxiv="1909.05858",
    place=10,
    reductions=(Reduction({"repetition_penalty": 1.0}, "identity"),),
    deviations=("negative scores are multiplied, not divided, as in every current engine",),
    notes="1 is off. Above 1 discourages repetition, below 1 encourages it.",
)


class Params(Parameters):
    repetition_penalty: float = parameter(
        1.2, gt=0.0, le=100.0, help="Divisor r for the scores of seen tokens; 1 is off."
    )
    repetition_window: int = parameter(
        0, ge=0, unit="tokens", help="Only the last so many tokens count as seen; 0 means all."
    )
    repetition_prompt: bool = parameter(True, help="Whether tokens of the prompt count as seen.")


@dataclass(frozen=True)
class RepetitionPenalty(Sampler):
    """z / r for z > 0 and z * r for z < 0, once for each seen token.

    >>> row = Row.dense([2.0, -1.0, 1.0])
    >>> RepetitionPenalty(2.0).apply(row, None, Context((1, 0, 0), 1)).scores
    array([ 1., -2.,  1.])
    """

    reads_logits: ClassVar[bool] = True
    penalty: float = 1.2
    window: int = 0
    prompt: bool = True

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.penalty == 1:
            return row
        seen, _ = occurrences(history(context, prompt=self.prompt, window=self.window))
        positions, _ = row.positions(seen)
        if positions.size == 0:
            return row
        scores = row.scores.copy()
        raw = scores[positions]
        with np.errstate(over="ignore", divide="ignore"):  # the row refuses what leaves its range
            scores[positions] = np.where(raw < 0, raw * self.penalty, raw / self.penalty)
        return row.with_scores(scores)


def build(params: Params) -> RepetitionPenalty:
    return RepetitionPenalty(
        params.repetition_penalty, params.repetition_window, params.repetition_prompt
    )


METHOD = Method(CARD, Params, build)

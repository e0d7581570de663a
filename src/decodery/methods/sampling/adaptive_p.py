"""Adaptive-p: favour tokens whose probability is near a target, corrected by what was drawn.

With p the row's law, z'_v = 5 - 10 d^2 / (1 + d), d = |p_v - t'| / 0.3: a peak at the target that
falls off quadratically near it and linearly far away. The target of a step leans against the past,
t' = clip(2 t - a, 0, 1), where a is the mean of the probabilities p of the tokens drawn so far,
weighted by decay^age. It begins as if t had always been met, so the first target is t, and a step
takes a to (1 - decay) p(drawn) + decay a. The state is a and lives on the node.

llama.cpp pull request 17927, `--adaptive-target` and `--adaptive-decay`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State

CARD = Card(
    name="adaptive_p",
    kind="sampler",
    family="sampling",
    summary="Favour tokens whose probability is near a target that adapts to what was drawn.",
    guarantee="law",
    law="softmax(5 - 10 d^2 / (1 + d)), d = |p - t'| / 0.3, t' = clip(2 t - a, 0, 1) with a the"
    " running mean of drawn probabilities",
    title="Adaptive-p sampler",
    authors="MrJackSpade, ddh0",
    year=2025,
    source="llama.cpp pull request 17927",
    place=98,
    deviations=(
        "it reshapes the row and leaves the draw to the decoder, where llama.cpp's draws the token"
        " itself: the law is the same",
        "the engine's two decayed sums have a constant quotient of weights, so one mean is kept",
    ),
    notes=(
        "It comes last; its authors advise a mild min-p before it and nothing else. A negative"
        " target, llama.cpp's off, is refused: leave the sampler out."
    ),
)

WIDTH = 0.3
PEAK = 5.0
SHARPNESS = 10.0


class Params(Parameters):
    adaptive_target: float = parameter(
        0.55, ge=0.0, le=1.0, unit="probability", help="Probability near which tokens are favoured."
    )
    adaptive_decay: float = parameter(
        0.9, ge=0.0, le=0.99, help="How much of the past is kept a step; 0.9 is some ten tokens."
    )


@dataclass(frozen=True)
class AdaptiveP(Sampler):
    """softmax of a peak around the adapted target.

    >>> sampler = AdaptiveP(0.3)
    >>> row = Row.of_probabilities([0.6, 0.3, 0.1])
    >>> here = Context((0,), 1)
    >>> sampler.apply(row, sampler.start(here), here).scores.round(3)
    array([0.   , 5.   , 2.333])
    """

    observes_rows: ClassVar[bool] = True
    target: float = 0.55
    decay: float = 0.9

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in after:
            if stage.tempers or stage.truncates:
                raise ParameterError(
                    f"adaptive_p makes the law that tokens are drawn from, and {stage!r} after it"
                    " would change it; put adaptive_p last (sampler_order)"
                )
        for stage in before:
            if stage.most_tokens == 1:
                raise ParameterError(
                    f"adaptive_p has no effect: {stage!r} before it leaves one token"
                )

    def start(self, context: Context) -> float:
        return self.target

    def adapted_target(self, mean: float) -> float:
        """The target of the next step, in [0, 1]."""
        return min(1.0, max(0.0, 2.0 * self.target - mean))

    def apply(self, row: Row, state: State, context: Context) -> Row:
        distance = np.abs(row.probabilities() - self.adapted_target(state)) / WIDTH
        scores = PEAK - SHARPNESS * distance * distance / (1.0 + distance)
        scores[row.scores == -np.inf] = -np.inf
        return row.with_scores(scores.astype(row.scores.dtype))

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> float:
        assert row is not None
        drawn = math.exp(row.log_probability(token))
        return (1.0 - self.decay) * drawn + self.decay * state


def build(params: Params) -> AdaptiveP:
    return AdaptiveP(params.adaptive_target, params.adaptive_decay)


METHOD = Method(CARD, Params, build)

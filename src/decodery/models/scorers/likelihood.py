"""Likelihood: the mean or summed log-probability of a candidate's tokens under the source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method
from decodery.core.params import Parameters, parameter
from decodery.core.scorer import Candidate, Scorer

CARD = Card(
    name="likelihood",
    kind="scorer",
    family="scorers",
    summary="Log-probability of the candidate under the source that drew it.",
    guarantee="law",
    law="sum over tokens of ln p / length ** length_penalty, p at temperature 1",
    title="Likelihood ranking",
    authors="standard",
    year=1951,
    source="textbook",
    calls_per_token="0",
)


class Params(Parameters):
    length_penalty: float = parameter(
        1.0, ge=0, le=10, help="Exponent of the length that divides the sum; 1 is the mean."
    )


class Likelihood(Scorer):
    name = "likelihood"

    def __init__(self, length_penalty: float) -> None:
        self.length_penalty = length_penalty

    def score(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
        return np.array(
            [item.log_probability / len(item.tokens) ** self.length_penalty for item in candidates]
        )


def build(params: Params) -> Likelihood:
    return Likelihood(params.length_penalty)


METHOD = Method(CARD, Params, build)

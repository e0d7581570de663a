"""Length: how long a candidate is, or how near to a wanted length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method
from decodery.core.params import Parameters, parameter
from decodery.core.scorer import Candidate, Scorer

CARD = Card(
    name="length",
    kind="scorer",
    family="scorers",
    summary="The candidate's length; or minus its distance from a wanted length.",
    guarantee="law",
    law="length, or -|length - wanted|",
    title="Length",
    authors="standard",
    year=1951,
    source="textbook",
    calls_per_token="0",
)


class Params(Parameters):
    unit: Literal["tokens", "characters", "words"] = parameter("tokens", help="What is counted.")
    wanted: int | None = parameter(
        None, ge=0, help="The length that scores best; none: longer is better."
    )


class Length(Scorer):
    name = "length"

    def __init__(self, unit: str, wanted: int | None) -> None:
        self.unit = unit
        self.wanted = wanted

    def score(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
        lengths = np.array([self._length(item) for item in candidates], dtype=np.float64)
        return lengths if self.wanted is None else -np.abs(lengths - self.wanted)

    def _length(self, candidate: Candidate) -> int:
        if self.unit == "tokens":
            return len(candidate.tokens)
        return len(candidate.text if self.unit == "characters" else candidate.text.split())


def build(params: Params) -> Length:
    return Length(params.unit, params.wanted)


METHOD = Method(CARD, Params, build)

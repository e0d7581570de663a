"""EDT: a temperature for every token, from the entropy of its row; sure steps cold, open ones warm.

    T = T0 * N^(theta / H),  0 < N < 1,

with H the entropy of the row at temperature 1. T goes to 0 where the model is sure (H -> 0) and up
to T0, never above it, where it is not. Only theta ln N matters, so N stays at the paper's 0.8. With
theta = 0.1 the temperature is within a tenth of T0 wherever H is above 0.21 nats.

Zhang, Bao, Huang: EDT: Improving Large Language Models' Generation by Entropy-based Dynamic
Temperature Sampling (2024), arXiv:2403.14541.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.temperature import Temperature

EntropyOf = Literal["full", "surviving"]
EntropyBase = Literal["e", "2"]
Granularity = Literal["token", "sequence"]

GREEDY = 1e-3  # at this temperature and below the most probable token is taken
ENTROPY_FLOOR = 1e-6  # keeps theta / H finite
UNIT: dict[EntropyBase, float] = {"e": 1.0, "2": math.log(2.0)}  # in nats

# exp of it is 0 in float64, so 0 * WEIGHTLESS stands for p ln p at p = 0.
WEIGHTLESS = -1000.0

CARD = Card(
    name="edt",
    kind="sampler",
    family="sampling",
    summary="Divide the scores by a temperature that follows the entropy of each row.",
    guarantee="law",
    law="softmax(z / T) with T = T0 * N^(theta / H), H the entropy of softmax(z); at T <= 0.001 all"
    " mass on the most probable token, the lowest id among equals",
    title="EDT: Improving Large Language Models' Generation by Entropy-based Dynamic Temperature"
    " Sampling",
    authors="Zhang, Bao, Huang",
    year=2024,
    arxiv="2403.14541",
    place=42,
    reductions=(
        Reduction({"edt_theta": 0.0}, "identity"),
        Reduction({"edt_n": 1.0}, "identity"),
        Reduction({"edt_theta": 0.0, "edt_t0": 0.7}, "temperature", {"temperature": 0.7}),
    ),
    inert=("edt_entropy_of",),
    deviations=(
        "the floor of T and greedy below 0.001 are guards of this implementation",
        "sequence granularity, whose rule the paper leaves open, takes the temperature of the first"
        " generated position for all of them",
    ),
    notes=(
        "H is that of the row EDT is given, after penalties and masks and before any truncation."
        " edt_entropy_of says which row that is and moves nothing: 'full' refuses a truncation"
        " before EDT, 'surviving' one after it without one before (name the order by"
        " `sampler_order`). A second temperature in the chain is refused. llama.cpp's dynamic"
        " temperature maps H linearly to a range and is another method."
    ),
)


class Params(Parameters):
    edt_t0: float = parameter(
        1.0, gt=GREEDY, le=100.0, help="T0: the temperature that high entropy approaches."
    )
    edt_theta: float = parameter(
        0.1, ge=0.0, le=1000.0, help="How strongly low entropy cools; 0 is a fixed temperature."
    )
    edt_n: float = parameter(
        0.8, gt=0.0, le=1.0, help="N, the base of the response; 1 is a fixed temperature."
    )
    edt_entropy_base: EntropyBase = parameter("e", help="Entropy in nats (e) or bits (2).")
    edt_entropy_of: EntropyOf = parameter(
        "full", help="The full row, or what a truncation put before this one has left."
    )
    edt_granularity: Granularity = parameter(
        "token", help="A temperature for each token, or the first token's for the whole sequence."
    )
    edt_floor: float = parameter(1e-4, gt=0.0, le=100.0, help="The lowest temperature.")


@dataclass(frozen=True)
class EDT(Sampler):
    """softmax(z / T), T = T0 * N^(theta / H).

    >>> coin, here = Row.of_probabilities([0.5, 0.5]), Context((0,), 1)
    >>> round(EDT(t0=2.0, theta=1.0).temperature_of(coin), 4)  # 2 * 0.8^(1 / ln 2)
    1.4495
    >>> sure = Row.of_probabilities([0.99, 0.01])
    >>> EDT(t0=2.0, theta=1.0).apply(sure, None, here).probabilities().round(4)
    array([1., 0.])
    """

    keeps_argmax: ClassVar[bool] = True
    tempers: ClassVar[bool] = True
    t0: float = 1.0
    theta: float = 0.1
    n: float = 0.8
    entropy_base: EntropyBase = "e"
    entropy_of: EntropyOf = "full"
    granularity: Granularity = "token"
    floor: float = 1e-4

    @property
    def observes_rows(self) -> bool:  # type: ignore[override]
        return self.granularity == "sequence"

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in (*before, *after):
            if stage.tempers:
                raise ParameterError(
                    f"edt sets the temperature of every token, and {stage!r} would multiply it;"
                    " leave that out, and give the upper bound as edt_t0"
                )
        earlier = [stage for stage in before if stage.truncates]
        later = [stage for stage in after if stage.truncates]
        if self.entropy_of == "full" and earlier:
            raise ParameterError(
                f"edt needs the entropy of the full row, and {earlier[0]!r} truncates it before;"
                " put edt first, or set edt_entropy_of to 'surviving'"
            )
        if self.entropy_of == "surviving" and later and not earlier:
            raise ParameterError(
                f"edt_entropy_of is 'surviving', and {later[0]!r} truncates only after edt; put it"
                " before (sampler_order), or set edt_entropy_of to 'full'"
            )

    def temperature_of(self, row: Row) -> float:
        """T for this row."""
        entropy = max(_entropy(row), ENTROPY_FLOOR) / UNIT[self.entropy_base]
        return max(self.t0 * math.exp(self.theta / entropy * math.log(self.n)), self.floor)

    def apply(self, row: Row, state: State, context: Context) -> Row:
        temperature = self.temperature_of(row) if state is None else state
        if temperature <= GREEDY:
            return row.keep_at(np.array([row.scores.argmax()]))
        return Temperature(temperature).apply(row, None, context)

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        if self.granularity == "token" or state is not None:
            return state
        assert row is not None
        return self.temperature_of(row)


def _entropy(row: Row) -> float:
    """Shannon entropy in nats, float64. Both terms are positive: nothing cancels near 0."""
    shifted = np.maximum(row.scores.astype(np.float64) - row.maximum, WEIGHTLESS)
    weights = np.exp(shifted)
    total = float(weights.sum())
    return math.log(total) - float(weights @ shifted) / total


def build(params: Params) -> EDT:
    if params.edt_floor > params.edt_t0:
        raise ParameterError(
            f"edt: edt_floor is {params.edt_floor:g}; allowed is at most edt_t0, {params.edt_t0:g}"
        )
    return EDT(
        t0=params.edt_t0,
        theta=params.edt_theta,
        n=params.edt_n,
        entropy_base=params.edt_entropy_base,
        entropy_of=params.edt_entropy_of,
        granularity=params.edt_granularity,
        floor=params.edt_floor,
    )


METHOD = Method(CARD, Params, build)

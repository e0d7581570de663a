"""Dynamic temperature: a temperature that follows the entropy of the row.

T = low + (high - low) * (H / ln n)^e with low = max(0, c - r), high = c + r, n the number of
possible tokens and H their entropy: low where the model is sure, high where all n tokens are
equally likely. A row of one possible token stays as it is.

By kalomaze for koboldcpp; `--dynatemp-range` and `--dynatemp-exp` in llama.cpp, where the centre c
is `--temp`; text-generation-webui writes low and high themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.temperature import Temperature

CARD = Card(
    name="dynamic_temperature",
    kind="sampler",
    family="sampling",
    summary="A temperature between two bounds that follows the entropy of the row.",
    guarantee="law",
    law="softmax(z / T), T = low + (high - low) (H / ln n)^e over the n possible tokens",
    title="Dynamic temperature sampling",
    authors="kalomaze",
    year=2023,
    source="koboldcpp, llama.cpp",
    place=42,
    reductions=(
        Reduction(
            {"dynatemp_range": 0.0, "dynatemp_centre": 0.7}, "temperature", {"temperature": 0.7}
        ),
        Reduction({"dynatemp_range": 0.0}, "identity"),
    ),
    deviations=(
        "tokens masked to -inf do not count in n, where llama.cpp counts every candidate that was"
        " not removed",
    ),
    notes=(
        "It takes the place of a temperature; beside one it is refused. llama.cpp applies it after"
        " truncation, where n is the number of survivors: name it last in sampler_order for that."
    ),
)


class Params(Parameters):
    dynatemp_centre: float = parameter(1.0, ge=0.0, le=100.0, help="Middle c of the range.")
    dynatemp_range: float = parameter(
        0.5, ge=0.0, le=100.0, help="How far r the temperature may move; 0 is a plain temperature."
    )
    dynatemp_exponent: float = parameter(
        1.0, gt=0.0, le=10.0, help="Power e of the normalised entropy."
    )


@dataclass(frozen=True)
class DynamicTemperature(Sampler):
    """softmax(z / T) with T from the entropy.

    >>> row = Row.of_probabilities([0.25, 0.25, 0.25, 0.25])
    >>> DynamicTemperature(1.0, 0.5).heat(row)
    1.5
    """

    keeps_argmax: ClassVar[bool] = True
    centre: float = 1.0
    reach: float = 0.5
    exponent: float = 1.0

    @property
    def tempers(self) -> bool:  # type: ignore[override]
        return self.reach > 0 or self.centre != 1

    @property
    def most_tokens(self) -> int | None:  # type: ignore[override]
        return 1 if self.reach == self.centre == 0 else None

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in (*before, *after):
            if self.tempers and stage.tempers:
                raise ParameterError(
                    f"dynamic_temperature sets the temperature, and {stage!r} would multiply it;"
                    " leave that out, and give its value as dynatemp_centre"
                )

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return Temperature(self.heat(row)).apply(row, None, context)

    def heat(self, row: Row) -> float:
        """The temperature for this row; 1 where only one token is possible."""
        if self.reach == 0:
            return self.centre
        possible = row.possible()
        if possible == 1:
            return 1.0
        low, high = max(0.0, self.centre - self.reach), self.centre + self.reach
        share = min(1.0, row.entropy() / math.log(possible))  # rounding may pass 1
        return low + (high - low) * share**self.exponent


def build(params: Params) -> DynamicTemperature:
    return DynamicTemperature(
        params.dynatemp_centre, params.dynatemp_range, params.dynatemp_exponent
    )


METHOD = Method(CARD, Params, build)

"""DoLa: contrast a model with its own early layers, among what the whole model finds plausible.

    score(v) = ln P(v) - ln P_k(v)    where P(v) >= alpha max P,    k = argmax_j JSD(P, P_j)

P_j is what the model would say after its first j layers: the same last norm and head on their
output. Of the candidate layers the one whose law is farthest from the whole model's, by the
Jensen-Shannon divergence, is chosen anew at every token. What the upper layers add, facts above
all, is weighed more than what the lower ones knew.

Chuang, Xie, Luo, Kim, Glass, He: DoLa: Decoding by Contrasting Layers Improves Factuality in Large
Language Models (2023), arXiv:2309.03883.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, State
from decodery.core.source import Blend, Recipe, Source
from decodery.methods.blending.contrasting import head, log_probabilities, ratio

DEEP = 40  # models of more layers have their candidates among their first or last MOST ones
MOST = 20

CARD = Card(
    name="dola",
    kind="blend",
    family="blending",
    summary="Contrast the model with what its early layers would have said.",
    guarantee="law",
    law="norm(P / P_k) on {v: P(v) >= alpha max P}, k the candidate layer with the largest"
    " Jensen-Shannon divergence from P",
    title="DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
    authors="Chuang, Xie, Luo, Kim, Glass, He",
    year=2023,
    arxiv="2309.03883",
    needs=("layers",),
    calls_per_token="1, and for every candidate layer j the first j layers and a head",
    deviations=(
        "early layers go through the model's last norm before the head, as the last one does",
        "candidate layers are run by themselves, with caches of their own, not read off one pass",
    ),
    notes="The paper adds a repetition penalty of 1.2 (`--repetition-penalty 1.2`). Low layers are"
    " for long answers with reasoning, high ones for short facts. A model that runs through"
    " transformers' forward has no exits and is refused.",
)


class Params(Parameters):
    dola_layers: str | tuple[int, ...] = parameter(
        "low", help="Candidates: low or high (every second layer of that half), or their numbers."
    )
    alpha: float = parameter(
        0.1, ge=0, le=1, help="Least probability kept, relative to the model's best token."
    )


class Dola(Blend):
    """`source` contrasted with its exits after `layers`: "low", "high", or numbers from 1 on."""

    def __init__(
        self, source: Source, layers: str | Sequence[int] = "low", alpha: float = 0.1
    ) -> None:
        if source.depth is None or source.depth < 2:
            raise ParameterError(f"dola: {source.name} has no layers before its last to contrast")
        self.layers = candidates(layers, source.depth)
        self.alpha = alpha
        super().__init__(f"dola({source.name})", [source, *map(source.exit, self.layers)])

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        laws = [row.dense_probabilities() for row in rows]
        premature = int(np.argmax([divergence(laws[0], law) for law in laws[1:]]))
        plausible = head(rows[0], self.alpha)
        own = plausible.scores - rows[0].log_normaliser
        other = log_probabilities(rows[1 + premature])
        return plausible.with_scores(ratio(own, other[plausible.token_ids()], 1, 1))


def candidates(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers to leave a model of `depth` layers at, ascending, all before the last."""
    half = depth // 2
    if layers == "low":
        return tuple(range(2, half if depth <= DEEP else MOST, 2)) or (1,)
    if layers == "high":
        return tuple(range(half if depth <= DEEP else depth - MOST, depth, 2))
    numbers = _numbers(layers)
    if numbers[-1] >= depth:
        raise ParameterError(
            f"dola: dola_layers has {numbers[-1]}; of {depth} layers allowed are 1..{depth - 1}"
        )
    return numbers


def _numbers(layers: str | Sequence[int]) -> tuple[int, ...]:
    """Distinct layer numbers from 1 on, ascending, also from a text such as "2,4,6"."""
    try:
        found = [int(item) for item in (layers.split(",") if isinstance(layers, str) else layers)]
    except ValueError:
        found = []
    if not found or min(found) < 1 or len(set(found)) < len(found):
        raise ParameterError(
            f"dola: dola_layers is {layers!r}; allowed is low, high, or distinct layer numbers from"
            " 1 on, such as 2,4,6"
        )
    return tuple(sorted(found))


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """The Jensen-Shannon divergence of two laws [n], in nats: 0 to ln 2."""
    middle = (one + other) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(law > 0, law * np.log(law / middle), 0.0) for law in (one, other)]
    return 0.5 * float(parts[0].sum() + parts[1].sum())


@dataclass(frozen=True)
class DolaRecipe(Recipe):
    layers: str | tuple[int, ...]
    alpha: float

    def over(self, model: Source, load: Callable[[str], Source]) -> Dola:
        return Dola(model, self.layers, self.alpha)


def build(params: Params) -> DolaRecipe:
    if params.dola_layers not in ("low", "high"):
        _numbers(params.dola_layers)
    return DolaRecipe(params.dola_layers, params.alpha)


METHOD = Method(CARD, Params, build)

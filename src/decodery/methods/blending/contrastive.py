"""Contrastive decoding: what an expert likes more than an amateur, among what the expert finds
plausible.

    score(v) = ln P_expert(v) - ln P_amateur(v)    where P_expert(v) >= alpha max P_expert

and minus infinity elsewhere. What both know, such as repetition and stock phrases, cancels; alpha
keeps out tokens that the expert finds unlikely and the amateur even more so. The amateur is a
smaller model of the same tokenizer; it may see less of the prompt, or another one, and then it may
be the expert's own model.

Li, Holtzman, Fried, Liang, Eisner, Hashimoto, Zettlemoyer, Lewis: Contrastive Decoding: Open-ended
Text Generation as Optimization (2022), arXiv:2210.15097.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decodery.core.card import Card, Method
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, State
from decodery.core.source import Recipe, Source
from decodery.methods.blending.contrasting import (
    Beside,
    SecondPrompt,
    check_tokens,
    head,
    log_probabilities,
    ratio,
)

SAME = "same"

CARD = Card(
    name="contrastive",
    kind="blend",
    family="blending",
    summary="Prefer what an expert model likes more than an amateur does.",
    guarantee="law",
    law="norm(P_expert / P_amateur) on {v: P_expert(v) >= alpha max P_expert}, P_amateur at its"
    " own temperature",
    title="Contrastive Decoding: Open-ended Text Generation as Optimization",
    authors="Li, Holtzman, Fried, Liang, Eisner, Hashimoto, Zettlemoyer, Lewis",
    year=2022,
    arxiv="2210.15097",
    needs=("amateur",),
    calls_per_token="1 of the expert and 1 of the amateur",
    examples=({"amateur": "same", "amateur_context": 1},),
    deviations=(
        "the paper searches with beams for the sum of the scores; here they are a source, for any"
        " decoder (`--method beam --blend contrastive`)",
    ),
)


class Params(Parameters):
    amateur: str | Source = parameter(
        help="A model by folder, file or hub id; 'same' for the run's own, which then has to see"
        " another prompt."
    )
    alpha: float = parameter(
        0.1, ge=0, le=1, help="Least probability kept, relative to the expert's best token."
    )
    amateur_context: int | None = parameter(
        None, ge=1, unit="tokens", help="The amateur sees the end of the prompt only; default: all."
    )
    amateur_prompt: SecondPrompt | None = parameter(
        None, help="The amateur's own prompt: a text, or token ids; default: the expert's."
    )
    amateur_temperature: float = parameter(
        1.0, gt=0, le=100, help="Temperature of the amateur's law before the contrast."
    )


class Contrastive(Beside):
    """`expert` contrasted with `amateur`; see the module's first lines."""

    def __init__(
        self,
        expert: Source,
        amateur: Source,
        alpha: float = 0.1,
        amateur_context: int | None = None,
        amateur_prompt: SecondPrompt | None = None,
        amateur_temperature: float = 1.0,
    ) -> None:
        _check(amateur is expert, amateur_context, amateur_prompt)
        super().__init__(
            f"contrastive({expert.name}, {amateur.name})",
            expert,
            amateur,
            second_prompt=amateur_prompt,
            context=amateur_context,
        )
        self.alpha = alpha
        self.amateur_temperature = amateur_temperature

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        plausible = head(rows[0], self.alpha)
        expert = plausible.scores - rows[0].log_normaliser
        tempered = rows[1].with_scores(rows[1].scores / self.amateur_temperature)
        amateur = log_probabilities(tempered)[plausible.token_ids()]
        return plausible.with_scores(ratio(expert, amateur, 1, 1))


def _check(same: bool, context: int | None, prompt: SecondPrompt | None) -> None:
    check_tokens(CARD.name, prompt)
    if context is not None and prompt is not None:
        raise ParameterError(
            "contrastive: amateur_context and amateur_prompt are both given; the amateur sees one"
            " prompt, give one of them"
        )
    if same and context is None and prompt is None:
        raise ParameterError(
            "contrastive: the amateur is the expert's model, and both would say the same; give"
            " amateur_context or amateur_prompt, or another amateur"
        )


@dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    params: Params

    def over(self, model: Source, load: Callable[[str], Source]) -> Contrastive:
        amateur = self.params.amateur
        if isinstance(amateur, str):
            amateur = model if amateur == SAME else load(amateur)
        return Contrastive(
            model,
            amateur,
            self.params.alpha,
            self.params.amateur_context,
            self.params.amateur_prompt,
            self.params.amateur_temperature,
        )


def build(params: Params) -> ContrastiveRecipe:
    _check(params.amateur == SAME, params.amateur_context, params.amateur_prompt)
    return ContrastiveRecipe(params)


METHOD = Method(CARD, Params, build)

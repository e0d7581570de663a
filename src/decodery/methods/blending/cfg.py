"""Classifier-free guidance: what the prompt adds to a second prompt, times a scale.

    ln P ~ ln P(v | second) + g (ln P(v | prompt) - ln P(v | second))

with log-probabilities of one model under two prompts and one continuation. g = 1 is the model
itself, above 1 it follows the prompt more closely, below 1 less, 0 is the second prompt alone. The
second prompt is the negative prompt, what the text should not be like; without one it is the last
token of the prompt, so that guidance is against the model without a prompt. As the text grows both
prompts matter less, and guidance fades.

Sanchez, Fan, Spangher, Levi, Ammanamanchi, Biderman: Stay on topic with Classifier-Free Guidance
(2023), arXiv:2306.17806. The rule on rows is that of transformers' guidance_scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from decodery.core.card import Card, Method
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, State
from decodery.core.source import Recipe, Source
from decodery.methods.blending.contrasting import (
    Beside,
    SecondPrompt,
    check_tokens,
    log_probabilities,
    ratio,
)

CARD = Card(
    name="cfg",
    kind="blend",
    family="blending",
    summary="Guide the model towards its prompt and away from a negative prompt.",
    guarantee="law",
    law="norm(P(v | prompt)^g / P(v | negative prompt)^(g - 1)), g = guidance_scale",
    title="Stay on topic with Classifier-Free Guidance",
    authors="Sanchez, Fan, Spangher, Levi, Ammanamanchi, Biderman",
    year=2023,
    arxiv="2306.17806",
    calls_per_token="1 (2 tokens wide)",
    notes="A negative prompt of text takes the place of the last user message, with the rest of the"
    " conversation as it is; in a raw run, of the whole prompt.",
)


class Params(Parameters):
    guidance_scale: float = parameter(
        1.5, ge=0, le=100, help="How far to move from the negative prompt; 1 is the model itself."
    )
    negative_prompt: SecondPrompt | None = parameter(
        None, help="What to move away from: a text, or token ids; default: no prompt."
    )


class Cfg(Beside):
    """`source` guided by `guidance_scale` away from `negative_prompt`."""

    def __init__(
        self,
        source: Source,
        guidance_scale: float = 1.5,
        negative_prompt: SecondPrompt | None = None,
    ) -> None:
        super().__init__(
            f"cfg({source.name})", source, source, second_prompt=negative_prompt, context=1
        )
        self.guidance_scale = guidance_scale

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        scale = self.guidance_scale
        if scale == 1:
            return rows[0]
        own, other = map(log_probabilities, rows)
        return Row.dense(ratio(own, other, scale, scale - 1))


@dataclass(frozen=True)
class CfgRecipe(Recipe):
    guidance_scale: float
    negative_prompt: SecondPrompt | None

    def over(self, model: Source, load: Callable[[str], Source]) -> Cfg:
        return Cfg(model, self.guidance_scale, self.negative_prompt)


def build(params: Params) -> CfgRecipe:
    check_tokens(CARD.name, params.negative_prompt)
    return CfgRecipe(params.guidance_scale, params.negative_prompt)


METHOD = Method(CARD, Params, build)

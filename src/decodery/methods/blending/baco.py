"""Base-aligned collaboration: a router lets the base model write where it is free to differ.

An aligned model writes well and always alike, its base model variously and carelessly. At each
token one of the two writes,

    P(v) = w P_base(v) + (1 - w) P_aligned(v),    w in {0, 1},

and the router gives w = 1 at genuine forks: where the base model is uncertain and what comes is a
word that carries content. One threshold leads from the aligned model to the base model. The aligned
model sees the conversation, the base model the request as plain text, both the same answer.

Writers change at word boundaries only. Whether a word is complete is for the model that writes it
to say: it keeps its probability of every token that continues the word, and the mass that it gives
to all others goes to the model that the router names, spread as that model spreads it. So no word
has two writers, and two equal models give the law of one. The coin of `rand` is integrated out, as
the weight that the word's tokens leave to either model; the texts have the law that tossing gives.

Wang, Yang, Huang, Chen, May, Lee: Optimizing Diversity and Quality through Base-Aligned Model
Collaboration (2025), arXiv:2511.05650.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method
from decodery.core.decoder import Requests, Task
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.core.source import Blend, Footprint, Model, Recipe, Source
from decodery.methods.blending.asking import filled, plain_text
from decodery.methods.blending.routers import ContentFrom, RouterName, make_router
from decodery.methods.blending.words import Words, words_of

Laws = npt.NDArray[np.float64]
BaseTemplate = Literal["plain", "question"] | str | None

TEMPLATES = {"plain": "{prompt}\n\n", "question": "Question: {prompt}\n\nAnswer:"}

CARD = Card(
    name="baco",
    kind="blend",
    family="blending",
    summary="Let a base model write where it is uncertain of a content word, its aligned one else.",
    guarantee="law",
    law="w P_base + (1 - w) P_aligned, w in {0, 1} by the router; who began a word ends it",
    title="Optimizing Diversity and Quality through Base-Aligned Model Collaboration",
    authors="Wang, Yang, Huang, Chen, May, Lee",
    year=2025,
    arxiv="2511.05650",
    needs=("base model",),
    calls_per_token="1 of each model; 1 in all (2 tokens wide) where both are one model",
    deviations=(
        "the law at word boundaries is exact: a switch inside a word is impossible, where a test of"
        " the likeliest token would let one pass now and then",
        "the router reads the models' own rows; the run's samplers act after it, on the joint row",
        "the coin of rand is integrated out, so that a truncation acts on the mixture",
        "a content word is a word: fc gives signs to the aligned model, like punc",
        "router judge, an external model asked at every token, is left out, and so is a guard"
        " against early ends, which min_tokens gives",
        "the words and signs, the base model's prompt and its end tokens are reconstructed",
    ),
    notes=(
        "Without --base the pair is a proxy: one model that sees the conversation (aligned) and the"
        " request as plain text (base). It shows the mechanism; results are not the paper's. The"
        " base model's end token counts as the aligned model's. A base model may leave the format:"
        " give stop strings. The function words are English."
    ),
)


class Params(Parameters):
    base: str | None = parameter(
        None,
        help="The base model: a folder, file or hub id; default: a proxy, the model itself on the"
        " request as plain text.",
    )
    router: RouterName = parameter("p_punc", help="Who decides which model writes.")
    gamma: float | None = parameter(
        None,
        ge=-1.0,
        le=100.0,
        help="Threshold: base writes where max p < gamma (p), entropy > gamma nats (h), or with"
        " chance gamma (rand).",
    )
    diversity: float | None = parameter(
        None,
        ge=0.0,
        le=1.0,
        help="Sets gamma on one scale: 0 is the aligned model, 1 the base model; default: 0.5.",
    )
    content_from: ContentFrom = parameter(
        "base", help="Whose most probable token tells signs and words: punc and fc routers."
    )
    word_boundary: bool = parameter(True, help="Whether the writer changes between words only.")
    base_template: BaseTemplate = parameter(
        None,
        help="The base model's prompt: plain, question, or a text with {prompt}; default: plain.",
    )


class Baco(Blend):
    """`base` and `aligned` by turns. The state is the base model's share in the last token."""

    observes_rows = True

    def __init__(
        self,
        base: Source,
        aligned: Source,
        router: RouterName = "p_punc",
        *,
        gamma: float | None = None,
        diversity: float | None = None,
        content_from: ContentFrom = "base",
        word_boundary: bool = True,
        base_template: BaseTemplate = None,
    ) -> None:
        super().__init__(f"baco({base.name}, {aligned.name})", [aligned, base])
        self.router = make_router(router, gamma, diversity, content_from)
        self.word_boundary = word_boundary
        self.words: Words | None = None if self.language is None else words_of(self.language)
        self.template = template_text(base_template)
        self.base_prompt: tuple[int, ...] | None = None
        if self.words is None:
            self._refuse_numbers(router, base_template)
        self.base_ends = sorted(base.eos_ids - aligned.eos_ids) if aligned.eos_ids else []

    def _refuse_numbers(self, router: RouterName, base_template: BaseTemplate) -> None:
        asked = {
            f"router {router}": self.router.content is not None,
            "word_boundary": self.word_boundary,
            "base_template": base_template is not None,
        }
        for what, is_asked in asked.items():
            if is_asked:
                raise ParameterError(
                    f"baco: {what} reads text, and the tokens of {self.members[0].name} are numbers"
                )

    # -- prompts ---------------------------------------------------------------------------------

    def prompts(self, prompt: Sequence[int]) -> Sequence[Sequence[int]]:
        return [prompt, prompt if self.base_prompt is None else self.base_prompt]

    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        return Blend.slots(self._read(task), task, prompt, footprint)

    def prepare(self, task: Task) -> Generator[Requests, Any, Source]:
        prepared = cast("Baco", (yield from super().prepare(task)))
        return prepared._read(task)

    def _read(self, task: Task) -> Baco:
        """The same blend with the base model's prompt: the conversation as plain text."""
        aligned, base = self.members
        language = base.language or self.language
        if language is None or not task.messages:
            if base is aligned:
                raise ParameterError(
                    f"baco: base and aligned are both {base.name} and see one prompt; name a base"
                    " model, or give a conversation, whose plain text the base model sees"
                )
            return self
        read = copy.copy(self)
        read.base_prompt = language.encode(filled(self.template, prompt=plain_text(task.messages)))
        return read

    # -- rows ------------------------------------------------------------------------------------

    def start(self, context: Context) -> float:
        return 0.0

    def combine(self, rows: Sequence[Row], state: float, context: Context) -> Row:
        aligned, base = rows[0], self._with_one_end(rows[1])
        going_on = self._continues(context)
        share = self.router.base_share(aligned, base, self.words, going_on)
        if share in (0, 1) and (not going_on or share == state):
            return base if share else aligned
        parts = self._parts(aligned, base, state, share, going_on)
        return Row.of_probabilities(parts[0] + parts[1])

    def advance(
        self, state: float, token: int, rows: Sequence[Row] | None, context: Context
    ) -> float:
        assert rows is not None
        aligned, base = rows[0], self._with_one_end(rows[1])
        going_on = self._continues(context)
        share = self.router.base_share(aligned, base, self.words, going_on)
        if not going_on and share in (0, 1):
            return share
        if {state, share} <= {0, 1}:
            return self._writer(base if share else aligned, state, share, token)
        parts = self._parts(aligned, base, state, share, going_on)
        whole = float(parts[0][token] + parts[1][token])
        return float(parts[1][token]) / whole if whole > 0 else share

    def _writer(self, named: Row, old: float, new: float, token: int) -> float:
        """Who wrote a token behind a word, where there is no coin: the same as from `_parts`."""
        assert self.words is not None
        goes_on = self.words.begins[token] or named.log_probability(token) == -np.inf
        return old if goes_on else new

    def _parts(
        self, aligned: Row, base: Row, writer: float, share: float, going_on: bool
    ) -> tuple[Laws, Laws]:
        """What each model contributes to the joint law [vocab_size], aligned and base.

        `writer` and `share` are the base model's shares in the last and in the next word.
        """
        laws = aligned.dense_probabilities(), base.dense_probabilities()
        old, new = (1.0 - writer, writer), (1.0 - share, share)
        if not going_on or self.words is None:
            return new[0] * laws[0], new[1] * laws[1]
        fresh = ~self.words.begins
        masses = [float(law @ fresh) for law in laws]
        if new[0] * masses[0] + new[1] * masses[1] == 0:  # who is named can only go on: old stays
            return old[0] * laws[0], old[1] * laws[1]
        ending = old[0] * masses[0] + old[1] * masses[1]
        heirs = [part if mass > 0 else 0.0 for part, mass in zip(new, masses, strict=True)]
        parts: list[Laws] = []
        for law, stays, part, mass in zip(laws, old, heirs, masses, strict=True):
            scale = ending * part / sum(heirs) / mass if part else 0.0
            parts.append(law * np.where(fresh, scale, stays))
        return parts[0], parts[1]

    def _continues(self, context: Context) -> bool:
        """Whether the text ends inside or at the end of a word that the next token may go on."""
        if not self.word_boundary or self.words is None:
            return False
        if len(context.tokens) == context.prompt_length:
            return False
        return bool(self.words.ends[context.tokens[-1]])

    def _with_one_end(self, base: Row) -> Row:
        """The base model's row with the mass of its own end tokens on the aligned model's."""
        if not self.base_ends:
            return base
        scores = base.dense_scores().copy()
        end = min(self.eos_ids)
        scores[end] = np.logaddexp.reduce(scores[[end, *self.base_ends]])
        scores[self.base_ends] = -np.inf
        return Row.dense(scores)


def template_text(template: BaseTemplate) -> str:
    """The text of a template, by name or as it is; `ParameterError` where it has no prompt."""
    text = TEMPLATES.get(template or "plain", cast("str", template))
    if "{prompt}" not in text:
        raise ParameterError(
            f"baco: base_template is {text!r}; allowed are {', '.join(TEMPLATES)}, or a text with"
            " {prompt}"
        )
    return text


@dataclass(frozen=True)
class BacoRecipe(Recipe):
    params: Params

    def over(self, model: Source, load: Callable[[str], Source]) -> Baco:
        own = self.params
        return Baco(
            model if own.base is None else load(own.base),
            model,
            own.router,
            gamma=own.gamma,
            diversity=own.diversity,
            content_from=own.content_from,
            word_boundary=own.word_boundary,
            base_template=own.base_template,
        )


def build(params: Params) -> BacoRecipe:
    make_router(params.router, params.gamma, params.diversity, params.content_from)
    template_text(params.base_template)
    return BacoRecipe(params)


METHOD = Method(CARD, Params, build)

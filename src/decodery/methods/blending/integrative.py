"""Integrative decoding: one answer from several earlier ones, fused token by token.

Facts that recur in independent answers are more likely true. Each of K earlier answers r_j is put
into a prompt of its own, [question; r_j; question again], and the K prompts are continued in step
by one text. With z_j the scores of stream j, the joint row is

    a = sum_j w_j z_j,    that is  P(v) ~ prod_j P(v | q_j, y)^w_j,

whose argmax is what all streams together find most probable: content that many answers support.
The answers are given, or drawn first, at a temperature, with noise of their own.

Aggregation comes before truncation by construction: a stream has no sampler, the run's chain acts
on the joint row. Truncating each stream first would leave no token where they disagree.

Cheng, Liang, Gong, Xiao, Wang, et al.: Improve Factuality via Implicit Self-consistency (2024),
arXiv:2410.01556.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from decodery.core.branches import branch_footprint
from decodery.core.card import Card, Method, Reduction
from decodery.core.decoder import Requests, Task
from decodery.core.errors import ParameterError, TreeError
from decodery.core.params import Parameters, parameter
from decodery.core.requests import Grow, Open
from decodery.core.row import Row
from decodery.core.sampler import Context, State, chain
from decodery.core.source import Blend, Footprint, Model, Policy, Recipe, Source, total
from decodery.core.tree import Node
from decodery.methods.blending.asking import Template, again, checked, template_text
from decodery.methods.blending.streams import Aggregate, Streams
from decodery.methods.sampling.temperature import Temperature

CARD = Card(
    name="integrative",
    kind="blend",
    family="blending",
    summary="Fuse the continuations of prompts that each hold an earlier answer, token by token.",
    guarantee="law",
    law="norm(prod_j P(v | question, answer_j, question again)^w_j), given the answers",
    title="Integrative Decoding: Improve Factuality via Implicit Self-consistency",
    authors="Cheng, Liang, Gong, Xiao, Wang, et al.",
    year=2024,
    arxiv="2410.01556",
    calls_per_token="1 (as wide as there are answers), after the calls that draw the answers",
    decoder="greedy",
    reductions=(Reduction({"plain_weight": 1.0}, "identity"),),
    deviations=(
        "8 answers of at most 256 tokens by default; the authors' code draws 16 of at most 2048",
        "sampling from the joint row, weights, the plain prompt as a further stream, and the"
        " aggregates mixture and vote are not the paper's",
        "the wording of the prompts is our own",
    ),
    notes=(
        "Decoded greedily by default, as in the paper: `--method sample --blend integrative` draws"
        " instead. The earlier answers use no sampler of the run but their own temperature, and end"
        " where the run's answers end. Where tokens are numbers the prompt of a stream is"
        " prompt + answer + prompt. A consistent error is amplified like a consistent truth."
    ),
)

JOINTS = 8  # tokens by which a text may grow when it is put between two others

Answer = str | Sequence[int]


class Params(Parameters):
    samples: int = parameter(
        8, ge=1, le=256, unit="answers", help="How many earlier answers are drawn and fused."
    )
    answer_temperature: float = parameter(
        0.7, ge=0.0, le=100.0, help="Temperature at which the earlier answers are drawn."
    )
    answer_tokens: int = parameter(
        256, ge=1, le=1_000_000, unit="tokens", help="Most tokens of an earlier answer."
    )
    template: Template = parameter(
        None,
        help="How a prompt asks again: again, brief, extract, detail, or a text with {question} and"
        " {answer}; default: again.",
    )
    aggregate: Aggregate = parameter(
        "logits", help="What joins the streams: the mean of logits, of laws, or votes for a token."
    )
    answer_weights: tuple[float, ...] = parameter(
        (), help="Relative weight of each answer's stream, in the order drawn; default: equal."
    )
    plain_weight: float = parameter(
        0.0, ge=0.0, le=1.0, help="Weight of the plain prompt as a further stream; 1 is that alone."
    )


class Integrative(Blend):
    """`source` asked again with each of `answers`, or of `samples` answers that it draws first.

    An answer is a text, or token ids. `Integrative(lm, answers=["...", "..."])`.
    """

    def __init__(
        self,
        source: Source,
        answers: Sequence[Answer] | None = None,
        *,
        samples: int | None = None,
        answer_temperature: float = 0.7,
        answer_tokens: int = 256,
        template: Template = None,
        aggregate: Aggregate = "logits",
        answer_weights: Sequence[float] = (),
        plain_weight: float = 0.0,
    ) -> None:
        super().__init__(f"integrative({source.name})", [source])
        if answers is not None and samples is not None:
            raise ParameterError(f"{self.name}: answers are given and samples is {samples}")
        if answers is not None and not answers:
            raise ParameterError(f"{self.name}: answers is empty; give at least one")
        self.answers = None if answers is None else tuple(map(_frozen, answers))
        self.count = Params().samples if samples is None else samples
        if self.answers is not None:
            self.count = len(self.answers)
        self.answer_temperature = answer_temperature
        self.answer_tokens = answer_tokens
        self.template = checked(template, self.language, source.name)
        self.aggregate: Aggregate = aggregate
        self.weights = stream_weights(answer_weights, self.count, plain_weight)

    @property
    def plain_weight(self) -> float:
        """The plain prompt's share of the weight."""
        return self.weights[0]

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        raise TreeError(f"{self.name} has no row before a run has prepared it")

    def prepare(self, task: Task) -> Generator[Requests, Any, Source]:
        source = yield from self.members[0].prepare(task)
        if self.plain_weight == 1:
            return source
        answers: Sequence[Answer]
        if self.answers is None:
            answers = yield from self._draw(task, source)
        else:
            answers = self.answers
        contexts = [self._room_for(task, task.prompt, answer) for answer in answers]
        return Streams(source, [task.prompt, *contexts], self.weights, self.aggregate)

    def slots(self, task: Task, prompt: Sequence[int], footprint: Footprint) -> dict[Model, int]:
        """Room for the streams, or for the drawing before them where that needs more."""
        source = self.members[0]
        streams = [prompt] if self.plain_weight else []
        if self.plain_weight < 1:
            if self.answers is None:
                streams += [self._longest(task, prompt)] * self.count
            else:
                streams += [self._room_for(task, prompt, answer) for answer in self.answers]
        needs = total(source.slots(task, stream, footprint) for stream in streams)
        if self.answers is not None or self.plain_weight == 1:
            return needs
        drawing = source.slots(self._drawing(task), prompt, self._drawing_footprint)
        return {model: max(need, drawing.get(model, 0)) for model, need in needs.items()}

    # -- earlier answers -------------------------------------------------------------------------

    def _drawing(self, task: Task) -> Task:
        return replace(task, stopping=replace(task.stopping, max_tokens=self.answer_tokens))

    def _drawing_footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.count, prompt_length, max_tokens)

    def _draw(self, task: Task, source: Source) -> Generator[Requests, Any, list[Answer]]:
        """Answers side by side; answer j has noise of its own, whatever their number."""
        stopping = self._drawing(task).stopping
        policy = Policy(source, chain(Temperature(self.answer_temperature)))
        root: Node = yield Open(policy, task.prompt)
        tips: list[Node] = [root] * self.count
        answers: dict[int, Answer] = {}
        live = list(range(self.count))
        while live:
            for number in live:
                tip = tips[number]
                tips[number] = tip.child(tip.draw(number, purpose="answer"), number)
            for number in live:
                reason = stopping.reason(tips[number])
                if reason is not None:
                    ended = reason in ("eos", "stop_id")
                    drawn = tips[number].generated
                    answers[number] = tuple(drawn[:-1] if ended else drawn)
                    tips[number].abandon()
            live = [number for number in live if number not in answers]
            if live:
                yield Grow([tips[number] for number in live])
        root.drop()
        return [answers[number] for number in range(self.count)]

    # -- prompts ---------------------------------------------------------------------------------

    def _context(self, task: Task, prompt: Sequence[int], answer: Answer) -> tuple[int, ...]:
        if self.language is None:
            if isinstance(answer, str):
                raise ParameterError(
                    f"{self.name}: the tokens of {self.members[0].name} are numbers; give answers"
                    " as token ids"
                )
            return (*prompt, *answer, *prompt)
        text = answer if isinstance(answer, str) else self.language.decode(answer)
        text = task.stopping.cut(text).strip()
        return again(self.language, task.messages, prompt, self.template, text)

    def _room_for(self, task: Task, prompt: Sequence[int], answer: Answer) -> tuple[int, ...]:
        """A stream's prompt. Of a drawn answer whose text reads as more tokens than were drawn,
        which is rare, only what fits into the room that was reserved."""
        context = self._context(task, prompt, answer)
        if self.answers is not None:
            return context
        room = len(self._longest(task, prompt))
        while len(context) > room:
            answer = answer[:-1]
            context = self._context(task, prompt, answer)
        return context

    def _longest(self, task: Task, prompt: Sequence[int]) -> tuple[int, ...]:
        """A prompt as long as that of a drawn answer can be."""
        if self.language is None:
            return (*prompt, *[prompt[-1]] * self.answer_tokens, *prompt)
        empty = again(self.language, task.messages, prompt, self.template, "")
        return (*empty, *[empty[-1]] * (self.answer_tokens + JOINTS))


def _frozen(answer: Answer) -> Answer:
    return answer if isinstance(answer, str) else tuple(answer)


def stream_weights(
    answer_weights: Sequence[float], count: int, plain_weight: float
) -> tuple[float, ...]:
    """Weights [1 + count] that sum to one: the plain prompt's, then each answer's."""
    given = tuple(answer_weights) or (1.0,) * count
    if len(given) != count:
        raise ParameterError(
            f"integrative: answer_weights has {len(given)} entries; allowed is one for each of"
            f" {count} answers"
        )
    whole = math.fsum(given)  # exact, so that the order does not matter
    if min(given) < 0 or not 0 < whole < math.inf:
        raise ParameterError(
            f"integrative: answer_weights is {given}; allowed are numbers 0 <= x, not all 0"
        )
    if not 0 <= plain_weight <= 1:
        raise ParameterError(
            f"integrative: plain_weight is {plain_weight}; allowed is a number with 0 <= x <= 1"
        )
    share = (1.0 - plain_weight) / whole
    return (plain_weight, *(share * weight for weight in given))


@dataclass(frozen=True)
class IntegrativeRecipe(Recipe):
    params: Params

    def over(self, model: Source, load: Callable[[str], Source]) -> Integrative:
        own = self.params
        return Integrative(
            model,
            samples=own.samples,
            answer_temperature=own.answer_temperature,
            answer_tokens=own.answer_tokens,
            template=own.template,
            aggregate=own.aggregate,
            answer_weights=own.answer_weights,
            plain_weight=own.plain_weight,
        )


def build(params: Params) -> IntegrativeRecipe:
    stream_weights(params.answer_weights, params.samples, params.plain_weight)
    template_text(params.template)
    return IntegrativeRecipe(params)


METHOD = Method(CARD, Params, build)

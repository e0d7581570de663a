"""Measuring for the reproduction of integrative decoding: answers drawn, chosen and fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decodery.core.decoder import Decoder, Task
from decodery.core.handle import Handle
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.autoregressive.greedy import Greedy
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.blending.integrative import Integrative
from decodery.methods.sampling.temperature import Temperature
from decodery.metrics.diversity import rouge_1
from decodery.metrics.text import words
from decodery.reproductions.drawing import item_stream, run, seeds_from
from decodery.reproductions.frame import Array, Measurements, Mode, Progress
from decodery.reproductions.integrative_tasks import QUESTIONS, Question, is_right

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Way = Literal["greedy", "sample", "chosen", "fused"]
Texts = Sequence[Sequence[str]]  # [items][seeds]
TEMPERATURE = 0.7
TEMPLATE = "again"
FIRST = 48  # questions of the first run
DRAWING = 0.3  # of the whole work
COPIED = 0.9  # ROUGE-1 F from which a text is a copy


@dataclass(frozen=True)
class Setting:
    """How an answer comes about, and from how many drawn ones."""

    way: Way
    answers: int = 0

    def __str__(self) -> str:
        return self.way if not self.answers else f"{self.way} K={self.answers}"


GREEDY, SAMPLE = Setting("greedy"), Setting("sample")


@dataclass(frozen=True)
class Size:
    """How much a mode measures."""

    counts: tuple[int, ...]  # K, ascending
    questions: tuple[Question, ...]
    tokens: int
    seeds: int

    @property
    def most(self) -> int:
        return self.counts[-1]

    @property
    def fused(self) -> tuple[Setting, ...]:
        return tuple(Setting("fused", count) for count in self.counts)

    @property
    def chosen(self) -> Setting:
        return Setting("chosen", self.most)


def size(mode: Mode) -> Size:
    """The numbers of answers, questions and seeds of a mode."""
    if mode == "quick":
        return Size((1, 4, 8), QUESTIONS[:12], 24, 1)
    return Size((1, 2, 4, 8, 16), QUESTIONS, 32, 1)


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Draw the answers, then fuse the first K of them for every K: comparisons are paired."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds = seeds_from(seed, todo.seeds)
    drawn, greedy = _first(lm, todo, seeds, _part_of(progress, 0.0, DRAWING))
    fused = _second(lm, todo, drawn, _part_of(progress, DRAWING, 1.0))
    texts: dict[Setting, Texts] = {
        GREEDY: [[text] * todo.seeds for text in greedy],
        todo.chosen: [[medoid(group) for group in row] for row in drawn],
        **fused,
    }
    found = cells(todo, texts, drawn)
    facts = {**_facts(todo, texts, drawn), **_added(found["accuracy"])}
    return Measurements(lm.name, seeds, found, facts)


def _part_of(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part, of the whole that goes from 0 to 1."""

    def report(done: int, total: int) -> None:
        progress(round(1000 * (start + (end - start) * done / total)), 1000)

    return report


def _first(
    lm: LanguageModel, todo: Size, seeds: Sequence[int], progress: Progress
) -> tuple[list[list[list[str]]], list[str]]:
    """Drawn answers [items][seeds][K] and greedy ones [items]."""
    runner = Runner()
    warm = Policy(lm, chain(Temperature(TEMPERATURE)))
    many = Sample(todo.most)
    drawn = [
        [_submit(runner, lm, warm, many, question, todo, key, item) for key in seeds]
        for item, question in enumerate(todo.questions)
    ]
    plain = [
        _submit(runner, lm, Policy(lm), Greedy(), question, todo, 0, item)
        for item, question in enumerate(todo.questions)
    ]
    run(runner, [*plain, *(handle for row in drawn for handle in row)], progress)
    return (
        [[_texts(lm, handle) for handle in row] for row in drawn],
        [_texts(lm, handle)[0] for handle in plain],
    )


def _second(
    lm: LanguageModel, todo: Size, drawn: Sequence[Sequence[Sequence[str]]], progress: Progress
) -> dict[Setting, Texts]:
    """Fused answers [items][seeds] of the first K drawn ones."""
    runner = Runner()
    handles: dict[Setting, list[list[Handle]]] = {}
    for setting in todo.fused:
        handles[setting] = [
            [
                _submit(
                    runner,
                    lm,
                    Policy(Integrative(lm, answers=group[: setting.answers], template=TEMPLATE)),
                    Greedy(),
                    question,
                    todo,
                    0,
                    item,
                )
                for group in row
            ]
            for item, (question, row) in enumerate(zip(todo.questions, drawn, strict=True))
        ]
    run(runner, [one for rows in handles.values() for row in rows for one in row], progress)
    return {
        setting: [[_texts(lm, handle)[0] for handle in row] for row in rows]
        for setting, rows in handles.items()
    }


def _submit(
    runner: Runner,
    lm: LanguageModel,
    policy: Policy,
    decoder: Decoder,
    question: Question,
    todo: Size,
    seed: int,
    item: int,
) -> Handle:
    read = lm.read(question.text)
    stopping = Stopping(todo.tokens, lm.eos_ids)
    stream, decode = item_stream(seed, item), lm.tokenizer.decode
    task = Task(policy, read.tokens, stopping, stream, read.text, decode, messages=read.messages)
    return runner.submit(decoder, task)


def _texts(lm: LanguageModel, handle: Handle) -> list[str]:
    return [lm.tokenizer.decode(item.tokens).strip() for item in handle.result()]


# -- from texts to cells ---------------------------------------------------------------------------


def agreement(text: str, answers: Sequence[str]) -> float:
    """The mean ROUGE-1 F of a text with the answers."""
    return float(np.mean([rouge_1(words(text), words(answer)) for answer in answers]))


def medoid(answers: Sequence[str]) -> str:
    """The answer that agrees most with all; of equals, the first."""
    return max(answers, key=lambda answer: agreement(answer, answers))


def cells(
    todo: Size, texts: Mapping[Setting, Texts], drawn: Sequence[Sequence[Sequence[str]]]
) -> dict[str, dict[Setting, Array]]:
    """Arrays [items, seeds]: "accuracy", and "agreement" with the drawn answers.

    A drawn answer stands for `sample`: its mean accuracy, and its agreement with the others.
    """
    questions = todo.questions
    accuracy = {
        setting: np.array(
            [
                [float(is_right(question, text)) for text in row]
                for question, row in zip(questions, rows, strict=True)
            ]
        )
        for setting, rows in texts.items()
    }
    accuracy[SAMPLE] = np.array(
        [
            [np.mean([is_right(question, text) for text in group]) for group in row]
            for question, row in zip(questions, drawn, strict=True)
        ]
    )
    agreed = {
        setting: np.array(
            [
                [agreement(text, group) for text, group in zip(row, groups, strict=True)]
                for row, groups in zip(rows, drawn, strict=True)
            ]
        )
        for setting, rows in texts.items()
    }
    agreed[SAMPLE] = np.array([[_among(group) for group in row] for row in drawn])
    return {"accuracy": accuracy, "agreement": agreed}


def _among(answers: Sequence[str]) -> float:
    """The mean agreement of an answer with the others."""
    return float(
        np.mean(
            [
                agreement(answer, [*answers[:place], *answers[place + 1 :]])
                for place, answer in enumerate(answers)
            ]
        )
    )


def _added(accuracy: Mapping[Setting, Array]) -> dict[str, Any]:
    """Accuracies on the questions that were added after a first run, where there are any."""
    by_setting = {str(setting): values[FIRST:] for setting, values in accuracy.items()}
    means = {
        name: round(float(values.mean()), 4) for name, values in by_setting.items() if values.size
    }
    return {"accuracy on the questions added later": means} if means else {}


def _facts(
    todo: Size, texts: Mapping[Setting, Texts], drawn: Sequence[Sequence[Sequence[str]]]
) -> dict[str, Any]:
    one = texts[todo.fused[0]]
    copied = [
        rouge_1(words(text), words(group[0])) >= COPIED
        for row, groups in zip(one, drawn, strict=True)
        for text, group in zip(row, groups, strict=True)
    ]
    return {
        "questions": len(todo.questions),
        "tokens of an answer at most": todo.tokens,
        "share of fused K=1 answers that copy the one they see": float(np.mean(copied)),
        "examples": {
            todo.questions[item].text: {
                "drawn": list(drawn[item][0][:3]),
                **{str(setting): rows[item][0] for setting, rows in texts.items()},
            }
            for item in range(min(3, len(todo.questions)))
        },
    }

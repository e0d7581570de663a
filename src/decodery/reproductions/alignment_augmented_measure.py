"""Measuring for the alignment_augmented reproduction: texts, what they cost, how good they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.handle import Handle
from decodery.core.requests import Grow, Open
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.metrics.text import rouge_l, words
from decodery.reproductions.alignment_augmented_prompts import Item
from decodery.reproductions.alignment_augmented_settings import GREEDY, Setting, Size, size
from decodery.reproductions.drawing import item_stream, run
from decodery.reproductions.frame import Array, Measurements, Mode, Progress

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

QUANTITIES = (
    "tokens per step",
    "evaluations per token",
    "from alternatives",
    "not argmax",
    "same text",
    "rouge to greedy",
    "rouge to reference",
    "log p",
)


@dataclass(frozen=True)
class Reads(Decoder):
    """Decodes nothing: reads ln p of a text's tokens, which are `details["log p"]`."""

    text: tuple[int, ...]

    def decode(self, task: Task) -> Decoding:
        node = yield Open(task.policy, task.prompt)
        nodes = [node]
        for token in self.text[:-1]:
            nodes.append(nodes[-1].child(token))
        if nodes[1:]:
            yield Grow(nodes[1:], keep_rows=True)
        known = [
            above.row.log_probability(token) for above, token in zip(nodes, self.text, strict=True)
        ]
        tip = nodes[-1].child(self.text[-1])
        return [completion(tip, "max_tokens", details={"log p": known})]


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Decode every item in every setting on the embedded model, then read what was decoded."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    tasks = [_task(lm, item, todo.tokens, number, seed) for number, item in enumerate(todo.items)]
    runner = Runner()
    handles = {
        setting: [runner.submit(setting.decoder(), task) for task in tasks]
        for setting in todo.settings
    }
    run(runner, [one for row in handles.values() for one in row], progress)
    chances = _log_probabilities(tasks, handles)
    texts = {
        setting: [lm.tokenizer.decode(one.result()[0].tokens) for one in row]
        for setting, row in handles.items()
    }
    answers = {setting: [_measured(one) for one in row] for setting, row in handles.items()}
    examples = {str(setting): texts[setting][0] for setting in todo.settings}
    facts = _facts(todo, [len(task.prompt) for task in tasks], examples)
    return Measurements(lm.name, (seed,), cells(todo, answers, texts, chances), facts)


def _task(lm: LanguageModel, item: Item, tokens: int, number: int, seed: int) -> Task:
    read = lm.read(item.prompt, raw=item.raw)
    stopping = Stopping(tokens, eos_ids=lm.eos_ids)
    stream = item_stream(seed, number)
    return Task(Policy(lm), read.tokens, stopping, stream, read.text, lm.tokenizer.decode)


@dataclass(frozen=True)
class Answer:
    """A completion, and how many tokens were evaluated for it beyond the prompt's own."""

    completion: Completion
    evaluated: int


def _measured(handle: Handle) -> Answer:
    report = handle.report
    whole = report.tokens_evaluated + report.cached_tokens
    return Answer(handle.result()[0], whole - len(handle.task.prompt))


def _log_probabilities(
    tasks: Sequence[Task], handles: Mapping[Setting, Sequence[Handle]]
) -> dict[tuple[int, tuple[int, ...]], float]:
    """The mean ln p of the tokens of every text under the model, by item and text."""
    runner = Runner()
    reading: dict[tuple[int, tuple[int, ...]], Handle] = {}
    for row in handles.values():
        for number, handle in enumerate(row):
            text = handle.result()[0].tokens
            if (number, text) not in reading:
                reading[number, text] = runner.submit(Reads(text), tasks[number])
    runner.run()
    return {
        key: float(np.mean(handle.result()[0].details["log p"])) for key, handle in reading.items()
    }


def cells(
    todo: Size,
    answers: Mapping[Setting, Sequence[Answer]],
    texts: Mapping[Setting, Sequence[str]],
    chances: Mapping[tuple[int, tuple[int, ...]], float],
) -> dict[str, dict[Setting, Array]]:
    """Arrays [items, 1] of every quantity.

    "from alternatives" is the share of a text's tokens that were alternatives, "not argmax" the
    share that greedy decoding would not have taken after the same text; ROUGE-L is over words.
    """
    found: dict[str, dict[Setting, Array]] = {name: {} for name in QUANTITIES}
    for setting in todo.settings:
        rows = [
            _row(answer, texts[setting][number], texts[GREEDY][number], item)
            for number, (item, answer) in enumerate(zip(todo.items, answers[setting], strict=True))
        ]
        for row, (number, answer) in zip(rows, enumerate(answers[setting]), strict=True):
            row["log p"] = chances[number, answer.completion.tokens]
        for name in QUANTITIES:
            found[name][setting] = np.array([[row[name]] for row in rows], dtype=np.float64)
    return found


def _row(answer: Answer, text: str, greedy: str, item: Item) -> dict[str, float]:
    tokens = len(answer.completion.tokens)
    details = answer.completion.details
    departure = details.get("departure", {})
    accepted = departure.get("accepted", 0)
    return {
        "tokens per step": details.get("speculation", {}).get("tokens_per_step", 1.0),
        "evaluations per token": answer.evaluated / tokens,
        "from alternatives": departure.get("from_alternatives", 0.0) * accepted / tokens,
        "not argmax": departure.get("total_variation", 0.0),
        "same text": float(text == greedy),
        "rouge to greedy": rouge_l(words(text), words(greedy)),
        "rouge to reference": rouge_l(words(text), words(item.reference)),
    }


def _facts(todo: Size, lengths: Sequence[int], examples: Mapping[str, str]) -> dict[str, Any]:
    kinds = [item.kind for item in todo.items]
    return {
        "items": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "tokens of a prompt": [min(lengths), max(lengths)],
        "most tokens of an answer": todo.tokens,
        "examples (the first item)": dict(examples),
    }

"""Measuring for the reproduction of base-aligned collaboration: texts, writers, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from decodery.core.decoder import Completion, Task
from decodery.core.handle import Handle
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context, State
from decodery.core.source import Blend, Policy, Source
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.blending.baco import Baco
from decodery.methods.blending.words import FUNCTION_WORDS
from decodery.methods.sampling.temperature import Temperature
from decodery.metrics import diversity
from decodery.metrics.text import distinct, self_bleu, words
from decodery.reproductions.baco_planes import dominance
from decodery.reproductions.baco_settings import COMMON, DIVERSITY, Setting, Size, size
from decodery.reproductions.drawing import NotedDraws, item_stream, run, seeds_from
from decodery.reproductions.frame import Array, Measurements, Mode, Progress, cell_means

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Texts = Sequence[Sequence[Sequence[str]]]  # [prompts][seeds][group]
Drawn = Sequence[Sequence[Sequence[Completion]]]

RUNAWAY = ("user:", "assistant:", "question:", "answer:", "q:", "a:")


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Draw all texts of a mode from the proxy pair of the embedded model."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds, runner = seeds_from(seed, todo.seeds), Runner()
    handles = {
        setting: [
            [_submit(runner, lm, setting, item, prompt, todo, key) for key in seeds]
            for item, prompt in enumerate(todo.prompts)
        ]
        for setting in todo.all_settings
    }
    run(runner, list(chain.from_iterable(chain.from_iterable(handles.values()))), progress)
    drawn = {
        setting: [[handle.result() for handle in row] for row in rows]
        for setting, rows in handles.items()
    }
    texts = {
        setting: [
            [[lm.tokenizer.decode(item.tokens).strip() for item in group] for group in row]
            for row in rows
        ]
        for setting, rows in drawn.items()
    }
    cells = {**spread(texts), **worth(drawn, texts)}
    measured = Measurements(lm.name, seeds, cells, _facts(todo, texts))
    share = {name: round(value, 4) for name, value in dominance(cell_means(measured)).items()}
    return replace(measured, facts={**measured.facts, "dominance": share})


def _submit(
    runner: Runner,
    lm: LanguageModel,
    setting: Setting,
    item: int,
    prompt: str,
    todo: Size,
    seed: int,
) -> Handle:
    read, heat = lm.read(prompt), setting.temperature
    pair = Baco(Heated(lm, heat), Heated(lm, heat), setting.router, diversity=setting.diversity)
    task = Task(
        Policy(pair),
        read.tokens,
        Stopping(todo.tokens, lm.eos_ids),
        item_stream(seed, item),
        read.text,
        lm.tokenizer.decode,
        messages=read.messages,
    )
    return runner.submit(NotedDraws(todo.group, NOTES), task)


class Heated(Blend):
    """A source at a temperature, which the router then sees, as in the paper."""

    observes_rows = True  # keeps the row as it was, for the quality of what is drawn

    def __init__(self, source: Source, temperature: float) -> None:
        super().__init__(f"{source.name} at T={temperature:g}", [source])
        self.sampler = Temperature(temperature)

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        return self.sampler.apply(rows[0], None, context)


def aligned_log_probability(node: Node, token: int) -> float:
    """ln p of a token under the aligned model at temperature 1, whoever wrote it."""
    return node.members[0].members[0].row.log_probability(token)


def base_share(node: Node, token: int) -> float:
    """The base model's share in a token."""
    pair = cast("Baco", node.tree.policy.source)
    rows = [member.row for member in node.members]
    return pair.advance(node.blend_state, token, rows, node.context())


NOTES = {"log-prob": aligned_log_probability, "base share": base_share}


# -- from texts to cells ---------------------------------------------------------------------------


def spread(texts: Mapping[Setting, Texts]) -> dict[str, dict[Setting, Array]]:
    """The diversity of every group of answers, by six metrics: cells [prompts, seeds]."""
    found: dict[str, dict[Setting, Array]] = {name: {} for name in DIVERSITY}
    for setting, rows in texts.items():
        cells = np.array([[list(_spread_of(group).values()) for group in row] for row in rows])
        for place, name in enumerate(DIVERSITY):
            found[name][setting] = cells[:, :, place]
    return found


def _spread_of(answers: Sequence[str]) -> dict[str, float]:
    """All six grow with diversity; NaN, of answers without words, counts as none."""
    spoken = [words(answer) for answer in answers]
    similarity = diversity.bag_similarity(answers, FUNCTION_WORDS)
    values = {
        "distinct-2": distinct(spoken, 2),
        "1 - self-BLEU": 1.0 - self_bleu(spoken),
        "new sentences": diversity.unique_sentences(answers),
        "kinds": float(diversity.distinct_k(answers)),
        "distance": diversity.mean_distance(similarity),
        "Vendi": diversity.vendi(similarity),
    }
    return {name: float(np.nan_to_num(value)) for name, value in values.items()}


def worth(
    drawn: Mapping[Setting, Drawn], texts: Mapping[Setting, Texts]
) -> dict[str, dict[Setting, Array]]:
    """Quality, and who wrote: cells [prompts, seeds].

    "log-prob" is nats a token under the aligned model, "valid" the share of answers that say
    something and stay in their role, "base share" the share of tokens that base wrote.
    """
    return {
        "log-prob": {name: _mean_note(rows, "log-prob") for name, rows in drawn.items()},
        "base share": {name: _mean_note(rows, "base share") for name, rows in drawn.items()},
        "valid": {name: _share_valid(rows) for name, rows in texts.items()},
    }


def _mean_note(rows: Drawn, note: str) -> Array:
    """The mean of a note over all tokens of a group."""

    def mean(group: Sequence[Completion]) -> float:
        return float(np.mean([value for item in group for value in item.details[note]]))

    return np.array([[mean(group) for group in row] for row in rows])


def _share_valid(rows: Texts) -> Array:
    return np.array([[sum(map(is_valid, group)) / len(group) for group in row] for row in rows])


def is_valid(answer: str) -> bool:
    """It has a word, and no line begins a turn of somebody else.

    >>> [is_valid(text) for text in ("A blue whale.", "...", "Blue.\\nUser: and now?")]
    [True, False, False]
    """
    lines = [line.strip().lower() for line in answer.splitlines()]
    return bool(words(answer)) and not any(line.startswith(RUNAWAY) for line in lines)


def _facts(todo: Size, texts: Mapping[Setting, Texts]) -> dict[str, Any]:
    return {
        "pair": "a proxy: one model, with its chat template (aligned) and on plain text (base)",
        "prompts": list(todo.prompts),
        "temperature of routed models": COMMON,
        "answers to each prompt": todo.group,
        "tokens of an answer at most": todo.tokens,
        "examples": {str(setting): rows[0][0][:3] for setting, rows in texts.items()},
    }

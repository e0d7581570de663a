"""Measuring for the min-p reproduction: graded answers and free texts, all in one runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from decodery.core.branches import branch_footprint, branches
from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.handle import Handle
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.reproductions.frame import (
    SEED_LIMIT,
    Array,
    Measurements,
    Mode,
    Progress,
    cell_means,
)
from decodery.reproductions.graded import GradedDraws
from decodery.reproductions.min_p_fair import best_settings
from decodery.reproductions.min_p_settings import GREEDY, Setting, Size, size
from decodery.reproductions.min_p_tasks import (
    ANSWER_TOKENS,
    OPENINGS,
    Item,
    candidates,
    grade,
)

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Mask = npt.NDArray[np.bool_]
Texts = Sequence[Sequence[Sequence[Completion]]]  # [prompts][seeds][texts]


@dataclass(frozen=True)
class ScoredDraws(Decoder):
    """`n` draws with the log-probability of their tokens under the source itself."""

    n: int

    @property
    def sequences(self) -> int:
        return self.n

    def decode(self, task: Task) -> Decoding:
        return (yield from branches(task, self.n, emit=False, log_probabilities=True))

    def footprint(self, prompt_length: int, max_tokens: int) -> int:
        return branch_footprint(self.n, prompt_length, max_tokens)


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Run the whole grid of a mode on the embedded model."""
    from decodery.api.load import load

    lm, todo, items = load(weights="float32"), size(mode), candidates()
    seeds = tuple((seed + offset) % SEED_LIMIT for offset in range(todo.seeds))
    runner = Runner()
    answers = [_submit_answers(runner, lm, place, todo, seeds) for place in enumerate(items)]
    handles = {
        setting: [
            [_submit_texts(runner, lm, setting, place, todo, key) for key in seeds]
            for place in enumerate(OPENINGS)
        ]
        for setting in todo.written
    }
    _run(runner, list(chain.from_iterable(chain.from_iterable(handles.values()))), progress)
    graded = np.array([_right(handle, todo) for handle in answers])
    texts = {
        setting: [[handle.result() for handle in row] for row in rows]
        for setting, rows in handles.items()
    }
    measured = Measurements(
        model=lm.name,
        seeds=seeds,
        cells={**accuracies([item.task for item in items], graded, todo), **written(texts)},
        facts=_facts(lm, todo, items, selected(graded), texts),
    )
    if mode == "quick":
        return measured
    best = {name: str(chosen) for name, chosen in best_settings(cell_means(measured)).items()}
    return replace(measured, facts={**measured.facts, "best settings at equal diversity": best})


def _submit_answers(
    runner: Runner,
    lm: LanguageModel,
    place: tuple[int, Item],
    todo: Size,
    seeds: Sequence[int],
) -> Handle:
    number, item = place
    decoder = GradedDraws(
        chains=tuple(setting.chain() for setting in (GREEDY, *todo.graded)),
        streams=tuple(_stream(seed, number) for seed in seeds),
        draws=todo.draws,
        judge=partial(grade, item.answer),
    )
    return runner.submit(decoder, _task(lm, Policy(lm), item.prompt, ANSWER_TOKENS, Stream(0)))


def _submit_texts(
    runner: Runner,
    lm: LanguageModel,
    setting: Setting,
    place: tuple[int, str],
    todo: Size,
    seed: int,
) -> Handle:
    number, opening = place
    policy, stream = Policy(lm, setting.chain()), _stream(seed, number)
    return runner.submit(
        ScoredDraws(todo.texts), _task(lm, policy, opening, todo.text_tokens, stream)
    )


def _stream(seed: int, number: int) -> Stream:
    """Noise of a seed and an item: items must not share noise, or they would err together."""
    return Stream(seed * 2**16 + number)


def _task(lm: LanguageModel, policy: Policy, prompt: str, tokens: int, stream: Stream) -> Task:
    read = lm.read(prompt, raw=True)
    stopping = Stopping(tokens, eos_ids=lm.eos_ids)
    return Task(policy, read.tokens, stopping, stream, read.text, lm.tokenizer.decode)


def _run(runner: Runner, texts: Sequence[Handle], progress: Progress) -> None:
    """Run everything; the texts, whose length is known, tell how far it is."""
    total = sum(
        len(handle.task.prompt) + handle.decoder.sequences * handle.task.stopping.max_tokens
        for handle in texts
    )
    try:
        while runner.step():
            reports = [handle.report for handle in texts]
            progress(sum(item.tokens_evaluated + item.cached_tokens for item in reports), total)
    finally:
        runner.close()


def _right(handle: Handle, todo: Size) -> Array:
    """One item's scores as [1 + settings, seeds]: the share of draws that are right."""
    scores = np.array([completion.score for completion in handle.result()], dtype=np.float64)
    return scores.reshape(1 + len(todo.graded), todo.seeds, todo.draws).mean(axis=2)


# -- from answers and texts to cells --------------------------------------------------------------


def selected(graded: Array) -> Mask:
    """Which items [items] greedy decoding, the first of the settings, answers right."""
    return graded[:, 0].min(axis=1) == 1


def accuracies(tasks: Sequence[str], graded: Array, todo: Size) -> dict[str, dict[Setting, Array]]:
    """Cells [items, seeds] of the selected items: all, by task, and by halves of the seeds.

    `graded` is [items, 1 + settings, seeds]. The halves serve the fair comparison: on one the best
    setting is chosen, on the other it is judged.
    """
    kept, half = selected(graded), graded.shape[2] // 2
    parts: dict[str, tuple[Mask, slice]] = {
        "accuracy": (kept, slice(None)),
        "facts": (kept & (np.array(tasks) == "facts"), slice(None)),
        "copy": (kept & (np.array(tasks) == "copy"), slice(None)),
        "accuracy to choose": (kept, slice(None, half)),
        "accuracy to judge": (kept, slice(half, None)),
    }
    return {
        name: {
            setting: graded[rows, number, seeds] for number, setting in enumerate(todo.graded, 1)
        }
        for name, (rows, seeds) in parts.items()
    }


def written(texts: Mapping[Setting, Texts]) -> dict[str, dict[Setting, Array]]:
    """Cells of free texts: log-probability [prompts, seeds] and distinct-2 [prompts, 1]."""
    return {
        "log-prob": {
            setting: np.array([[mean_log_probability(drawn) for drawn in row] for row in rows])
            for setting, rows in texts.items()
        },
        "distinct-2": {
            setting: np.array([[distinct_2(list(chain.from_iterable(row)))] for row in rows])
            for setting, rows in texts.items()
        },
    }


def mean_log_probability(texts: Sequence[Completion]) -> float:
    """Nats a token under the untempered model, all texts together."""
    total = sum(text.log_probability or 0.0 for text in texts)
    return total / sum(len(text.tokens) for text in texts)


def distinct_2(texts: Sequence[Completion]) -> float:
    """The share of distinct pairs among all pairs of neighbouring tokens; 0 without any pair."""
    pairs = [pair for text in texts for pair in pairwise(text.tokens)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _facts(
    lm: LanguageModel, todo: Size, items: Sequence[Item], kept: Mask, texts: Mapping[Setting, Texts]
) -> dict[str, Any]:
    return {
        "items": len(items),
        "items answered right under greedy decoding": int(kept.sum()),
        "answers not used": [
            item.answer for item, keep in zip(items, kept, strict=True) if not keep
        ],
        "draws for each item and seed": todo.draws,
        "texts for each opening and seed": todo.texts,
        "examples": {
            str(setting): lm.tokenizer.decode(rows[0][0][0].tokens)
            for setting, rows in texts.items()
        },
    }

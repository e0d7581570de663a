"""Measuring for the mpg reproduction: answers of every setting, their voices, what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decodery.core.decoder import Completion, Decoder, Decoding, Task, completion
from decodery.core.handle import Handle
from decodery.core.requests import Grow, Open
from decodery.core.runner import Runner
from decodery.core.source import Policy, Source
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.blending.mpg import Mpg
from decodery.reproductions import mpg_settings
from decodery.reproductions.drawing import item_stream, seeds_from
from decodery.reproductions.frame import Array, Measurements, Mode, Progress
from decodery.reproductions.mpg_settings import CHUNK, Setting, Size
from decodery.reproductions.mpg_texts import ATTRIBUTES, VOICES, Voice, scores

Answers = list[list[tuple[Completion, Handle]]]  # [items][seeds]


@dataclass(frozen=True)
class Bench:
    """The models of a mode: one for each voice, their prompts, and how tokens become text.

    `prompted` is a plain model that is asked for both voices, with prompts of its own.
    """

    name: str
    voices: Mapping[Voice, Source]
    prompts: Sequence[tuple[int, ...]]
    decode: Any
    prompted: tuple[Source, Sequence[tuple[int, ...]]] | None = None

    def source(self, setting: Setting) -> Source:
        """The source of a setting."""
        if setting.source in VOICES:
            return self.voices[setting.source]
        if setting.source == "prompted":
            assert self.prompted is not None
            return self.prompted[0]
        attributes = [self.voices[voice] for voice in ATTRIBUTES]
        reference = self.voices["neutral"]
        if setting.source == "sum":
            return Mpg(reference, attributes, chunk=CHUNK)
        if setting.source == "answers":
            return Mpg(reference, attributes, scope="sequence")
        strength = 2.0 if setting.source == "product 2" else 1.0
        return Mpg(reference, attributes, aggregate="product", strength=strength)

    def task(self, setting: Setting, item: int, seed: int, most: int) -> Task:
        source = self.source(setting)
        prompts = self.prompts
        if setting.source == "prompted" and self.prompted is not None:
            prompts = self.prompted[1]
        stopping = Stopping(most, eos_ids=source.eos_ids)
        prompt = prompts[item % len(prompts)]
        return Task(Policy(source), prompt, stopping, item_stream(seed, item), decode=self.decode)


@dataclass(frozen=True)
class Judge(Decoder):
    """Draws nothing: the log-probability of given tokens under a policy."""

    tokens: tuple[int, ...]

    def decode(self, task: Task) -> Decoding:
        root: Node = yield Open(task.policy, task.prompt)
        chain: list[Node] = []
        node = root
        for token in self.tokens:
            node = node.child(token)
            chain.append(node)
        if len(chain) > 1:
            yield Grow(chain[:-1], keep_rows=True)
        rows = [above.row for above in (root, *chain[:-1])]
        total = sum(
            row.log_probability(token) for row, token in zip(rows, self.tokens, strict=True)
        )
        return [completion(node, "max_tokens", log_probability=total)]


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Answer with every setting of a mode."""
    todo, settings = mpg_settings.size(mode), mpg_settings.settings(mode)
    seeds = seeds_from(seed, todo.seeds)
    if mode == "quick":
        bench, facts = _tables(), {}
    else:
        from decodery.reproductions.mpg_train import trained

        bench, facts = trained(seed, progress)
    answers: dict[Setting, Answers] = {}
    for number, setting in enumerate(settings):
        answers[setting] = _answers(bench, setting, todo, seeds)
        progress(number + 1, len(settings))
    return Measurements(
        model=bench.name,
        seeds=seeds,
        cells=_cells(bench, answers),
        facts={**facts, **_facts(bench, answers, todo)},
    )


def _tables() -> Bench:
    from decodery.reproductions.mpg_tables import END, decode, models

    return Bench("character tables by counting", models(), [(END,)], decode)


def _answers(bench: Bench, setting: Setting, todo: Size, seeds: Sequence[int]) -> Answers:
    runner, decoder = Runner(), setting.decoder()
    handles = [
        [runner.submit(decoder, bench.task(setting, item, seed, todo.max_tokens)) for seed in seeds]
        for item in range(todo.items)
    ]
    try:
        runner.run()
    finally:
        runner.close()
    return [[(handle.result()[0], handle) for handle in row] for row in handles]


# -- from answers to cells -----------------------------------------------------------------------


def _cells(bench: Bench, answers: Mapping[Setting, Answers]) -> dict[str, dict[Setting, Array]]:
    cells: dict[str, dict[Setting, Array]] = {name: {} for name in (*ATTRIBUTES, "both")}
    for setting, rows in answers.items():
        for name, values in _voices(bench, rows).items():
            cells[name][setting] = values
    cells["log-prob"] = {
        setting: _log_probabilities(bench, rows) for setting, rows in answers.items()
    }
    cells["calls"] = {
        setting: _each(rows, lambda item, handle: handle.report.model_calls / len(item.tokens))
        for setting, rows in answers.items()
    }
    drafted = {setting: rows for setting, rows in answers.items() if setting.way == "scr"}
    for name, number in (("accepted", _accepted), ("kept", _kept), ("ln M", _bound)):
        cells[name] = {
            setting: _each(rows, lambda item, _, number=number: number(item))
            for setting, rows in drafted.items()
        }
    return cells


def _voices(bench: Bench, rows: Answers) -> dict[str, Array]:
    texts = [bench.decode(item.tokens) for row in rows for item, _ in row]
    shape = (len(rows), len(rows[0]))
    return {name: np.reshape(values, shape) for name, values in scores(texts).items()}


def _log_probabilities(bench: Bench, rows: Answers) -> Array:
    """Nats a token under the reference, of every answer."""
    runner, reference = Runner(), bench.voices["neutral"]
    handles: list[list[Handle]] = []
    for number, row in enumerate(rows):
        prompt = bench.prompts[number % len(bench.prompts)]
        handles.append([
            runner.submit(
                Judge(item.tokens),
                Task(Policy(reference), prompt, Stopping(len(item.tokens))),
            )
            for item, _ in row
        ])  # fmt: skip
    runner.run()
    found = [[handle.result()[0] for handle in row] for row in handles]
    return np.array([
        [(item.log_probability or 0.0) / len(item.tokens) for item in row] for row in found
    ])  # fmt: skip


def _each(rows: Answers, number: Any) -> Array:
    return np.array([[number(item, handle) for item, handle in row] for row in rows], dtype=float)


def _accepted(item: Completion) -> float:
    """The share of drafts that are kept whole."""
    rounds = item.details["rounds"]
    return sum(size == kept for size, kept in rounds) / len(rounds)


def _kept(item: Completion) -> float:
    """The mean number of tokens kept of a draft."""
    rounds = item.details["rounds"]
    return sum(kept for _, kept in rounds) / len(rounds)


def _bound(item: Completion) -> float:
    """ln of the bound on whole chunks after the last draft of full length."""
    rounds, bounds = item.details["rounds"], item.details["log_bounds"]
    longest = max(size for size, _ in rounds)
    return [bound for (size, _), bound in zip(rounds, bounds, strict=True) if size == longest][-1]


def _facts(bench: Bench, answers: Mapping[Setting, Answers], todo: Size) -> dict[str, Any]:
    return {
        "answers for each setting": todo.items * todo.seeds,
        "most tokens of an answer": todo.max_tokens,
        "examples": {
            str(setting): bench.decode(rows[0][0][0].tokens) for setting, rows in answers.items()
        },
    }

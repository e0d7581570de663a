"""Measuring for the EDT reproduction: answers of the embedded model, lines of a character model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from decodery.core.decoder import Completion, Task
from decodery.core.handle import Handle
from decodery.core.runner import Runner
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.sampling.edt import EDT
from decodery.metrics.text import rouge_l, self_bleu, words
from decodery.reproductions.drawing import (
    Draw,
    Note,
    NotedDraws,
    item_stream,
    run,
    seeds_from,
    submit,
)
from decodery.reproductions.edt_settings import Setting, Size, size
from decodery.reproductions.edt_tasks import Item, items
from decodery.reproductions.edt_template import (
    END,
    LONGEST,
    TEMPLATES,
    CharacterModel,
    decode,
    encode,
    parse,
    slots_of,
    train,
)
from decodery.reproductions.frame import Array, Measurements, Mode, Progress

Cells = dict[str, dict[Setting, Array]]


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Answers, then lines."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    asked = items(todo.items)
    seeds = seeds_from(seed, max(todo.seeds, todo.slot_seeds))
    answers = _draw_answers(lm, asked, todo, seeds[: todo.seeds], progress)
    weights, loss = train(todo.training_steps)
    lines = _draw_lines(CharacterModel(weights), todo, seeds[: todo.slot_seeds])
    examples = {
        str(setting): lm.tokenizer.decode(rows[0][0][0].tokens) for setting, rows in answers.items()
    }
    return Measurements(
        lm.name,
        seeds,
        {**answer_cells(answers, asked, lm.tokenizer.decode), **line_cells(lines)},
        {
            "items": len(asked),
            "draws for each item and seed": todo.draws,
            "templates": len(TEMPLATES),
            "draws for each template and seed": todo.slot_draws,
            "training loss of the character model [nats]": round(loss, 4),
            "temperatures": list(todo.heats),
            "temperatures of the lines": list(todo.slot_heats),
            "examples": examples,
        },
    )


Drawn = dict[Setting, list[list[list[Completion]]]]  # [items][seeds][draws]


def temperature_note(setting: Setting) -> Note:
    """The temperature that is used at a token, as a share of the setting's."""
    if setting.kind == "fixed":
        return lambda _node, _token: 1.0
    (edt,) = setting.chain().stages
    assert isinstance(edt, EDT)

    def share(node: Node, _token: int) -> float:
        (state,) = node.state
        used = edt.temperature_of(node.row) if state is None else state
        return used / setting.temperature

    return share


def _draw_answers(
    lm: Any, asked: Sequence[Item], todo: Size, seeds: Sequence[int], progress: Progress
) -> Drawn:
    runner = Runner()
    handles: dict[Setting, list[list[Handle]]] = {}
    for family in todo.families:
        for setting in family.over(todo.heats):
            notes = {"T/T0": temperature_note(setting)}
            handles[setting] = [
                [
                    submit(
                        runner,
                        lm,
                        item.prompt,
                        Draw(setting.chain(), item_stream(seed, place), todo.draws),
                        notes,
                        max_tokens=todo.tokens,
                    )
                    for seed in seeds
                ]
                for place, item in enumerate(asked)
            ]
    run(runner, [one for rows in handles.values() for row in rows for one in row], progress)
    return _results(handles)


def _draw_lines(model: CharacterModel, todo: Size, seeds: Sequence[int]) -> Drawn:
    runner = Runner()
    stopping = Stopping(LONGEST, eos_ids=model.eos_ids)
    handles: dict[Setting, list[list[Handle]]] = {}
    for family in todo.slot_families:
        for setting in family.over(todo.slot_heats):
            policy = Policy(model, setting.chain())
            handles[setting] = [
                [
                    runner.submit(
                        NotedDraws(todo.slot_draws, {}),
                        Task(policy, (END, *encode(opening)), stopping, item_stream(seed, place)),
                    )
                    for seed in seeds
                ]
                for place, (opening, _) in enumerate(TEMPLATES)
            ]
    runner.run()
    return _results(handles)


def _results(handles: dict[Setting, list[list[Handle]]]) -> Drawn:
    return {
        setting: [[handle.result() for handle in row] for row in rows]
        for setting, rows in handles.items()
    }


# -- from texts to cells ---------------------------------------------------------------------------


def answer_cells(
    drawn: Drawn, asked: Sequence[Item], text_of: Callable[[Sequence[int]], str]
) -> Cells:
    """Cells [items, seeds]: mean ROUGE-L, 1 - self-BLEU of the draws, mean share of T0 used."""
    cells: Cells = {"ROUGE-L": {}, "diversity": {}, "T/T0": {}}
    for setting, rows in drawn.items():
        said = [[[words(text_of(item.tokens)) for item in group] for group in row] for row in rows]
        cells["ROUGE-L"][setting] = np.array(
            [
                [_mean([rouge_l(text, words(item.reference)) for text in group]) for group in row]
                for item, row in zip(asked, said, strict=True)
            ]
        )
        cells["diversity"][setting] = np.array(
            [[1.0 - self_bleu(group) for group in row] for row in said]
        )
        cells["T/T0"][setting] = np.array(
            [
                [_mean([one for item in group for one in item.details["T/T0"]]) for group in row]
                for row in rows
            ]
        )
    return cells


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def line_cells(drawn: Drawn) -> Cells:
    """Cells [templates, seeds]: the share of lines that parse, and different slot values a draw."""
    cells: Cells = {"parse": {}, "slots": {}}
    for setting, rows in drawn.items():
        both = np.array(
            [
                [line_scores(rest, [_line(item) for item in group]) for group in row]
                for (_, rest), row in zip(TEMPLATES, rows, strict=True)
            ]
        )
        cells["parse"][setting], cells["slots"][setting] = both[..., 0], both[..., 1]
    return cells


def _line(item: Completion) -> str:
    """The text before the line break; a line that did not end keeps what it has and a mark."""
    ended = item.finish_reason == "eos"
    return decode(item.tokens[:-1]) if ended else decode(item.tokens) + "\n"


def line_scores(template: str, lines: Sequence[str]) -> tuple[float, float]:
    """The share of lines that parse, and the mean over slots of different values in a line drawn.

    Values of lines that do not parse are not counted.
    """
    parsed = [values for line in lines if (values := parse(template, line)) is not None]
    count = len(slots_of(template))
    different = [len({values[slot] for values in parsed}) for slot in range(count)]
    return len(parsed) / len(lines), float(np.mean(different)) / len(lines)

"""Measuring for the language gate's reproduction: wrong scripts, and what else is changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.core.decoder import Completion
from decodery.core.handle import Handle
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import Context
from decodery.core.tree import Node
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.token_families import (
    CJ,
    LATIN,
    LOW_RESOURCE,
    Families,
    families_of,
    family_of,
)
from decodery.reproductions.drawing import Draw, Note, item_stream, run, seeds_from, submit
from decodery.reproductions.frame import SEED_LIMIT, Array, Measurements, Mode, Progress
from decodery.reproductions.language_gate_gates import gate_files
from decodery.reproductions.language_gate_prompts import MIXED, OPENINGS, PLAIN
from decodery.reproductions.language_gate_settings import COOL, HOT, Name, Setting, Size, size

if TYPE_CHECKING:
    from decodery.api.language_model import LanguageModel

Prompts = Sequence[str]
Texts = Sequence[Sequence[Completion]]  # [prompts][seeds]
Files = Mapping[Name, str | None]
Cells = dict[str, dict[Setting, Array]]

FEWEST = 4  # prompts that provoke, where fewer slipped
_CHOOSING = 2**31  # seeds of the choice, far from those of the measurement
HOME = {"Chinese": CJ, "Japanese": CJ}  # of PLAIN; the others are Latin
NONE, GATE = Setting("none"), Setting("gate")
COOL_PLAIN = NONE.plain()


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Choose the prompts that provoke, then draw from these, from all, and from plain ones."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds = seeds_from(seed, max(todo.seeds, todo.hot_seeds, todo.clean_seeds))
    pieces = tuple(lm.language.pieces())
    families = families_of(pieces)
    openings = [text for group in OPENINGS.values() for text in group]
    plain = [text for group in PLAIN.values() for text in group]
    homes = [HOME.get(language, LATIN) for language, group in PLAIN.items() for _ in group]
    with tempfile.TemporaryDirectory() as folder:
        files = gate_files(lm, {*todo.cool, *todo.hot}, Path(folder))

        def drawn(
            settings: Sequence[Setting], prompts: Prompts, keys: Sequence[int], **notes: Note
        ) -> dict[Setting, Texts]:
            chains = {item: item.chain(files[item.name]) for item in settings}
            return _draw(lm, chains, prompts, keys, todo.tokens, progress, notes)

        choosing = seeds_from((seed + _CHOOSING) % SEED_LIMIT, todo.choosing)
        slips = _slips(drawn([NONE], openings, choosing)[NONE], families)
        places = provoking(slips)
        chosen = [openings[place] for place in places]
        cool = drawn([Setting(name) for name in todo.cool], chosen, seeds[: todo.seeds])
        hot = drawn([Setting(name, HOT) for name in todo.hot], chosen, seeds[: todo.hot_seeds])
        every = drawn([NONE, GATE], openings, seeds[: todo.clean_seeds], touched=touched)
        easy = drawn([NONE, GATE], plain, seeds[: todo.clean_seeds])
        switched = _switches(lm, [Setting(name, HOT) for name in todo.hot], files, families)
    cells: Cells = {}
    for texts in (cool, hot):
        add(cells, wrong(texts, families))
    cells["touched"] = {
        GATE: np.array([[np.mean(text.details["touched"]) for text in row] for row in every[GATE]])
    }
    away = [LOW_RESOURCE] * len(openings)
    add(cells, kept(every, away, pieces, "openings"))
    add(cells, kept(easy, homes, pieces, "plain"))
    cells["switches possible"], cells["switches kept"] = switched
    names = [language for language, group in OPENINGS.items() for _ in group]
    return Measurements(
        lm.name, seeds, cells, _facts(lm, todo, slips, names, chosen, {**cool, **hot})
    )


def _draw(
    lm: LanguageModel, chains: Mapping[Setting, Any], prompts: Prompts, keys: Sequence[int],
    tokens: int, progress: Progress, notes: Mapping[str, Note],
) -> dict[Setting, Texts]:  # fmt: skip
    """Texts of every setting, all with the same noise at the same place."""
    runner = Runner()
    handles: dict[Setting, list[list[Handle]]] = {
        setting: [
            [
                submit(
                    runner, lm, prompt, Draw(sampler, item_stream(key, item)), notes,
                    max_tokens=tokens, raw=True,
                )
                for key in keys
            ]
            for item, prompt in enumerate(prompts)
        ]
        for setting, sampler in chains.items()
    }  # fmt: skip
    run(runner, [one for rows in handles.values() for row in rows for one in row], progress)
    return {
        setting: [[handle.result()[0] for handle in row] for row in rows]
        for setting, rows in handles.items()
    }


def touched(node: Node, _token: int) -> float:
    """1 where the law that is drawn from is not the user's set, sampled as the paper does."""
    context = Context((), 0)
    plain = COOL_PLAIN.apply(
        Temperature(COOL.temperature).apply(node.row, None, context),
        COOL_PLAIN.start(context),
        context,
    )
    given = node.policy_row().token_ids()
    return float(not np.array_equal(given, plain.token_ids()))


# -- from texts to cells ---------------------------------------------------------------------------


def add(cells: Cells, more: Cells) -> None:
    for quantity, settings in more.items():
        cells.setdefault(quantity, {}).update(settings)


def strangers(text: Completion, families: Families) -> int:
    """Tokens of CJ or Latin."""
    return int(np.isin(families[list(text.tokens)], (CJ, LATIN)).sum())


def _slips(texts: Texts, families: Families) -> list[int]:
    """How many texts of each prompt have a wrong-script token."""
    return [sum(strangers(text, families) > 0 for text in row) for row in texts]


def provoking(slips: Sequence[int]) -> list[int]:
    """The prompts that made the ungated model slip, or the most provoking ones where few did."""
    ranked = sorted(range(len(slips)), key=lambda place: (-slips[place], place))
    count = max(FEWEST, sum(slip > 0 for slip in slips))
    return sorted(ranked[:count])


def wrong(texts: Mapping[Setting, Texts], families: Families) -> Cells:
    """The share of tokens, and of texts, of a wrong script [prompts, seeds]; quantities are named
    by how was sampled, as they differ in seeds."""
    cells: Cells = {}
    for setting, rows in texts.items():
        heat = "cool" if setting.heat == COOL else "hot"
        shares = np.array(
            [[strangers(text, families) / len(text.tokens) for text in row] for row in rows]
        )
        cells.setdefault(f"wrong tokens, {heat}", {})[setting] = shares
        cells.setdefault(f"wrong texts, {heat}", {})[setting] = (shares > 0).astype(float)
    return cells


def kept(
    texts: Mapping[Setting, Texts],
    homes: Sequence[int],
    pieces: Sequence[bytes | None],
    name: str,
) -> Cells:
    """Which texts are clean without a gate, and which of these the gate leaves as they are.

    Clean is a text whose letters are all of the prompt's script.
    """
    clean = np.array(
        [
            [is_clean(text, home, pieces) for text in row]
            for row, home in zip(texts[NONE], homes, strict=True)
        ]
    )
    same = np.array(
        [
            [one.tokens == other.tokens for one, other in zip(*rows, strict=True)]
            for rows in zip(texts[NONE], texts[GATE], strict=True)
        ]
    )
    return {
        f"clean, {name}": {GATE: clean.astype(float)},
        f"clean and unchanged, {name}": {GATE: (clean & same).astype(float)},
    }


def is_clean(text: Completion, home: int, pieces: Sequence[bytes | None]) -> bool:
    """Whether all letters, spelt by one token or by several, are of the family `home`."""
    spelt = b"".join(pieces[token] or b"" for token in text.tokens).decode(errors="ignore")
    scripts = {family_of(character.encode()) for character in spelt}
    return not scripts & ({CJ, LATIN, LOW_RESOURCE} - {home})


# -- where another script is meant -----------------------------------------------------------------


def _switches(
    lm: LanguageModel, settings: Sequence[Setting], files: Files, families: Families
) -> tuple[dict[Setting, Array], dict[Setting, Array]]:
    """For each text of `MIXED` [texts, 1]: at how many places, where the text goes over to Latin
    and the user's set has a Latin token, and at how many of them one is left by the gate."""
    possible: dict[Setting, Array] = {}
    left: dict[Setting, Array] = {}
    gates = {item: item.gate(files[item.name]).bind(lm) for item in settings if item.name != "none"}
    counts: dict[Setting, list[tuple[int, int]]] = {setting: [] for setting in gates}
    for text in MIXED:
        path = lm.language.encode(text)
        hidden, scores = _states(lm, path)
        for setting, gate in gates.items():
            heated = scores / setting.heat.temperature
            found = switches(gate, setting, path, heated, hidden, families)
            counts[setting].append(found)
    for setting, pairs in counts.items():
        possible[setting], left[setting] = (
            np.array(column, dtype=np.float64)[:, None] for column in zip(*pairs, strict=True)
        )
    return possible, left


def _states(lm: LanguageModel, path: Sequence[int]) -> tuple[Any, Any]:
    """Hidden states [n, width] and logits [n, vocab] of a text."""
    import torch

    from decodery.training.language_gate.distil import states

    hidden, scores = zip(*states(lm, [path]), strict=True)
    return torch.cat(hidden).numpy(), torch.cat(scores).numpy()


def switches(
    gate: Any, setting: Setting, path: Sequence[int], scores: Any, hidden: Any, families: Families
) -> tuple[int, int]:
    """Of the places where a path goes over to Latin: those at which the user's set has a Latin
    token, and those at which the gated row has one."""
    state = gate.start(Context((), 0))
    possible = left = 0
    for place, token in enumerate(path[:-1]):
        context = Context(tuple(path[: place + 1]), 0, hidden=hidden[place])
        state = gate.advance(state, token, None, context)
        if families[path[place + 1]] != LATIN or state.family in (None, LATIN):
            continue
        row = Row.dense(scores[place])
        plain = setting.plain()
        if _latin(plain.apply(row, plain.start(context), context), families):
            possible += 1
            left += _latin(gate.apply(row, state, context), families)
    return possible, left


def _latin(row: Row, families: Families) -> bool:
    return bool((families[row.token_ids()] == LATIN).any())


def _facts(
    lm: LanguageModel, todo: Size, slips: Sequence[int], names: Sequence[str],
    chosen: Prompts, texts: Mapping[Setting, Texts],
) -> dict[str, Any]:  # fmt: skip
    by_language = {
        language: sum(slip for slip, name in zip(slips, names, strict=True) if name == language)
        for language in dict.fromkeys(names)
    }
    return {
        "tokens of a text": todo.tokens,
        "openings": len(names),
        "seeds that chose": todo.choosing,
        "texts that slipped in the choice, by language": by_language,
        "prompts that provoke": list(chosen),
        "examples": {
            str(setting): [lm.tokenizer.decode(row[0].tokens) for row in rows[:3]]
            for setting, rows in texts.items()
        },
    }

"""Measuring for the mirostat reproduction: texts of fixed length, the surprise of each token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from decodery.core.decoder import Completion
from decodery.core.runner import Runner
from decodery.core.tree import Node
from decodery.metrics.text import repetition
from decodery.reproductions.drawing import Draw, item_stream, run, seeds_from, submit
from decodery.reproductions.frame import Array, Measurements, Mode, Progress
from decodery.reproductions.mirostat_settings import RANKS, Setting, Size, size

Texts = Sequence[Sequence[Completion]]  # [prompts][seeds]


def surprise(node: Node, token: int) -> float:
    """-log2 p of a token under the source itself, before any sampler."""
    return -node.row.log_probability(token) / math.log(2.0)


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Draw all texts of a mode from the embedded model; end tokens are ordinary tokens."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds, runner = seeds_from(seed, todo.seeds), Runner()
    handles = {
        setting: [
            [
                submit(
                    runner,
                    lm,
                    prompt,
                    Draw(setting.chain(), item_stream(key, item)),
                    {"surprise": surprise},
                    max_tokens=todo.tokens,
                    raw=True,
                    ignore_eos=True,
                )
                for key in seeds
            ]
            for item, prompt in enumerate(todo.prompts)
        ]
        for setting in todo.settings
    }
    run(runner, [one for rows in handles.values() for row in rows for one in row], progress)
    texts = {
        setting: [[handle.result()[0] for handle in row] for row in rows]
        for setting, rows in handles.items()
    }
    examples = {
        str(setting): lm.tokenizer.decode(rows[0][0].tokens[-60:])
        for setting, rows in texts.items()
    }
    return Measurements(lm.name, seeds, cells(texts, todo), _facts(todo, examples))


def cells(texts: Mapping[Setting, Texts], todo: Size) -> dict[str, dict[Setting, Array]]:
    """Arrays [prompts, seeds] of every quantity.

    "drift" is the least-squares slope of surprise on position, in bits over a hundred tokens;
    "window w" the mean surprise of the w-th window; "repetition n" the share of n-grams that have
    occurred before in the text, "repetition" its mean over n.
    """
    found: dict[str, dict[Setting, Array]] = {"surprise": {}, "drift": {}, "repetition": {}}
    for setting, rows in texts.items():
        bits = np.array([[text.details["surprise"] for text in row] for row in rows])
        found["surprise"][setting] = bits.mean(axis=2)
        found["drift"][setting] = 100.0 * slopes(bits)
        windows = bits.reshape(*bits.shape[:2], -1, todo.window).mean(axis=3)
        for number in range(windows.shape[2]):
            found.setdefault(f"window {number}", {})[setting] = windows[:, :, number]
        repeated = [
            np.array([[repetition(text.tokens, n) for text in row] for row in rows]) for n in RANKS
        ]
        found["repetition"][setting] = np.mean(repeated, axis=0)
        for n, share in zip(RANKS, repeated, strict=True):
            found.setdefault(f"repetition {n}", {})[setting] = share
    return found


def slopes(values: Array) -> Array:
    """Least-squares slopes [...] of values [..., positions] on position."""
    positions = np.arange(values.shape[-1]) - (values.shape[-1] - 1) / 2
    return values @ positions / (positions @ positions)


def _facts(todo: Size, examples: Mapping[str, str]) -> dict[str, Any]:
    return {
        "prompts": len(todo.prompts),
        "tokens of a text": todo.tokens,
        "tokens of a window": todo.window,
        "examples (the last tokens of a text)": dict(examples),
    }

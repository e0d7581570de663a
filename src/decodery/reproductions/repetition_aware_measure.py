"""Measuring for the repetition-aware reproduction: free texts, their loops and their variety."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from decodery.core.decoder import Completion
from decodery.core.runner import Runner
from decodery.core.sampler import Chain
from decodery.core.tree import Node
from decodery.metrics.text import distinct
from decodery.reproductions.drawing import Draw, item_stream, run, seeds_from, submit
from decodery.reproductions.frame import Array, Measurements, Mode, Progress

LEAST_REPEATED = 24  # tokens of a loop that repeat earlier ones
LEAST_TIMES = 3


@dataclass(frozen=True)
class Rule:
    """How RAS is applied: its window, threshold, reading and exclusion."""

    name: str
    window: int = 10
    threshold: float = 0.1
    count_self: bool = True
    exclude: bool = False

    def parameters(self) -> dict[str, Any]:
        return {
            "ras_window": self.window,
            "ras_threshold": self.threshold,
            "ras_count_self": self.count_self,
            "ras_exclude_repeated": self.exclude,
        }


A = Rule("A", count_self=False)
B = Rule("B")
WIDE = Rule("B, K=50", window=50, threshold=0.02)  # one occurrence is too much, as with K = 10
EXCLUDE = Rule("B, excluding", exclude=True)


@dataclass(frozen=True)
class Setting:
    """A nucleus of mass v, with RAS by a rule or without."""

    top_p: float
    rule: Rule | None = None

    def __str__(self) -> str:
        return f"v={self.top_p:g} " + ("no RAS" if self.rule is None else f"RAS {self.rule.name}")

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance."""
        return self.top_p > 0 or self.rule is not None

    def chain(self) -> Chain:
        """The sampler chain, planned as for any run."""
        from decodery.api.plan import make_plan

        if self.rule is not None:
            values = {"ras_top_p": self.top_p, **self.rule.parameters()}
        elif self.top_p > 0:
            values = {"top_p": self.top_p}
        else:
            values = {"temperature": 0.0}
        return make_plan("sample", {**values, "seed": 0}).sampler


GREEDY = Setting(0.0)
PLAIN = Setting(1.0)


@dataclass(frozen=True)
class Size:
    """How much a mode measures: each setting continues each opening once for each seed."""

    settings: tuple[Setting, ...]
    openings: tuple[str, ...]
    seeds: int
    tokens: int


OPENINGS = (
    "Once upon a time",
    "The best thing about summer is",
    "Last night I dreamed that",
    "In the middle of the city",
    "My favorite book is",
    "When the door opened,",
    "The history of bread begins",
    "If you want to learn to swim,",
    "The doctor looked at the map and",
    "A good friend is someone who",
    "The old lighthouse keeper",
    "To make a strong coffee,",
    "Scientists have discovered that",
    "On the first day of school,",
    "The train was late, so",
    "There are three reasons why",
    "Deep in the forest lived",
    "The price of gold",
    "My grandmother always said",
    "Music is important because",
    "The robot turned its head and",
    "After the storm had passed,",
    "People in the north of the country",
    "The first rule of gardening is",
    "The best way to learn a language is",
    "A long time ago, in a small village,",
    "The museum was quiet until",
    "Every morning the baker",
    "The most important thing in life is",
    "Water is essential because",
    "She picked up the letter and",
    "The mountain was covered in",
    "Many people believe that",
    "In the year 2050, cities will",
    "The captain of the ship",
    "Dogs are different from cats because",
    "The secret of a happy life",
    "It was a cold night and",
    "The teacher asked the class",
    "Healthy food is",
    "At the end of the road there was",
    "The king had three sons, and",
    "To build a small house,",
    "The garden behind our house",
    "When I was a child,",
    "The city is known for",
    "Computers have changed",
    "The two brothers decided to",
)


def size(mode: Mode) -> Size:
    """The grid, the openings and the lengths of a mode."""
    ends = (GREEDY, Setting(0.0, B), PLAIN, Setting(1.0, B), Setting(0.0, WIDE))
    if mode == "quick":
        return Size(ends, OPENINGS[:16], seeds=1, tokens=120)
    sweep = (Setting(v, rule) for v in (0.4, 0.7) for rule in (None, B))
    settings = (*ends, *sweep, Setting(0.0, A), Setting(0.0, EXCLUDE))
    return Size(settings, OPENINGS, seeds=1, tokens=240)


def log_probability(node: Node, token: int) -> float:
    """ln p of a token under the source itself, before any sampler."""
    return float(node.row.log_probability(token))


def measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    """Continue every opening with every setting on the embedded model."""
    from decodery.api.load import load

    lm, todo = load(), size(mode)
    seeds, runner = seeds_from(seed, todo.seeds), Runner()
    handles = {
        setting: [
            [
                submit(
                    runner,
                    lm,
                    opening,
                    Draw(setting.chain(), item_stream(key, item)),
                    {"log-prob": log_probability},
                    max_tokens=todo.tokens,
                    raw=True,
                )
                for key in (seeds if setting.draws else seeds[:1])
            ]
            for item, opening in enumerate(todo.openings)
        ]
        for setting in todo.settings
    }
    run(runner, [one for rows in handles.values() for row in rows for one in row], progress)
    texts = {
        setting: [[handle.result()[0] for handle in row] for row in rows]
        for setting, rows in handles.items()
    }
    examples = {
        str(setting): lm.tokenizer.decode(rows[0][0].tokens) for setting, rows in texts.items()
    }
    return Measurements(lm.name, seeds, cells(texts, todo.seeds), _facts(todo, examples))


def cells(
    texts: Mapping[Setting, Sequence[Sequence[Completion]]], seeds: int
) -> dict[str, dict[Setting, Array]]:
    """Cells [openings, seeds]; one text stands for all seeds where nothing is drawn."""
    measures: dict[str, Callable[[Completion], float]] = {
        "loops": lambda text: float(loops(text.tokens)),
        "distinct-3": lambda text: variety(text.tokens),
        "log-prob": lambda text: float(np.mean(text.details["log-prob"])),
        "tokens": lambda text: float(len(text.tokens)),
    }
    return {
        name: {
            setting: np.broadcast_to(
                np.array([[value(text) for text in row] for row in rows]), (len(rows), seeds)
            ).copy()
            for setting, rows in texts.items()
        }
        for name, value in measures.items()
    }


def loops(tokens: Sequence[int]) -> bool:
    """Whether the end repeats a phrase three times or more, over 24 tokens or more.

    >>> loops([5, 6, *[1, 2, 3] * 9]), loops([1, 2, 3] * 8)
    (True, False)
    """
    array = np.asarray(tokens)
    for period in range(1, array.size // LEAST_TIMES + 1):
        repeated = max((LEAST_TIMES - 1) * period, LEAST_REPEATED)
        if repeated + period > array.size:
            continue
        if np.array_equal(array[-repeated:], array[-repeated - period : -period]):
            return True
    return False


def variety(tokens: Sequence[int]) -> float:
    """distinct-3; 1 where a text is too short for any triple."""
    share = distinct([tokens], 3)
    return 1.0 if math.isnan(share) else share


def _facts(todo: Size, examples: Mapping[str, str]) -> dict[str, Any]:
    return {
        "openings": len(todo.openings),
        "most tokens of a text": todo.tokens,
        "examples": dict(examples),
    }

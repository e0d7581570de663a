"""The shapes, prompts and sizes of the rsd reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decodery.methods.speculative.shapes import Beam, Branching, Shape
from decodery.methods.speculative.verifiers import Recursive
from decodery.reproductions.frame import Mode

Way = Literal["chain", "iid", "rsd_c", "rsd_s"]

LABELS: dict[Way, str] = {"chain": "chain", "iid": "i.i.d.", "rsd_c": "RSD-C", "rsd_s": "RSD-S"}
DRAFT_LAYERS = 24  # of 30: earlier exits, which nobody trained, guess one token in five or fewer


@dataclass(frozen=True)
class Setting:
    """A shape of drafts and the temperature of target and draft.

    `counts` are children level by level, or beams and levels of RSD-S.
    """

    way: Way
    counts: tuple[int, ...]
    temperature: float

    @property
    def size(self) -> str:
        if self.way == "chain":
            return str(len(self.counts))
        return ("x" if self.way == "rsd_s" else ",").join(map(str, self.counts))

    def __str__(self) -> str:
        return f"{LABELS[self.way]} {self.size}, T={self.temperature:g}"

    @property
    def shape(self) -> Shape:
        if self.way == "rsd_s":
            beams, levels = self.counts
            return Beam(beams, levels)
        return Branching(self.counts, "iid" if self.way == "iid" else "distinct")

    @property
    def rule(self) -> Recursive:
        return Recursive(self.shape.drawn)

    def at(self, temperature: float) -> Setting:
        return Setting(self.way, self.counts, temperature)


def shape(way: Way, *counts: int) -> Setting:
    return Setting(way, counts, 1.0)


CHAIN_3, CHAIN_6 = shape("chain", 1, 1, 1), shape("chain", *[1] * 6)
IID_6, IID_14 = shape("iid", 2, 2), shape("iid", 2, 2, 2)
C_6, C_14 = shape("rsd_c", 2, 2), shape("rsd_c", 2, 2, 2)
S_6, S_12, S_14 = shape("rsd_s", 3, 2), shape("rsd_s", 4, 3), shape("rsd_s", 7, 2)
NARROW_6, NARROW_14 = shape("rsd_s", 2, 3), shape("rsd_s", 2, 7)
SHAPES = (CHAIN_3, CHAIN_6, IID_6, IID_14, C_6, C_14, S_6, S_12, S_14, NARROW_6, NARROW_14)
QUICK_SHAPES = (CHAIN_3, IID_6, IID_14, C_6, C_14, S_6, S_12)
HOT, COOL = 1.0, 0.7

PROMPTS = (
    "Summarise: The city council met on Monday to discuss the new bridge. Engineers said the old"
    " one can carry cars for two more years, and no trucks. The vote was put off until spring.",
    "Translate into German: The train to the coast leaves at nine and arrives before noon.",
    "Why do leaves change their colour in autumn?",
    "Summarise: A bakery in the old town has sold the same bread for a hundred years. The recipe is"
    " known to three people, and each of them knows only a part of it.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a refrigerator keeps food cold.",
    "Translate into French: My sister bought a red bicycle and rides it to work.",
    "What are the advantages of reading before sleep?",
    "List the steps to plant a tree.",
    "Write a Python function that counts the vowels of a text.",
    "Summarise: Bees find their way by the sun. When one returns with food it dances, and the dance"
    " tells the others how far the flowers are and in which direction.",
    "What would you pack for a week in the mountains?",
    "Describe the taste of honey to someone who never had it.",
    "Give advice to a friend who is nervous before an exam.",
    "Translate into Spanish: The library is open every day except on Sunday.",
    "Why is the sky blue, and why is it red in the evening?",
)


@dataclass(frozen=True)
class Size:
    """How much a mode measures: texts of `tokens` tokens, drafts after every `every`-th."""

    settings: tuple[Setting, ...]
    prompts: tuple[str, ...]
    tokens: int
    every: int

    @property
    def temperatures(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(setting.temperature for setting in self.settings))


def size(mode: Mode) -> Size:
    """The grid of a mode."""
    if mode == "quick":
        return Size(QUICK_SHAPES, PROMPTS[:5], tokens=20, every=5)
    both = tuple(item.at(heat) for heat in (HOT, COOL) for item in SHAPES)
    return Size(both, PROMPTS, tokens=40, every=8)

"""The settings, prompts and sizes of the mirostat reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from decodery.core.sampler import Chain
from decodery.reproductions.frame import Mode

Name = Literal["top_k", "top_p", "v1", "v2", "truncated"]

LABELS: dict[Name, str] = {
    "top_k": "top-k {:g}",
    "top_p": "top-p {:g}",
    "v1": "mirostat 1 tau={:g}",
    "v2": "mirostat 2 tau={:g}",
    "truncated": "mirostat 2, truncated surprise, tau={:g}",
}


@dataclass(frozen=True)
class Setting:
    """A truncation by name and strength: k, p, or the target tau in bits."""

    name: Name
    strength: float

    def __str__(self) -> str:
        return LABELS[self.name].format(self.strength)

    def chain(self) -> Chain:
        """The sampler chain, planned as for any run; mirostat has the paper's eta of 1."""
        from decodery.api.plan import make_plan

        values: dict[str, Any] = {"seed": 0}
        if self.name == "top_k":
            values["top_k"] = int(self.strength)
        elif self.name == "top_p":
            values["top_p"] = self.strength
        else:
            values["mirostat_tau"] = self.strength
            values["mirostat_version"] = 1 if self.name == "v1" else 2
            values["mirostat_surprise"] = "truncated" if self.name == "truncated" else "model"
        return make_plan("sample", values).sampler


def settings(name: Name, strengths: Sequence[float]) -> tuple[Setting, ...]:
    return tuple(Setting(name, strength) for strength in strengths)


TOP_K = settings("top_k", (3, 20, 60, 200))
TOP_P = settings("top_p", (0.3, 0.6, 0.9, 1.0))
NARROW = TOP_K[0]  # falls into repetition
OWN = TOP_P[-1]  # the model's own law
TARGETS = (2.0, 3.0)  # of both modes
CONTROLLED: tuple[Name, ...] = ("v1", "v2")
RANKS = range(1, 11)  # n of the n-grams

PROMPTS = (
    "The blue whale is a marine mammal and the largest animal known to have lived. It",
    "Granite is a coarse-grained rock that forms when magma cools slowly below the surface. It",
    "The Roman Empire was founded after the end of the Republic and",
    "Photosynthesis is the process by which plants turn light into chemical energy. It",
    "The violin is a wooden string instrument with four strings. It",
    "Coffee is a drink made from the roasted seeds of a tropical plant. It",
    "The Sahara is a desert in northern Africa. It",
    "Copper is a soft, reddish metal that conducts heat and electricity well. It",
    "The human heart is a muscular organ that pumps blood through the body. It",
    "Chess is a board game for two players. It",
    "The moon is the only natural satellite of the Earth. It",
    "Bread is a staple food made from flour and water. It",
    "The Danube is the second longest river in Europe. It",
    "A lighthouse is a tower that helps ships to find their way. The first lighthouses",
    "The printing press is a machine that presses ink onto paper. It",
    "Honey bees are insects that live in large colonies. They",
    "Salt is a mineral that people have used for thousands of years. It",
    "The bicycle is a vehicle with two wheels that is moved by pedals. The first bicycles",
    "A volcano is an opening in the surface of the Earth. When it erupts,",
    "The olive tree grows in the countries around the Mediterranean Sea. It",
)


@dataclass(frozen=True)
class Size:
    """How much a mode measures: settings, prompts, seeds, tokens of a text and of a window."""

    settings: tuple[Setting, ...]
    prompts: tuple[str, ...]
    seeds: int
    tokens: int
    window: int


def size(mode: Mode) -> Size:
    """The grid of a mode."""
    names: tuple[Name, ...] = (*CONTROLLED, "truncated")
    if mode == "quick":
        targets = [setting for name in names for setting in settings(name, TARGETS)]
        return Size((*TOP_K, *TOP_P, *targets), PROMPTS[:6], seeds=1, tokens=128, window=16)
    more = [setting for name in CONTROLLED for setting in settings(name, (1.5, *TARGETS, 4.0))]
    more += settings("truncated", TARGETS)
    return Size((*TOP_K, *TOP_P, *more), PROMPTS, seeds=1, tokens=400, window=50)

"""The settings of the min-p reproduction: temperature, truncation, order, and the grids of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from decodery.core.sampler import Chain
from decodery.reproductions.frame import Mode

Name = Literal["none", "top_p", "min_p", "top_k"]
Truncation = tuple[Name, float]  # its name and strength


@dataclass(frozen=True)
class Setting:
    """A temperature, a truncation by name and strength, and the place of the temperature."""

    temperature: float
    sampler: Name = "none"
    strength: float = 0.0
    last: bool = False

    def __str__(self) -> str:
        temperature = f"T={self.temperature:g}"
        if self.sampler == "none":
            return temperature
        return f"{self.truncation} {temperature}" + (" last" if self.last else "")

    @property
    def truncation(self) -> str:
        return "none" if self.sampler == "none" else f"{self.sampler} {self.strength:g}"

    def chain(self) -> Chain:
        """The sampler chain, planned as for any run."""
        from decodery.api.plan import make_plan

        values: dict[str, Any] = {"temperature": self.temperature, "seed": 0}
        order = ["temperature"]
        if self.sampler != "none":
            values[self.sampler] = int(self.strength) if self.sampler == "top_k" else self.strength
            order.insert(0 if self.last else 1, self.sampler)
        return make_plan("sample", {**values, "sampler_order": tuple(order)}).sampler


TEMPERATURES = (0.7, 1.0, 1.5, 2.0, 3.0)
HIGH = (2.0, 3.0)
LOW = 0.7
GREEDY = Setting(0.0)
OWN = Setting(1.0)  # the model's own law
CHANCE = Setting(100.0)  # uniform over the vocabulary, near enough
TOP_P: Truncation = ("top_p", 0.9)
MIN_P: Truncation = ("min_p", 0.1)
TOP_K: Truncation = ("top_k", 40)
STRENGTHS: dict[Name, tuple[float, ...]] = {
    "top_p": (0.8, 0.9, 0.95),
    "min_p": (0.05, 0.1, 0.3),
    "top_k": (10, 40, 100),
}


def grid(truncations: Sequence[Truncation]) -> list[Setting]:
    """Every temperature with no truncation and with each of these, in both orders."""
    settings = [Setting(temperature) for temperature in TEMPERATURES]
    for sampler, strength in truncations:
        for last in (False,) if sampler == "top_k" else (False, True):
            settings += [Setting(heat, sampler, strength, last) for heat in TEMPERATURES]
    return settings


def family(sampler: Name) -> list[Setting]:
    """All settings of one truncation in the fair comparison."""
    return [
        setting
        for setting in grid([(sampler, strength) for strength in STRENGTHS[sampler]])
        if setting.sampler == sampler
    ]


@dataclass(frozen=True)
class Size:
    """How much a mode measures. `draws` and `texts` are for each item, setting and seed."""

    graded: tuple[Setting, ...]
    written: tuple[Setting, ...]
    draws: int
    texts: int
    seeds: int = 4
    text_tokens: int = 12


def size(mode: Mode) -> Size:
    """The grid and the numbers of draws of a mode."""
    reference = (OWN, CHANCE)
    if mode == "quick":
        hot = tuple(Setting(3.0, *truncation) for truncation in (TOP_P, MIN_P))
        graded = tuple(grid([TOP_P, MIN_P, TOP_K]))
        return Size(graded, (*reference, *hot), draws=8, texts=1)
    everything: list[Truncation] = [
        (sampler, strength) for sampler, strengths in STRENGTHS.items() for strength in strengths
    ]
    graded = tuple(grid(everything))
    written = tuple(dict.fromkeys([*reference, *graded]))
    return Size(graded, written, draws=16, texts=2)

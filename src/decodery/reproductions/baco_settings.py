"""The settings of the reproduction of base-aligned collaboration: families, points, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from decodery.methods.blending.routers import RouterName
from decodery.reproductions.baco_prompts import prompts
from decodery.reproductions.frame import Mode

Family = Literal["aligned", "base", "rand", "p", "h", "p_punc"]
FAMILIES: tuple[Family, ...] = get_args(Family)
LEXICAL = ("distinct-2", "1 - self-BLEU", "new sentences")
SEMANTIC = ("kinds", "distance", "Vendi")
DIVERSITY = (*LEXICAL, *SEMANTIC)


COMMON = 0.5  # the temperature of both models where they are routed


@dataclass(frozen=True)
class Setting:
    """A model at a temperature, or a router at a diversity."""

    family: Family
    strength: float

    def __str__(self) -> str:
        return f"{self.family} {'T' if self.single else 'd'}={self.strength:g}"

    @property
    def single(self) -> bool:
        return self.family in ("aligned", "base")

    @property
    def router(self) -> RouterName:
        """A single model is the end of a scale."""
        return "p" if self.family in ("aligned", "base") else self.family

    @property
    def diversity(self) -> float:
        return {"aligned": 0.0, "base": 1.0}.get(self.family, self.strength)

    @property
    def temperature(self) -> float:
        """Of both models, before the router sees them."""
        return self.strength if self.single else COMMON


@dataclass(frozen=True)
class Size:
    """How much a mode measures: `group` answers of at most `tokens` tokens to each prompt."""

    families: tuple[Family, ...]
    temperatures: tuple[float, ...]
    diversities: tuple[float, ...]
    prompts: tuple[str, ...]
    group: int
    tokens: int
    seeds: int

    def settings(self, family: Family) -> tuple[Setting, ...]:
        """The points of a family: equally many for each."""
        single = Setting(family, 0.0).single
        strengths = self.temperatures if single else self.diversities
        return tuple(Setting(family, strength) for strength in strengths)

    @property
    def all_settings(self) -> tuple[Setting, ...]:
        return tuple(item for family in self.families for item in self.settings(family))


def size(mode: Mode) -> Size:
    """The families, points and numbers of texts of a mode."""
    if mode == "quick":
        families: tuple[Family, ...] = ("aligned", "base", "rand", "p_punc")
        return Size(families, (0.3, 0.5, 0.8), (0.25, 0.5, 0.75), prompts(6), 5, 10, 1)
    temperatures = (0.3, 0.5, 0.7, 1.0)
    diversities = (0.1, 0.35, 0.65, 0.9)
    return Size(FAMILIES, temperatures, diversities, prompts(24), 8, 12, 1)

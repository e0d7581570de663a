"""The settings and sizes of the EDT reproduction: fixed temperatures and EDT over equal grids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from decodery.core.sampler import Chain
from decodery.reproductions.frame import Mode

Kind = Literal["fixed", "token", "sequence"]


@dataclass(frozen=True)
class Setting:
    """A fixed temperature, or EDT with this upper bound and theta, for each token or sequence."""

    kind: Kind
    temperature: float
    theta: float = 0.0

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"fixed T={self.temperature:g}"
        by = "" if self.kind == "token" else " by sequence"
        return f"EDT{by} T0={self.temperature:g} theta={self.theta:g}"

    def chain(self) -> Chain:
        """The sampler chain, planned as for any run."""
        from decodery.api.plan import make_plan

        values: dict[str, Any] = {"temperature": self.temperature}
        if self.kind != "fixed":
            values = {
                "edt_t0": self.temperature,
                "edt_theta": self.theta,
                "edt_granularity": self.kind,
            }
        return make_plan("sample", {**values, "seed": 0}).sampler


@dataclass(frozen=True)
class Family:
    """A curve: one kind and theta over a grid of temperatures."""

    kind: Kind
    theta: float = 0.0

    def __str__(self) -> str:
        if self.kind == "fixed":
            return "fixed temperature"
        by = "" if self.kind == "token" else " by sequence"
        return f"EDT{by}, theta={self.theta:g}"

    def over(self, temperatures: Sequence[float]) -> tuple[Setting, ...]:
        return tuple(Setting(self.kind, heat, self.theta) for heat in temperatures)

    def among(self, settings: Iterable[Setting]) -> list[Setting]:
        """Its members of `settings`, by temperature."""
        own = [item for item in settings if (item.kind, item.theta) == (self.kind, self.theta)]
        return sorted(own, key=lambda item: item.temperature)


FIXED = Family("fixed")
EDT = Family("token", 1.0)
MILD = Family("token", 0.3)
FAINT = Family("token", 0.1)
SEQUENCE = Family("sequence", 1.0)
PARSE = 0.9  # the share of lines that must parse where slots are compared

# Claims name families; which temperatures a family has depends on the mode.
QUICK_HEATS = (0.3, 0.7, 1.1, 1.5)
FULL_HEATS = (0.3, 0.6, 0.9, 1.2, 1.5, 1.8)
QUICK_SLOT_HEATS = (0.5, 0.75, 1.0, 1.25, 1.5)
FULL_SLOT_HEATS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 2.0)


@dataclass(frozen=True)
class Size:
    """How much a mode measures. `draws` and `slot_draws` are for each item, setting and seed."""

    families: tuple[Family, ...]
    heats: tuple[float, ...]
    items: int  # of each task
    draws: int
    seeds: int
    tokens: int
    slot_families: tuple[Family, ...]
    slot_heats: tuple[float, ...]
    slot_draws: int
    slot_seeds: int
    training_steps: int


def size(mode: Mode) -> Size:
    """The grids and numbers of a mode."""
    if mode == "quick":
        return Size(
            families=(FIXED, EDT, FAINT),
            heats=QUICK_HEATS,
            items=3,
            draws=5,
            seeds=1,
            tokens=24,
            slot_families=(FIXED, EDT, SEQUENCE),
            slot_heats=QUICK_SLOT_HEATS,
            slot_draws=16,
            slot_seeds=1,
            training_steps=400,
        )
    return Size(
        families=(FIXED, EDT, MILD, FAINT, SEQUENCE),
        heats=FULL_HEATS,
        items=12,
        draws=5,
        seeds=1,
        tokens=32,
        slot_families=(FIXED, EDT, MILD, SEQUENCE),
        slot_heats=FULL_SLOT_HEATS,
        slot_draws=24,
        slot_seeds=2,
        training_steps=600,
    )

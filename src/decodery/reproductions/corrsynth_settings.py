"""The settings and sizes of the CorrSynth reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decodery.core.sampler import Chain, chain
from decodery.methods.autoregressive.corrsynth import Contrast
from decodery.reproductions.frame import Mode

Name = Literal["few-shot", "cfg", "hybrid", "cross", "intra"]


@dataclass(frozen=True)
class Setting:
    """A way to write a data set. The strength is a temperature for few-shot, the guidance scale for
    cfg, and delta (at gamma = 1) for the contrasts."""

    name: Name
    strength: float

    def __str__(self) -> str:
        sign = {"few-shot": "T", "cfg": "g"}.get(self.name, "delta")
        return f"{self.name} {sign}={self.strength:g}"

    @property
    def contrast(self) -> Contrast | None:
        """The kind of siblings, for CorrSynth."""
        return None if self.name in ("few-shot", "cfg") else self.name

    def chain(self) -> Chain:
        """All are cut by top-p 0.9, few-shot after its temperature."""
        from decodery.core import registry

        cut = registry.get("top_p")(0.9)
        if self.name != "few-shot" or self.strength == 1.0:
            return chain(cut)
        return chain(registry.get("temperature")(self.strength), cut)


TEMPERATURES = (1.0, 1.2, 1.4)
FEW_SHOT = tuple(Setting("few-shot", heat) for heat in TEMPERATURES)
PLAIN = FEW_SHOT[0]
GUIDED = Setting("cfg", 1.5)
HYBRID, CROSS, INTRA = (
    Setting("hybrid", 0.5),
    Setting("cross", 0.5),
    Setting("intra", 0.5),
)
WEAK = Setting("hybrid", 0.9)
CONTRASTED = (HYBRID, CROSS, INTRA)

# Along a text: one formula, P^1.5 / Q^0.5, where Q has the same text after another prompt (cfg) or
# is the geometric mean of what the siblings say after texts of their own (cross).
FADING = Setting("cfg", 1.5)
LASTING = Setting("cross", 1.0)
GAMMA = 1.5
ALONG = (FADING, LASTING)
WINDOW = 4
EARLY = (0,)  # windows
LATE_FROM = 4  # the window that late ones begin with


@dataclass(frozen=True)
class Size:
    """How much a mode measures."""

    settings: tuple[Setting, ...]
    demonstrations: int
    seeds: int
    requests: int
    repeats: int = 4  # streams of each class
    tokens: int = 24  # of a headline
    length: int = 40  # of a text along which the contrast is followed
    following: int = 2  # streams of each topic there

    @property
    def windows(self) -> int:
        return self.length // WINDOW


def size(mode: Mode) -> Size:
    """The grid and the numbers of texts of a mode."""
    if mode == "quick":
        return Size((PLAIN, FEW_SHOT[-1], GUIDED, HYBRID, INTRA), 2, 2, 2)
    return Size((*FEW_SHOT, GUIDED, *CONTRASTED, WEAK), 6, 4, 6)

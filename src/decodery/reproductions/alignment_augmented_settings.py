"""The settings and sizes of the alignment_augmented reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from decodery.core import registry
from decodery.core.decoder import Decoder
from decodery.reproductions.alignment_augmented_prompts import ITEMS, Item
from decodery.reproductions.frame import Mode

Verify = Literal["exact", "constant", "adaptive"]
SMALL = 8  # nodes of a tree where the budget binds
BASES = (0.05, 0.1, 0.3, 0.5, 1.0)  # thresholds of the sweep, without a slope


@dataclass(frozen=True)
class Setting:
    """How a text is decoded: plain greedy decoding, or how candidates are made and verified.

    `base` is a threshold of the sweep; None means the method's own threshold. `nodes` is the budget
    of a tree.
    """

    verify: Verify | None = None
    alignment: bool = False
    nodes: int = 64
    base: float | None = None

    def __str__(self) -> str:
        if self.verify is None:
            return "greedy"
        parts: list[str] = [self.verify]
        if self.base is not None:
            parts = [f"threshold {self.base:g}"]
        parts.append("aligned" if self.alignment else "retrieval")
        if self.nodes != 64:
            parts.append(f"{self.nodes} nodes")
        return ", ".join(parts)

    def decoder(self) -> Decoder:
        if self.verify is None:
            return registry.get("greedy")()
        values: dict[str, Any] = {"verify": self.verify, "tree_nodes": self.nodes}
        if self.base is not None:
            values |= {"threshold": self.base, "threshold_slope": 0.0, "threshold_floor": 0.0}
        if not self.alignment:
            values["alignment"] = "off"
        return registry.get("alignment_augmented")(next_token="argmax", **values)


GREEDY = Setting()
EXACT = Setting("exact")
EXACT_ALIGNED = Setting("exact", alignment=True)
CONSTANT = Setting("constant")
ADAPTIVE = Setting("adaptive")
FULL = Setting("adaptive", alignment=True)
SMALL_ADAPTIVE = Setting("adaptive", nodes=SMALL)
SMALL_FULL = Setting("adaptive", alignment=True, nodes=SMALL)
SWEEP = tuple(Setting("adaptive", alignment=True, base=base) for base in BASES)


@dataclass(frozen=True)
class Size:
    """How much a mode measures."""

    settings: tuple[Setting, ...]
    items: tuple[Item, ...]
    tokens: int


def size(mode: Mode) -> Size:
    """The grid of a mode."""
    main = (GREEDY, EXACT, EXACT_ALIGNED, CONSTANT, ADAPTIVE, FULL)
    if mode == "quick":
        return Size((*main, SWEEP[0], SWEEP[-1]), ITEMS[:3], tokens=32)
    return Size((*main, SMALL_ADAPTIVE, SMALL_FULL, *SWEEP), ITEMS, tokens=64)

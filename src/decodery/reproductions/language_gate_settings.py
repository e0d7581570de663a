"""The settings of the language gate's reproduction: which gate, and how is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decodery.core.sampler import Chain, Sampler
from decodery.reproductions.frame import Mode

Name = Literal[
    "none",
    "gate",
    "scrambled",
    "own script",
    "adjusted",
    "unadjusted",
    "paper's labels",
    "shuffled",
]
TAUGHT: tuple[Name, ...] = ("adjusted", "unadjusted", "paper's labels", "shuffled")


@dataclass(frozen=True)
class Heat:
    """How is sampled: temperature, top-k (0 is all), top-p."""

    temperature: float
    top_k: int
    top_p: float

    def __str__(self) -> str:
        kept = f" top-k {self.top_k}" if self.top_k else ""
        return f"T={self.temperature:g}{kept} top-p {self.top_p:g}"


COOL = Heat(0.7, 20, 0.8)  # the paper's
HOT = Heat(1.0, 0, 0.9)


@dataclass(frozen=True)
class Setting:
    """A gate by name, or none, and how is sampled."""

    name: Name
    heat: Heat = COOL

    def __str__(self) -> str:
        return f"{self.name}, {self.heat}"

    def chain(self, file: str | None) -> Chain:
        """Temperature, and the gate of a file or the one that comes with the model; without a gate
        its top-k and top-p alone."""
        from decodery.core.sampler import chain
        from decodery.methods.sampling.temperature import Temperature

        heat = Temperature(self.heat.temperature)
        return chain(heat, self.plain() if self.name == "none" else self.gate(file))

    def plain(self) -> Chain:
        """The user's top-k and top-p."""
        from decodery.core.sampler import chain
        from decodery.methods.sampling.top_k import TopK
        from decodery.methods.sampling.top_p import TopP

        return chain(TopK(self.heat.top_k), TopP(self.heat.top_p))

    def gate(self, file: str | None) -> Sampler:
        from decodery.methods.sampling.language_gate import METHOD

        return METHOD(
            gate_top_k=self.heat.top_k,
            gate_top_p=self.heat.top_p,
            gate_prompt=True,
            gate_file=file,
        )


@dataclass(frozen=True)
class Size:
    """How much a mode measures; tokens are those of a text."""

    cool: tuple[Name, ...]
    hot: tuple[Name, ...]
    choosing: int  # seeds that choose the provoking prompts
    seeds: int  # of provoking prompts
    hot_seeds: int
    clean_seeds: int
    tokens: int


def size(mode: Mode) -> Size:
    if mode == "quick":
        return Size(
            ("none", "gate", "scrambled"), ("none", "gate", "own script"), 1, 4, 2, 1, tokens=24
        )
    return Size(
        ("none", "gate", "scrambled", *TAUGHT),
        ("none", "gate", "own script"),
        choosing=4,
        seeds=10,
        hot_seeds=5,
        clean_seeds=2,
        tokens=40,
    )

"""The settings, prompts and sizes of the reproduction of optimal multi-draft decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decodery.reproductions.frame import Mode

Name = Literal[
    "recursive iid",
    "k_seq iid",
    "recursive distinct",
    "greedy",
    "bound iid",
    "bound distinct",
]

RRS: Name = "recursive iid"
K_SEQ: Name = "k_seq iid"
RRS_W: Name = "recursive distinct"
GREEDY: Name = "greedy"  # it reaches its bound, so it stands for both
WITH: Name = "bound iid"
WITHOUT: Name = "bound distinct"
NAMES: tuple[Name, ...] = (RRS, K_SEQ, RRS_W, GREEDY, WITH, WITHOUT)

EXIT = 24  # of 30 layers


@dataclass(frozen=True)
class Setting:
    """A rule or a bound, at a temperature, with so many candidates of a node."""

    name: Name
    temperature: float
    count: int

    def __str__(self) -> str:
        return f"{self.name} T={self.temperature:g} n={self.count}"


@dataclass(frozen=True)
class Pair:
    """A drafter and its rule in whole runs."""

    drafter: Literal["iid", "distinct", "greedy", "hub"]
    rule: Literal["recursive", "k_seq", "greedy", "hub"]

    def __str__(self) -> str:
        return f"{self.drafter} drafts, rule {self.rule}"


IID = Pair("iid", "recursive")
DISTINCT = Pair("distinct", "recursive")
TOP = Pair("greedy", "greedy")
PAIRS = (IID, Pair("iid", "k_seq"), DISTINCT, Pair("hub", "hub"), TOP)

PROMPTS = (
    "Explain why the sky is blue.",
    "Write a short poem about autumn.",
    "What is the capital of France, and what is it known for?",
    "Give three tips for learning a language.",
    "How does a bicycle stay upright?",
    "Describe a market on a Saturday morning.",
    "Summarise the story of Robinson Crusoe in two sentences.",
    "What should I pack for a week in the mountains?",
    "Why do leaves change their colour?",
    "Write a letter to a neighbour about a noisy dog.",
    "List the steps to make a cup of tea.",
    "What is the difference between weather and climate?",
)


@dataclass(frozen=True)
class Size:
    """How much a mode measures: rows at every `stride`-th token of a text, and whole runs."""

    prompts: tuple[str, ...]
    temperatures: tuple[float, ...]
    counts: tuple[int, ...]
    positions: int
    stride: int
    run_prompts: int
    run_tokens: int
    seeds: int
    pairs: tuple[Pair, ...] = PAIRS
    run_temperature: float = 0.6
    branching: tuple[int, ...] = (2, 2, 2)

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(
            Setting(name, temperature, count)
            for temperature in self.temperatures
            for count in self.counts
            for name in NAMES
        )


def size(mode: Mode) -> Size:
    """The grid of a mode."""
    if mode == "quick":
        return Size(PROMPTS[:6], (0.6,), (2, 3), 2, 6, 3, 16, 1, (IID, DISTINCT, TOP))
    return Size(PROMPTS, (0.3, 0.6, 1.0), (2, 3, 4), 5, 5, 12, 40, 1)

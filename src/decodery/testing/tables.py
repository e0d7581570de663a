"""Tables and rows to prove laws on: small, random, and full of edges (ties, zeros, one token)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.row import Row
from decodery.core.sampler import Context, State, chain
from decodery.core.source import Blend, Grown, Growth, Policy, Source
from decodery.models.table import TableModel
from decodery.testing.samplers import Coin, Heat, Shy, Surprised

__all__ = [
    "KINDS",
    "MixtureBlend",
    "TableModel",
    "WatchedTable",
    "edge_table",
    "random_policy",
    "random_probabilities",
    "random_row",
    "row_bank",
]

Dtype = type[np.float32] | type[np.float64]

KINDS = ("flat", "steep", "even", "ties", "zeros", "one_hot", "tiny")


def random_probabilities(
    generator: np.random.Generator, vocab_size: int, kind: str = "flat"
) -> npt.NDArray[np.float64]:
    """Probabilities [vocab_size] of a kind: one of `KINDS`.

    "ties" has equal tops, "zeros" impossible tokens, "tiny" one token of almost all the mass.
    """
    if kind == "even":
        return np.full(vocab_size, 1 / vocab_size)
    if kind == "one_hot":
        return np.eye(vocab_size)[generator.integers(vocab_size)]
    concentration = 0.3 if kind == "steep" else 2.0
    drawn = generator.dirichlet(np.full(vocab_size, concentration)) + 1e-6
    if kind == "ties":
        drawn[generator.permutation(vocab_size)[:2]] = drawn.max()
    if kind == "zeros" and vocab_size > 1:
        drawn[generator.permutation(vocab_size)[: vocab_size // 2]] = 0.0
    if kind == "tiny":
        drawn *= 1e-9
        drawn[generator.integers(vocab_size)] = 1.0
    return drawn / drawn.sum()


def random_row(
    generator: np.random.Generator,
    vocab_size: int,
    kind: str = "flat",
    dtype: Dtype = np.float64,
) -> Row:
    """A whole row of a kind; its scores are shifted, so that no sampler may expect them to sum."""
    with np.errstate(divide="ignore"):
        scores = np.log(random_probabilities(generator, vocab_size, kind))
    return Row.dense((scores + generator.uniform(-3, 3)).astype(dtype))


def row_bank(seed: int = 0) -> list[Row]:
    """Rows of every kind, vocabulary (1, 2, 5, 12) and dtype, whole and truncated."""
    generator = np.random.default_rng(seed)
    bank: list[Row] = []
    for vocab_size in (1, 2, 5, 12):
        for kind in KINDS:
            for dtype in (np.float32, np.float64):
                row = random_row(generator, vocab_size, kind, dtype)
                bank.append(row)
                mask = generator.random(vocab_size) < 0.6
                mask[row.argmax()] = True
                bank.append(row.keep(mask))
    return bank


def edge_table(
    seed: int,
    vocab_size: int,
    *,
    order: int = 2,
    eos_ids: frozenset[int] = frozenset(),
    capacity: int | None = None,
) -> WatchedTable:
    """A table whose contexts take turns between the kinds of rows."""

    def law(context: tuple[int, ...]) -> npt.NDArray[np.float64]:
        generator = np.random.default_rng([seed, len(context), *context])
        return random_probabilities(generator, vocab_size, KINDS[generator.integers(len(KINDS))])

    return WatchedTable(
        law, vocab_size, order, eos_ids=eos_ids, capacity=capacity, name=f"edges of {vocab_size}"
    )


class WatchedTable(TableModel):
    """A table that notes the most tokens that were ever alive in it at once."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.peak = 0

    def forward(self, growths: Sequence[Growth]) -> list[Grown]:
        grown = super().forward(growths)
        self.peak = max(self.peak, self.tokens_alive)
        return grown


class MixtureBlend(Blend):
    """The mean of its members' laws; member i sees `openings[i]` before the prompt."""

    def __init__(self, *members: Source, openings: Sequence[Sequence[int]] = ()) -> None:
        super().__init__("mixture", members)
        self.openings = tuple(map(tuple, openings)) or ((),) * len(members)

    def prompts(self, prompt: Sequence[int]) -> Sequence[Sequence[int]]:
        return [(*opening, *prompt) for opening in self.openings]

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        return Row.of_probabilities(np.mean([row.dense_probabilities() for row in rows], axis=0))


def random_policy(
    seed: int, vocab_size: int = 3, *, eos_ids: frozenset[int] = frozenset()
) -> Policy:
    """A random table under a random chain of test samplers (heat, state, noise, seen rows)."""
    generator = np.random.default_rng(seed)
    samplers = [Heat(generator.uniform(0.5, 2)), Shy(generator.uniform(0, 2)), Coin(), Surprised()]
    chosen = [sampler for sampler in samplers if generator.random() < 0.5]
    table = TableModel.random(vocab_size, seed=seed, eos_ids=eos_ids)
    return Policy(table, chain(chosen))

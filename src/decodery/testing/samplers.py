"""Small honest samplers, one for each thing a sampler may ask for, to put under a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State


def heated(row: Row, temperature: float) -> Row:
    """The row with its scores divided by a temperature."""
    return row.with_scores(np.divide(row.scores, row.scores.dtype.type(temperature)))


@dataclass(frozen=True)
class Heat(Sampler):
    """Temperature: no state, no noise."""

    temperature: float = 0.7
    keeps_argmax: ClassVar[bool] = True

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return heated(row, self.temperature)


@dataclass(frozen=True)
class Shy(Sampler):
    """Lowers a token by `shyness` nats each time it was drawn: the state is a tuple of tokens."""

    shyness: float = 1.0

    def start(self, context: Context) -> tuple[int, ...]:
        return ()

    def apply(self, row: Row, state: State, context: Context) -> Row:
        tokens, counts = np.unique(np.array(state, dtype=np.intp), return_counts=True)
        return row.adjusted(tokens, -self.shyness * counts)

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        return (*state, token)


@dataclass(frozen=True)
class Surprised(Sampler):
    """Cools after a surprising token: `advance` reads the row the token was drawn from."""

    observes_rows: ClassVar[bool] = True
    keeps_argmax: ClassVar[bool] = True

    def start(self, context: Context) -> float:
        return 1.0

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return heated(row, state)

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> State:
        assert row is not None
        return 0.5 if row.log_probability(token) < -1.0 else 1.5


@dataclass(frozen=True)
class Coin(Sampler):
    """Tosses a coin of its own at each place: heads cools the row, tails heats it."""

    needs_noise: ClassVar[bool] = True
    keeps_argmax: ClassVar[bool] = True

    def apply(self, row: Row, state: State, context: Context) -> Row:
        return heated(row, 0.4 if context.uniform("coin") < 0.5 else 2.5)


@dataclass(frozen=True)
class CoinLaw(Sampler):
    """What `Coin` does on average over its noise: the law that its draws must follow."""

    def apply(self, row: Row, state: State, context: Context) -> Row:
        cold, hot = heated(row, 0.4).probabilities(), heated(row, 2.5).probabilities()
        with np.errstate(divide="ignore"):
            return row.with_scores(np.log((cold + hot) / 2).astype(row.scores.dtype))

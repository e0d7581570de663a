"""All outcomes of a decoder's noise, with their exact probabilities, for models of any numbers.

A uniform number is drawn by asking: of each key only the interval is known that its answers so far
have left, and a comparison or a draw from weights splits it. A decoder is run once for every way
to answer. A key that is used twice answers both times from one number, as a real one would, so
shared noise is seen; a decoder that never asks the same twice has independent answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from mpg_toys import PROMPT, Law, law_of

from decodery.core import distribution
from decodery.core.decoder import Completion, Decoder, Task
from decodery.core.handle import Budget
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending import mpg_route

_NOTHING = 1e-13  # shares below it are rounding


@dataclass
class Walk:
    """One way to answer: the number of each answer that had several, and the product of shares."""

    answers: list[list[int]]  # [answer, how many there are]
    share: float = 1.0
    asked: int = 0

    def ask(self, shares: Sequence[float]) -> int:
        """The next answer, one of those whose share is not 0."""
        possible = [index for index, share in enumerate(shares) if share > _NOTHING]
        if len(possible) == 1:
            return possible[0]
        if self.asked == len(self.answers):
            self.answers.append([0, len(possible)])
        found = possible[self.answers[self.asked][0]]
        self.asked += 1
        self.share *= shares[found]
        return found


class Noise(float):
    """A uniform number in [low, high); every question about it narrows them."""

    walk: Walk
    low: float
    high: float

    def __new__(cls, walk: Walk) -> Noise:
        made = super().__new__(cls, np.nan)
        made.walk, made.low, made.high = walk, 0.0, 1.0
        return made

    def draw(self, weights) -> int:
        """The index that the number draws from weights."""
        ends = np.cumsum(np.asarray(weights, dtype=np.float64))
        ends /= ends[-1]
        inner = np.clip([0.0, *ends], self.low, self.high)
        found = self.walk.ask((np.diff(inner) / (self.high - self.low)).tolist())
        self.low, self.high = float(inner[found]), float(inner[found + 1])
        return found

    def __lt__(self, other: float) -> bool:
        return self.draw([max(0.0, min(1.0, other)), 1.0 - max(0.0, min(1.0, other))]) == 0

    def __ge__(self, other: float) -> bool:
        return not self < other

    __le__, __gt__ = __lt__, __ge__
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Asking(Stream):
    """Each key's number is drawn by asking."""

    walk: Walk = field(default_factory=lambda: Walk([]))
    known: dict[tuple[int, int, str, int], Noise] = field(default_factory=dict)

    def uniform(self, sequence: int, position: int, purpose: str, index: int = 0) -> float:
        return self.known.setdefault((sequence, position, purpose, index), Noise(self.walk))

    def generator(self, *_):
        raise AssertionError("a decoder that draws whole arrays cannot be enumerated")


def outcomes(
    decoder: Decoder, policy: Policy, length: int, budget: Budget | None = None
) -> Iterator[tuple[Completion, float]]:
    """Every outcome of a decoder's noise and its probability."""
    ends = Stopping(length, policy.source.eos_ids)
    answers: list[list[int]] = []
    with _numbers_that_ask():
        while True:
            walk = Walk(answers)
            task = Task(policy, PROMPT, ends, Asking(0, walk))
            yield run_alone(decoder, task, budget=budget)[0], walk.share
            while answers and answers[-1][0] + 1 == answers[-1][1]:
                answers.pop()
            if not answers:
                return
            answers[-1][0] += 1


def exact_law(decoder: Decoder, policy: Policy, length: int) -> Law:
    return law_of(outcomes(decoder, policy, length))


@contextmanager
def _numbers_that_ask() -> Iterator[None]:
    honest = distribution.inverse_cdf

    def draw(weights, uniform):
        return uniform.draw(weights) if isinstance(uniform, Noise) else honest(weights, uniform)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "inverse_cdf", draw)
        patch.setattr(mpg_route, "inverse_cdf", draw)
        yield

"""All outcomes of a speculative run's noise, with their exact probabilities, for tables of any law.

A uniform number is drawn by asking: of each key only the interval is known that its answers so far
have left, and a comparison or a draw from weights splits it. The run is made once for every way to
answer, through the real runner. A key that is used twice answers both times from one number, as a
real one would, so shared noise is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from decodery.core import distribution
from decodery.core.decoder import Completion, Decoder, Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative import law as laws
from decodery.testing import Law, enumerate_law

PROMPT = (0,)
_NOTHING = 1e-16


@dataclass
class Way:
    """One way to answer: the number of each answer that had several, and the product of shares."""

    answers: list[list[int]] = field(default_factory=list)  # [answer, how many there are]
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

    way: Way
    low: float
    high: float

    def __new__(cls, way: Way) -> Noise:
        made = super().__new__(cls, np.nan)
        made.way, made.low, made.high = way, 0.0, 1.0
        return made

    def draw(self, weights) -> int:
        """The index that the number draws from weights."""
        ends = np.cumsum(np.asarray(weights, dtype=np.float64))
        inner = np.clip([0.0, *(ends / ends[-1])], self.low, self.high)
        found = self.way.ask((np.diff(inner) / (self.high - self.low)).tolist())
        self.low, self.high = float(inner[found]), float(inner[found + 1])
        return found

    def __lt__(self, other: float) -> bool:
        chance = max(0.0, min(1.0, other))
        return self.draw([chance, 1.0 - chance]) == 0

    def __ge__(self, other: float) -> bool:
        return not self < other

    __le__, __gt__ = __lt__, __ge__
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Asking(Stream):
    """Each key's number is drawn by asking."""

    way: Way = field(default_factory=Way)
    known: dict[tuple[int, int, str, int], Noise] = field(default_factory=dict)

    def uniform(self, sequence: int, position: int, purpose: str, index: int = 0) -> float:
        return self.known.setdefault((sequence, position, purpose, index), Noise(self.way))

    def generator(self, *_):
        raise AssertionError("a decoder that draws whole arrays cannot be enumerated")


def every_way(run: Callable[[Way], object]) -> Iterator[tuple[object, float]]:
    """What `run` returns for every way to answer, and how probable it is."""
    answers: list[list[int]] = []
    with _numbers_that_ask():
        while True:
            way = Way(answers)
            yield run(way), way.share
            while answers and answers[-1][0] + 1 == answers[-1][1]:
                answers.pop()
            if not answers:
                return
            answers[-1][0] += 1


def completions(
    decoder: Decoder, policy: Policy, length: int
) -> Iterator[tuple[Completion, float]]:
    """Every completion of a decoder and its probability."""
    ends = Stopping(length, policy.source.eos_ids)

    def run(way: Way) -> Completion:
        return run_alone(decoder, Task(policy, PROMPT, ends, Asking(0, way)))[0]

    yield from every_way(run)  # type: ignore[misc]


def exact_law(decoder: Decoder, policy: Policy, length: int) -> Law:
    """The law of a decoder's text."""
    law: Law = {}
    for item, share in completions(decoder, policy, length):
        law[item.tokens] = law.get(item.tokens, 0.0) + share
    return law


def distance(decoder: Decoder, policy: Policy, length: int) -> float:
    """How far a decoder's law is from the policy's: the largest difference of a probability."""
    wanted = enumerate_law(policy, PROMPT, Stopping(length, policy.source.eos_ids))
    law = exact_law(decoder, policy, length)
    return max(abs(law.get(text, 0.0) - wanted.get(text, 0.0)) for text in {*law, *wanted})


@contextmanager
def _numbers_that_ask() -> Iterator[None]:
    honest = distribution.inverse_cdf

    def draw(weights, uniform):
        return uniform.draw(weights) if isinstance(uniform, Noise) else honest(weights, uniform)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "inverse_cdf", draw)
        patch.setattr(laws, "inverse_cdf", draw)
        yield

"""The cases of the engine benchmark: what every contestant is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.prompts import Prompts

SAMPLES = 16
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Case:
    """Prompts of these lengths, each with so many new tokens, `places` of them at once.

    In a case of one prompt the time to the first token is measured too, by a job of its own, so
    that the steps after it can be told apart.
    """

    name: str
    title: str
    prompts: Sequence[int]
    new_tokens: Sequence[int]
    samples: int = 1
    temperature: float = 0.0
    places: int = 1

    @property
    def is_single(self) -> bool:
        return len(self.prompts) == 1

    @property
    def steps(self) -> int:
        """Steps after the first token, of the longest request."""
        return max(self.new_tokens) - 1

    def tokens(self, most: int | None = None) -> int:
        """Tokens to be made, `most` at most of each sequence."""
        return self.samples * sum(_at_most(count, most) for count in self.new_tokens)

    def job(self, prompts: Prompts, most: int | None = None) -> dict[str, Any]:
        """A job with prompts nobody has seen, `most` new tokens at most of each."""
        requests = [
            {"prompt": prompts.next(length), "new_tokens": _at_most(count, most)}
            for length, count in zip(self.prompts, self.new_tokens, strict=True)
        ]
        return {
            "requests": requests,
            "samples": self.samples,
            "temperature": self.temperature,
            "places": self.places,
        }


def cases() -> list[Case]:
    """All cases, by the order they run in."""
    streams = [
        Case(f"stream-{context}", f"one stream, prompt {context}, 128 new tokens", [context], [128])
        for context in (128, 1024)
    ]
    samples = [
        Case(
            f"samples-{context}",
            f"{SAMPLES} samples at temperature {TEMPERATURE}, prompt {context}, 64 new tokens each",
            [context],
            [64],
            samples=SAMPLES,
            temperature=TEMPERATURE,
        )
        for context in (128, 1024)
    ]
    ragged = Case(
        "ragged",
        "16 prompts of 20 to 400 tokens, 16 to 128 new tokens, all at once",
        _spaced(20, 400, 16, stride=7),
        _spaced(16, 128, 16, stride=11),
        places=16,
    )
    queue = Case(
        "queue",
        "32 prompts of 20 to 200 tokens, 16 to 96 new tokens, 8 at once",
        _spaced(20, 200, 32, stride=7),
        _spaced(16, 96, 32, stride=11),
        places=8,
    )
    return [*streams, *samples, ragged, queue]


def _spaced(low: int, high: int, count: int, stride: int) -> list[int]:
    """`count` whole numbers evenly from low to high, in an order without pattern."""
    return [low + (high - low) * (index * stride % count) // (count - 1) for index in range(count)]


def _at_most(count: int, most: int | None) -> int:
    return count if most is None else min(count, most)

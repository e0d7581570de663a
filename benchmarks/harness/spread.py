"""Medians with their range, and ratios formed inside a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, digits: int = 1) -> str:
        """The median, and the range in brackets."""
        median, low, high = (f"{value:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} [dim]({low}–{high})[/dim]"


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio of two contestants, formed in each round: what slows a round slows both."""
    return Spread.of([over / under for over, under in zip(above, below, strict=True)])

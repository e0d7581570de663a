"""What the figures of reproductions share."""

from __future__ import annotations

from collections.abc import Sequence

from decodery.reproductions.frame import Estimate


def bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Distances from values to interval ends, as matplotlib wants them; never below zero."""
    return [
        [max(item.value - item.low, 0.0) for item in estimates],
        [max(item.high - item.value, 0.0) for item in estimates],
    ]

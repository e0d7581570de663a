"""Heads of a row: the highest scores, found by partition, never by sorting a whole row."""

from __future__ import annotations

import numpy as np

from decodery.core.row import Ids, Scores


def kth_highest(scores: Scores, k: int) -> float:
    """The k-th highest of `scores` [n], for 1 <= k <= n.

    >>> kth_highest(np.array([3.0, 1.0, 2.0]), 2)
    2.0
    """
    place = scores.size - k
    return float(np.partition(scores, place)[place])


def head(scores: Scores, cut: float, count: int) -> Ids:
    """Positions of the `count` highest of `scores`, whose lowest is `cut`; of ties at the cut, the
    first ones.

    >>> head(np.array([1.0, 2.0, 1.0, 1.0]), cut=1.0, count=3)
    array([1, 0, 2])
    """
    above = np.flatnonzero(scores > cut)
    level = np.flatnonzero(scores == cut)
    return np.concatenate([above, level[: count - above.size]])

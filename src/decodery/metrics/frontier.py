"""Trade-offs between two goods, such as diversity and quality: fronts, coverage, dominance.

A method is a set of points [n, 2], one for each of its settings; more is better on both axes. Give
every method as many settings: dominance rewards many points.

Wang et al. (2025), arXiv:2511.05650.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Name = TypeVar("Name")


def normalised(methods: Mapping[Name, npt.ArrayLike]) -> dict[Name, Array]:
    """All points [..., n, 2] on axes from the least to the greatest value of any method: 0 to 1.

    An axis on which all points are equal is 1 everywhere.
    """
    points = {name: np.asarray(given, dtype=np.float64) for name, given in methods.items()}
    pooled = np.concatenate(list(points.values()), axis=-2)
    low, span = pooled.min(axis=-2, keepdims=True), np.ptp(pooled, axis=-2, keepdims=True)
    scale = np.where(span > 0, span, 1.0)
    return {name: np.where(span > 0, (given - low) / scale, 1.0) for name, given in points.items()}


def coverage(points: npt.ArrayLike) -> Array:
    """The area of what lies below and left of some point: the union of rectangles from the origin.

    Points [..., n, 2], none negative; one area for each set.

    >>> coverage([(0.5, 1.0), (1.0, 0.5), (0.4, 0.4)])
    array(0.75)
    """
    given = np.asarray(points, dtype=np.float64)
    order = np.argsort(-given[..., 0], axis=-1, kind="stable")  # from the right to the left
    x, y = (np.take_along_axis(given[..., axis], order, axis=-1) for axis in (0, 1))
    reached = np.maximum.accumulate(y, axis=-1)
    risen = np.diff(reached, axis=-1, prepend=0.0)
    return np.asarray((x * risen).sum(axis=-1))


def front(points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points [n] no other point beats: as good on both axes and better on one."""
    given = np.asarray(points, dtype=np.float64)
    as_good = (given[None] >= given[:, None]).all(axis=2)
    better = (given[None] > given[:, None]).any(axis=2)
    beaten: npt.NDArray[np.bool_] = np.logical_and(as_good, better)
    return np.asarray(beaten.sum(axis=1) == 0)


def dominance(methods: Mapping[Name, npt.ArrayLike]) -> dict[Name, float]:
    """The share of the points on the front of all methods together that belong to each.

    Equal points count once; where several methods have one, each gets its part. Sums to one.

    >>> dominance({"a": [(1.0, 0.5), (0.2, 0.2)], "b": [(0.0, 1.0), (0.1, 0.1)]})
    {'a': 0.5, 'b': 0.5}
    """
    owners: dict[tuple[float, float], set[Name]] = {}
    for name, given in methods.items():
        for x, y in np.asarray(given, dtype=np.float64):
            owners.setdefault((float(x), float(y)), set()).add(name)
    points = list(owners)
    best = [point for point, on in zip(points, front(points), strict=True) if on]
    shares = dict.fromkeys(methods, 0.0)
    for point in best:
        for name in owners[point]:
            shares[name] += 1.0 / len(owners[point]) / len(best)
    return shares

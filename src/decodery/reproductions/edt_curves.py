"""Comparing curves of quality and diversity that were swept over equal grids of temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from decodery.reproductions.edt_settings import Family, Setting
from decodery.reproductions.frame import Array, Means

POINTS = 33  # of the range that two curves share


def values(means: Means, family: Family, quantity: str) -> Array:
    """A quantity along a family's curve [settings, ...], by temperature."""
    return np.stack([means[quantity, setting] for setting in _settings(means, family, quantity)])


def _settings(means: Means, family: Family, quantity: str) -> Sequence[Setting]:
    measured = (cast("Setting", setting) for name, setting in means if name == quantity)
    return family.among(measured)


def lead(means: Means, family: Family, rival: Family, quality: str, diversity: str) -> Array:
    """A family's quality less a rival's at equal diversity, the mean over the range both reach.

    Each curve is a line through its settings. 0 where the curves share no range.
    """
    own, other = (
        [values(means, one, quantity) for quantity in (diversity, quality)]
        for one in (family, rival)
    )
    shape = own[0].shape[1:]
    flat = [array.reshape(array.shape[0], -1) for array in (*own, *other)]
    gaps = [_gap(*(array[:, place] for array in flat)) for place in range(flat[0].shape[1])]
    return np.array(gaps).reshape(shape)


def _gap(own_x: Array, own_y: Array, other_x: Array, other_y: Array) -> float:
    low, high = max(own_x.min(), other_x.min()), min(own_x.max(), other_x.max())
    if low >= high:
        return 0.0
    grid = np.linspace(low, high, POINTS)
    return float(np.mean(_line(grid, own_x, own_y) - _line(grid, other_x, other_y)))


def _line(grid: Array, x: Array, y: Array) -> Array:
    order = np.argsort(x, kind="stable")
    return np.interp(grid, x[order], y[order])


def best_diversity(
    means: Means, family: Family, quality: str, diversity: str, least: float
) -> Array:
    """The highest diversity among a family's settings of at least this quality; 0 without any."""
    good = values(means, family, quality) >= least
    return np.where(good, values(means, family, diversity), 0.0).max(axis=0)


def best_distance(
    means: Means, family: Family, families: Sequence[Family], quality: str, diversity: str
) -> Array:
    """A family's lowest EDA: the distance, in percent, from the best quality and diversity that any
    of `families` reaches, both weighing alike (section 4 of the paper, as reconstructed)."""
    tops = [
        np.concatenate([values(means, one, quantity) for one in families]).max(axis=0)
        for quantity in (quality, diversity)
    ]
    q, d = (
        (top - values(means, family, quantity)) / top
        for top, quantity in zip(tops, (quality, diversity), strict=True)
    )
    return 100.0 * np.sqrt((q**2 + d**2) / 2).min(axis=0)

"""Planes of diversity and quality: how much of them a family of settings covers and dominates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from decodery.metrics import frontier
from decodery.reproductions.baco_settings import DIVERSITY, Family, Setting
from decodery.reproductions.frame import Array, Means

QUALITY = ("log-prob", "valid")


def families(means: Means) -> dict[Family, list[Setting]]:
    """The settings that were measured, by family, in the order of their strength."""
    found: dict[Family, list[Setting]] = {}
    for quantity, setting in means:
        if quantity == "log-prob" and isinstance(setting, Setting):
            found.setdefault(setting.family, []).append(setting)
    return {name: sorted(items, key=lambda item: item.strength) for name, items in found.items()}


def plane(means: Means, metric: str, quality: str) -> dict[Family, Array]:
    """The points [..., settings, 2] of every family, axes from the least to the greatest of all."""
    points: dict[Family, Array] = {
        name: np.stack(
            [
                np.stack([np.asarray(means[axis, item]) for axis in (metric, quality)], axis=-1)
                for item in items
            ],
            axis=-2,
        )
        for name, items in families(means).items()
    }
    return frontier.normalised(points)


def covered(means: Means, family: Family, metrics: Sequence[str] = DIVERSITY) -> Array:
    """The mean coverage of a family over the planes of these metrics and both qualities."""
    areas = [
        frontier.coverage(plane(means, metric, quality)[family])
        for metric, quality in product(metrics, QUALITY)
    ]
    return np.asarray(np.mean(areas, axis=0))


def dominance(means: Means, metrics: Sequence[str] = DIVERSITY) -> dict[Family, float]:
    """The mean share of the front of all families together; from means []."""
    shares = [
        frontier.dominance(plane(means, metric, quality))
        for metric, quality in product(metrics, QUALITY)
    ]
    return {name: float(np.mean([share[name] for share in shares])) for name in families(means)}

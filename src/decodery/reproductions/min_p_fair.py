"""The fair comparison of the min-p reproduction: each truncation at its best, equally diverse."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from decodery.reproductions.frame import Array, Means
from decodery.reproductions.min_p_settings import OWN, STRENGTHS, Name, Setting, family


def fair_accuracy(means: Means, sampler: Name) -> Array:
    """Accuracy of a truncation's best setting that is at least as diverse as the model's own text.

    Best is chosen on one half of the seeds and judged on the other, so luck in the choice is not
    counted.
    """
    judged = np.stack([means["accuracy to judge", setting] for setting in family(sampler)])
    best = np.expand_dims(_best(means, sampler), 0)
    return np.take_along_axis(judged, best, axis=0)[0]


def best_settings(means: Means) -> dict[Name, Setting]:
    """The setting that is chosen for each truncation, from means []."""
    return {sampler: family(sampler)[int(_best(means, sampler))] for sampler in STRENGTHS}


def _best(means: Means, sampler: Name) -> npt.NDArray[np.intp]:
    """Which of the family's settings is best, for each replicate.

    Where none is diverse enough, it is the most diverse one: diversity - 2 ranks below every
    accuracy.
    """
    settings = family(sampler)
    accuracy = np.stack([means["accuracy to choose", setting] for setting in settings])
    diversity = np.stack([means["distinct-2", setting] for setting in settings])
    worth = np.where(diversity >= means["distinct-2", OWN], accuracy, diversity - 2)
    return worth.argmax(axis=0)

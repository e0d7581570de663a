"""Holding a sampler against a plain reference on the 10,048 generated rows, in float64 to 1e-12."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sampling_cases import PER_SIZE, Batch, batches

from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler

Law = Callable[[list[float], Context], list[float]]
Pair = Callable[[Batch], tuple[Sampler, Law]]
EXACT = 1e-12


def pick(batch: Batch, *values: float) -> float:
    """A value for this batch; all values take turns over the sizes of the vocabulary."""
    return values[batch.number % len(values)]


def hold(pair: Pair, tolerance: float = EXACT) -> int:
    """Compare laws on every row, every other one truncated; how many rows the sampler changed.

    `pair` gives a sampler and its definition: scores over the vocabulary and context to
    probabilities.
    """
    changed = 0
    for batch in batches():
        sampler, law = pair(batch)
        for index in range(PER_SIZE):
            row = Row.dense(batch.scores[index].astype(np.float64))
            if index % 2:
                row = row.keep(row.scores > -np.inf)
            here = batch.context(index)
            got = sampler.apply(row, sampler.start(here), here).dense_probabilities()
            expected = np.array(law(row.dense_scores().tolist(), here))
            gap = float(np.abs(got - expected).max())
            if not gap < tolerance:
                raise AssertionError(
                    f"{sampler} on {row.dense_scores()} after {here.tokens}: {got}, {expected}"
                )
            changed += bool(np.abs(got - row.dense_probabilities()).max() > 1e-6)
    return changed

"""Draws through `Row.draw` follow the stated laws: chi-square on 200,000 keyed draws each.

Fixed seed, so the outcome is the same in every run. alpha is 1e-4 for each of the 3 tests, below
1e-3 for the file together. Power: a law that moves 0.01 of mass between two tokens of probability
0.2 has noncentrality 200, which is found with probability above 0.9999 at up to 12 degrees of
freedom (asserted below).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import reference_laws as reference
from scipy import stats

from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, chain
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.repetition_penalty import RepetitionPenalty
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.methods.sampling.typical import Typical

ALPHA = 1e-4
DRAWS = 200_000
SCORES = [2.0, -1.0, 1.5, 0.3, 1.5, -0.7, 0.9, -2.5, 0.1, 1.1, -3.0, 0.6]
PATH = Context((4, 2, 7), 1)


@cache
def uniforms() -> list[float]:
    stream = Stream(20240701)
    return [stream.uniform(0, position, "token") for position in range(DRAWS)]


def p_value(sampler: Sampler, law: Sequence[float], draws: int = DRAWS) -> float:
    """Of the hypothesis that the sampler's draws follow `law`; 0 for a draw of probability 0."""
    row = Row.dense(np.array(SCORES, np.float32))
    result = sampler.apply(row, sampler.start(PATH), PATH)
    counts = np.bincount([result.draw(u) for u in uniforms()[:draws]], minlength=len(SCORES))
    expected = np.array(law) * draws
    if counts[expected == 0].any():
        return 0.0
    held = expected > 0
    statistic = float(((counts - expected)[held] ** 2 / expected[held]).sum())
    return float(stats.chi2.sf(statistic, int(held.sum()) - 1))


def logs(law: Sequence[float]) -> list[float]:
    return [math.log(p) if p else -math.inf for p in law]


MIN_P = reference.min_p([score / 1.5 for score in SCORES], 0.2)
HEADS = reference.top_p(logs(reference.top_k(SCORES, 6)), 0.8)
TYPICAL = reference.typical(logs(reference.repetition(SCORES, {4, 2, 7}, 1.5)), 0.6)


@pytest.mark.parametrize(
    ("sampler", "law"),
    [
        (chain(Temperature(1.5), MinP(0.2)), MIN_P),
        (chain(TopK(6), TopP(0.8)), HEADS),
        (chain(RepetitionPenalty(1.5), Typical(0.6)), TYPICAL),
    ],
    ids=["temperature, min_p", "top_k, top_p", "repetition_penalty, typical"],
)
def test_draws_follow_the_law(sampler: Sampler, law: list[float]) -> None:
    assert sum(law) == pytest.approx(1.0)
    assert p_value(sampler, law) > ALPHA


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (chain(Temperature(1.3), MinP(0.2)), MIN_P),
        (chain(Temperature(1.5), MinP(0.15)), MIN_P),
        (chain(MinP(0.2), Temperature(1.5)), MIN_P),
        (TopP(0.8), HEADS),
        (chain(*[RepetitionPenalty(1.5)] * 2, Typical(0.6)), TYPICAL),
    ],
    ids=["temperature too low", "min_p too low", "order swapped", "no top_k", "penalty twice"],
)
def test_wrong_laws_are_rejected(wrong: Sampler, law: list[float]) -> None:
    """A tenth of the draws is enough for these."""
    assert p_value(wrong, law, DRAWS // 10) < ALPHA


def test_the_stated_power() -> None:
    noncentrality = DRAWS * 2 * 0.01**2 / 0.2
    for freedom in range(1, 13):
        critical = stats.chi2.isf(ALPHA, freedom)
        assert stats.ncx2.sf(critical, freedom, noncentrality) > 0.9999

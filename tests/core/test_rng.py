"""Keyed noise: golden values, uniformity, independence across keys, no collisions of keys.

Each statistical test has alpha 1e-4 and fixed seeds. A bias of 0.02 in the mean of 20,000 draws is
ten standard errors and is found with power above 0.999
(`test_a_biased_stream_would_be_found`).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from decodery.core.errors import ParameterError
from decodery.core.rng import Stream

ALPHA = 1e-4
N = 20_000

GOLDEN = [
    ((0, 0, 0, "token", 0), 0.29872382622324745),
    ((7, 0, 12, "token", 0), 0.5625361065361523),
    ((7, 3, 12, "accept", 2), 0.1885490867441414),
    ((2**63 - 1, 1, 100_000, "token", 0), 0.7045890383641863),
]


@pytest.mark.parametrize(("key", "value"), GOLDEN)
def test_the_noise_never_changes_between_versions(key, value):
    seed, *rest = key
    assert Stream(seed).uniform(*rest) == value


def test_generators_never_change_between_versions():
    drawn = Stream(7).generator(0, 12, "noise").random(3)
    assert drawn.tolist() == [0.8770505640589076, 0.13252601254107266, 0.5481192541662017]


def draws(vary: str) -> np.ndarray:
    keys = {"seed": 0, "sequence": 0, "position": 0, "purpose": "token", "index": 0}
    made = []
    for i in range(N):
        key = keys | {vary: f"purpose {i}" if vary == "purpose" else i}
        made.append(Stream(key.pop("seed")).uniform(**key))
    return np.array(made)


@pytest.mark.parametrize("vary", ["seed", "sequence", "position", "purpose", "index"])
def test_uniform_and_independent_along_every_field(vary):
    made = draws(vary)
    assert made.min() >= 0
    assert made.max() < 1
    assert stats.kstest(made, "uniform").pvalue > ALPHA
    pairs, _, _ = np.histogram2d(made[0::2], made[1::2], bins=10, range=[[0, 1], [0, 1]])
    assert stats.chisquare(pairs.ravel()).pvalue > ALPHA
    lag = np.corrcoef(made[:-1], made[1:])[0, 1]
    assert abs(lag) * math.sqrt(N) < stats.norm.isf(ALPHA / 2)


def test_fields_do_not_collide():
    values = (-1, 0, 1, 2, 255, 256, 2**31, 2**32)
    seen = {
        Stream(seed).uniform(sequence, position, purpose, index)
        for seed, sequence, position, index in itertools.product(values[1:], *[values] * 3)
        for purpose in ("", "a")
    }
    assert len(seen) == 7 * 8**3 * 2


def test_different_purposes_are_uncorrelated():
    one = np.array([Stream(s).uniform(0, 5, "token") for s in range(N)])
    two = np.array([Stream(s).uniform(0, 5, "accept") for s in range(N)])
    assert abs(np.corrcoef(one, two)[0, 1]) * math.sqrt(N) < stats.norm.isf(ALPHA / 2)


def test_the_array_and_the_number_of_one_key_are_different_noise():
    stream = Stream(3)
    numbers = [stream.uniform(0, i, "x") for i in range(2000)]
    arrays = [stream.generator(0, i, "x").random() for i in range(2000)]
    assert not set(numbers) & set(arrays)
    assert abs(np.corrcoef(numbers, arrays)[0, 1]) * math.sqrt(2000) < stats.norm.isf(ALPHA / 2)


def test_a_draw_does_not_depend_on_other_draws():
    stream = Stream(5)
    first = stream.uniform(0, 1, "token")
    stream.generator(0, 1, "token").random(100)
    stream.uniform(0, 2, "token")
    assert stream.uniform(0, 1, "token") == first


def test_a_biased_stream_would_be_found():
    made = draws("position") ** 1.1
    assert stats.kstest(made, "uniform").pvalue < ALPHA


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_outside_the_range_are_refused(seed):
    with pytest.raises(ParameterError, match=str(seed)):
        Stream(seed)

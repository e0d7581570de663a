"""Top-n-sigma against its definition on 10,048 rows; what it does not depend on; limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference_laws import restricted
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context, chain
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_n_sigma import METHOD, TopNSigma

NOWHERE = Context((0,), 1)


def reference(scores: list[float], n: float) -> list[float]:
    finite = [z for z in scores if z > -math.inf]
    mean = math.fsum(finite) / len(finite)
    deviation = math.sqrt(math.fsum((z - mean) ** 2 for z in finite) / len(finite))
    floor = max(finite) - n * deviation
    return restricted(scores, {v for v, z in enumerate(scores) if z >= floor})


def pair(kind: type[TopNSigma] = TopNSigma):
    def made(batch):
        n = pick(batch, 0.3137, 0.7519, 1.0339, 1.5113, 3.0171)
        return kind(n), lambda scores, _: reference(scores, n)

    return made


def kept(sampler: TopNSigma, row: Row) -> set[int]:
    result = sampler.apply(row, None, NOWHERE)
    return set(result.token_ids()[result.scores > -np.inf].tolist())


def test_the_law() -> None:
    assert hold(pair()) > 5000


def test_limits() -> None:
    row = Row.dense([1.0, 4.0, 0.0, 4.0, -3.0])
    assert kept(TopNSigma(1e-9), row) == {1, 3}
    assert kept(TopNSigma(100.0), row) == {0, 1, 2, 3, 4}
    assert kept(TopNSigma(0.1), Row.dense(np.full(7, 0.1))) == set(range(7))  # deviation 0
    assert kept(TopNSigma(0.1), Row.dense([0.0, -np.inf])) == {0}
    ends = Row.dense(np.array([3e38, -3e38, 0.0], np.float32))
    assert kept(TopNSigma(1.0), ends) == {0}


@pytest.mark.parametrize("heat", [0.25, 0.5, 2.0, 4.0])
def test_a_temperature_before_it_changes_nothing(heat: float) -> None:
    """Scores scaled by a power of two scale exactly: the same set, 300 rows, no exception."""
    generator = np.random.default_rng(9)
    for scores in generator.normal(0, 3, (300, 50)):
        row = Row.dense(scores)
        warm = Temperature(heat).apply(row, None, NOWHERE)
        assert kept(TopNSigma(1.0), warm) == kept(TopNSigma(1.0), row)
        orders = [
            chain(Temperature(heat), TopNSigma(1.0)),
            chain(TopNSigma(1.0), Temperature(heat)),
        ]
        laws = [order.apply(row, (None, None), NOWHERE).dense_probabilities() for order in orders]
        assert np.abs(laws[0] - laws[1]).max() < 1e-12


def test_where_zero_is_does_not_matter() -> None:
    """Whole numbers shift exactly."""
    generator = np.random.default_rng(10)
    for scores in generator.integers(-20, 20, (300, 30)).astype(np.float64):
        for shift in (-64.0, 8.0):
            assert kept(TopNSigma(0.9), Row.dense(scores)) == kept(
                TopNSigma(0.9), Row.dense(scores + shift)
            )


def test_after_a_truncation_the_deviation_is_that_of_the_survivors() -> None:
    row = Row.dense([10.0, 9.0, 8.0, -90.0])
    assert kept(TopNSigma(0.3), row) == {0, 1, 2}
    shorter = TopK(3).apply(row, None, NOWHERE)
    assert kept(TopNSigma(0.3), shorter) == {0}


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0])
def test_impossible_values_are_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="top_n_sigma"):
        METHOD(value)


class SampleDeviation(TopNSigma):
    """n - 1 in the place of n."""

    def apply(self, row, state, context):
        finite = row.scores[row.scores > -np.inf]
        deviation = float(np.std(finite, ddof=1)) if finite.size > 1 else 0.0
        return row.keep(row.scores >= row.maximum - self.n * deviation)


class FromTheMean(TopNSigma):
    def apply(self, row, state, context):
        finite = row.scores[row.scores > -np.inf]
        floor = min(float(finite.mean() + self.n * np.std(finite)), row.maximum)
        return row.keep(row.scores >= floor)


class OfProbabilities(TopNSigma):
    def apply(self, row, state, context):
        law = row.probabilities()
        return row.keep(law >= law.max() - self.n * np.std(law))


@pytest.mark.parametrize("wrong", [SampleDeviation, FromTheMean, OfProbabilities])
def test_wrong_variants_are_rejected(wrong: type[TopNSigma]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong))

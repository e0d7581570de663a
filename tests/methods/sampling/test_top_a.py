"""Top-a against its definition on 10,048 rows to 1e-12; limits; wrong variants are rejected."""

from __future__ import annotations

import numpy as np
import pytest
from reference_laws import restricted, softmax
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.methods.sampling.epsilon import Epsilon
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.top_a import METHOD, TopA

NOWHERE = Context((0,), 1)


def reference(scores: list[float], a: float) -> list[float]:
    law = softmax(scores)
    return restricted(scores, {v for v, p in enumerate(law) if p >= a * max(law) ** 2})


def pair(kind: type[TopA] = TopA):
    def made(batch):
        a = pick(batch, 0.0137, 0.0519, 0.2033, 0.7013, 0.9973)
        return kind(a), lambda scores, _: reference(scores, a)

    return made


def kept(sampler: TopA | MinP, row: Row) -> list[int]:
    return sampler.apply(row, None, NOWHERE).token_ids().tolist()


def test_the_law() -> None:
    assert hold(pair()) > 4000


def test_limits() -> None:
    row = Row.of_probabilities([0.5, 0.3, 0.15, 0.05])
    assert TopA(0.0).apply(row, None, NOWHERE) is row
    assert kept(TopA(0.9), row) == [0, 1]  # the floor is 0.225
    assert kept(TopA(1.0), Row.dense([5.0, -np.inf])) == [0]  # a floor of exactly p_max
    assert kept(TopA(1.0), Row.dense(np.zeros(5))) == [0, 1, 2, 3, 4]


def test_it_is_min_p_of_a_times_the_highest_probability() -> None:
    generator = np.random.default_rng(8)
    for scores in generator.normal(0, 3, (300, 40)):
        row = Row.dense(scores)
        base = 0.3 * float(row.probabilities().max())
        assert kept(TopA(0.3), row) == kept(MinP(base), row)


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_impossible_values_are_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="top_a"):
        METHOD(value)


class Linear(TopA):
    def apply(self, row, state, context):
        return MinP(self.top_a).apply(row, state, context)


class Cubed(TopA):
    def apply(self, row, state, context):
        law = row.probabilities()
        return row.keep(law >= self.top_a * law.max() ** 3)


class Absolute(TopA):
    def apply(self, row, state, context):
        return Epsilon(self.top_a**2).apply(row, state, context)


@pytest.mark.parametrize("wrong", [Linear, Cubed, Absolute])
def test_wrong_variants_are_rejected(wrong: type[TopA]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong))

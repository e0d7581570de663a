"""Epsilon against its definition on 10,048 rows to 1e-12; limits; wrong variants are rejected."""

from __future__ import annotations

import numpy as np
import pytest
from reference_laws import restricted, softmax
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context, chain
from decodery.methods.sampling.epsilon import METHOD, Epsilon
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.temperature import Temperature

NOWHERE = Context((0,), 1)


def reference(scores: list[float], epsilon: float) -> list[float]:
    law = softmax(scores)
    kept = {v for v, p in enumerate(law) if p >= epsilon}
    return restricted(scores, kept or {v for v, p in enumerate(scores) if p == max(scores)})


def pair(kind: type[Epsilon] = Epsilon):
    def made(batch):
        epsilon = pick(batch, 0.000317, 0.0131, 0.0717, 0.313, 0.937)
        return kind(epsilon), lambda scores, _: reference(scores, epsilon)

    return made


def kept(sampler: Epsilon, row: Row) -> list[int]:
    return sampler.apply(row, None, NOWHERE).token_ids().tolist()


def test_the_law() -> None:
    assert hold(pair()) > 5000


def test_limits() -> None:
    row = Row.of_probabilities([0.1, 0.4, 0.1, 0.4])
    assert Epsilon(0.0).apply(row, None, NOWHERE) is row
    assert kept(Epsilon(0.05), row) == [0, 1, 2, 3]
    assert kept(Epsilon(0.2), row) == [1, 3]
    assert kept(Epsilon(0.999), row) == [1, 3]  # none reaches it: the tops stay, ties too
    assert kept(Epsilon(0.25), Row.dense(np.zeros(4))) == [0, 1, 2, 3]  # exactly on the floor


def test_twice_is_once_only_until_the_mass_returns() -> None:
    """What is kept is renormalised and so passes the floor again: a second time changes nothing."""
    generator = np.random.default_rng(3)
    for scores in generator.normal(0, 3, (200, 30)):
        once = Epsilon(0.03).apply(Row.dense(scores), None, NOWHERE)
        assert Epsilon(0.03).apply(once, None, NOWHERE) is once


def test_the_floor_is_absolute_so_the_order_with_temperature_matters() -> None:
    row = Row.of_probabilities([0.6, 0.3, 0.1])
    heat, cut = Temperature(3.0), Epsilon(0.2)
    hot_first, cut_first = chain(heat, cut), chain(cut, heat)
    assert hot_first.apply(row, (None, None), NOWHERE).token_ids().tolist() == [0, 1, 2]
    assert cut_first.apply(row, (None, None), NOWHERE).token_ids().tolist() == [0, 1]


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0])
def test_impossible_values_are_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="epsilon_cutoff"):
        METHOD(value)


class Strict(Epsilon):
    def apply(self, row, state, context):
        above = row.probabilities() > self.epsilon * (1 + 1e-9)
        above[row.scores == row.maximum] = True
        return row.keep(above)


class OfTheTop(Epsilon):
    def apply(self, row, state, context):
        return MinP(self.epsilon).apply(row, state, context)


class OneTop(Epsilon):
    def apply(self, row, state, context):
        above = row.probabilities() >= self.epsilon
        above[row.scores.argmax()] = True
        return row.keep(above)


def test_wrong_variants_are_rejected() -> None:
    for wrong in (OfTheTop, OneTop):
        with pytest.raises(AssertionError):
            hold(pair(wrong))
    assert kept(Strict(0.25), Row.dense(np.zeros(4))) == kept(Epsilon(0.25), Row.dense(np.zeros(4)))
    exact = Row.of_probabilities([0.5, 0.25, 0.25])
    assert kept(Strict(0.25), exact) != kept(Epsilon(0.25), exact)

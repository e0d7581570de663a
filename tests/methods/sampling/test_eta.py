"""Eta against its definition on 10,048 rows to 1e-12; limits; wrong variants are rejected."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference_laws import restricted, softmax
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.methods.sampling.epsilon import Epsilon
from decodery.methods.sampling.eta import METHOD, Eta

NOWHERE = Context((0,), 1)


def reference(scores: list[float], epsilon: float) -> list[float]:
    law = softmax(scores)
    entropy = -math.fsum(p * math.log(p) for p in law if p)
    floor = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
    kept = {v for v, p in enumerate(law) if p >= floor}
    return restricted(scores, kept or {v for v, z in enumerate(scores) if z == max(scores)})


def pair(kind: type[Eta] = Eta):
    def made(batch):
        epsilon = pick(batch, 0.000317, 0.0131, 0.0717, 0.313, 0.937)
        return kind(epsilon), lambda scores, _: reference(scores, epsilon)

    return made


def kept(sampler: Eta | Epsilon, row: Row) -> list[int]:
    return sampler.apply(row, None, NOWHERE).token_ids().tolist()


def test_the_law() -> None:
    assert hold(pair()) > 4000


def test_limits() -> None:
    row = Row.of_probabilities([0.7, 0.2, 0.06, 0.04])
    assert Eta(0.0).apply(row, None, NOWHERE) is row
    assert kept(Eta(1e-9), row) == [0, 1, 2, 3]
    sure = Row.of_probabilities([0.999, 0.0006, 0.0004])
    assert kept(Eta(5e-4), sure) == kept(Epsilon(5e-4), sure) == [0, 1]
    flat = Row.dense(np.zeros(1000))  # p = 0.001: the floor is 3e-5 where epsilon's would be 0.001
    assert len(kept(Eta(0.0011), flat)) == 1000
    assert kept(Epsilon(0.0011), Row.dense(np.append(np.zeros(999), 1e-9))) == [999]


def test_the_floor_sinks_from_half_the_surprise_of_epsilon_on() -> None:
    """eps > sqrt(eps) exp(-H) exactly where H > -ln(eps) / 2: below it eta is epsilon."""
    generator = np.random.default_rng(4)
    for scores in generator.normal(0, 2, (300, 40)):
        row = Row.dense(scores)
        for epsilon in (0.01, 0.1, 0.5):
            if row.entropy() <= -math.log(epsilon) / 2:
                assert kept(Eta(epsilon), row) == kept(Epsilon(epsilon), row)
            else:
                assert set(kept(Eta(epsilon), row)) >= set(kept(Epsilon(epsilon), row))


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0])
def test_impossible_values_are_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="eta_cutoff"):
        METHOD(value)


class WithoutRoot(Eta):
    def apply(self, row, state, context):
        floor = self.epsilon * math.exp(-row.entropy())
        return row.keep(row.scores >= min(row.maximum, row.log_normaliser + math.log(floor)))


class InBits(Eta):
    def apply(self, row, state, context):
        bits = row.entropy() / math.log(2)
        floor = min(self.epsilon, math.sqrt(self.epsilon) * math.exp(-bits))
        return row.keep(row.scores >= min(row.maximum, row.log_normaliser + math.log(floor)))


class Largest(Eta):
    """max in the place of min."""

    def apply(self, row, state, context):
        floor = max(self.epsilon, math.sqrt(self.epsilon) * math.exp(-row.entropy()))
        return row.keep(row.scores >= min(row.maximum, row.log_normaliser + math.log(floor)))


@pytest.mark.parametrize("wrong", [WithoutRoot, InBits, Largest])
def test_wrong_variants_are_rejected(wrong: type[Eta]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong))

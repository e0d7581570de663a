"""Dynamic temperature against its definition on 10,048 rows to 1e-12; limits; wrong variants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference_laws import softmax, temperature
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context, chain
from decodery.methods.sampling.dynamic_temperature import METHOD, DynamicTemperature
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK

NOWHERE = Context((0,), 1)


def reference(scores: list[float], centre: float, reach: float, exponent: float) -> list[float]:
    possible = [z for z in scores if z > -math.inf]
    if reach == 0:
        return temperature(scores, centre)
    if len(possible) == 1:
        return softmax(scores)
    entropy = -math.fsum(p * math.log(p) for p in softmax(possible) if p)
    low, high = max(0.0, centre - reach), centre + reach
    share = min(1.0, entropy / math.log(len(possible)))
    return temperature(scores, low + (high - low) * share**exponent)


def pair(kind: type[DynamicTemperature] = DynamicTemperature):
    def made(batch):
        values = (
            pick(batch, 0.7, 1.0, 1.5),
            pick(batch, 0.0, 0.25, 0.5, 0.6, 2.0),
            pick(batch, 1.0, 0.5, 2.0, 3.7),
        )
        return kind(*values), lambda scores, _: reference(scores, *values)

    return made


def test_the_law() -> None:
    """To 1e-10: a temperature near 0 multiplies the rounding of the entropy."""
    assert hold(pair(), 1e-10) > 5000


def test_the_heat_goes_from_low_to_high() -> None:
    sampler = DynamicTemperature(1.0, 0.6, 2.0)
    assert sampler.heat(Row.dense(np.zeros(9))) == pytest.approx(1.6)
    assert sampler.heat(Row.dense([0.0, -40.0])) == pytest.approx(0.4)
    half = Row.of_probabilities([0.5, 0.5, 0.0, 1e-300])  # ln 2 of ln 3
    assert sampler.heat(half) == pytest.approx(0.4 + 1.2 * (math.log(2) / math.log(3)) ** 2)
    heats = [
        DynamicTemperature(1.0, 0.5).heat(Row.dense(np.array([0.0, -1.0, -3.0]) / heat))
        for heat in (0.1, 0.5, 1.0, 4.0)
    ]
    assert heats == sorted(heats)


def test_limits() -> None:
    row = Row.of_probabilities([0.6, 0.3, 0.1])
    plain = Temperature(0.7).apply(row, None, NOWHERE).scores
    assert np.array_equal(DynamicTemperature(0.7, 0.0).apply(row, None, NOWHERE).scores, plain)
    alone = Row.dense([2.0, -np.inf])
    assert DynamicTemperature(1.0, 1.0).apply(alone, None, NOWHERE) is alone
    # The law of a row that is nearly sure is cut to the argmax when low is 0.
    cold = DynamicTemperature(0.5, 0.5).apply(Row.dense([0.0, -800.0]), None, NOWHERE)
    assert cold.dense_probabilities().tolist() == [1.0, 0.0]


def test_a_second_temperature_is_refused() -> None:
    for stages in (
        (Temperature(0.8), DynamicTemperature()),
        (DynamicTemperature(), Temperature(0.8)),
        (DynamicTemperature(), DynamicTemperature()),
    ):
        with pytest.raises(ParameterError, match="give its value as dynatemp_centre"):
            chain(*stages)
    assert chain(Temperature(1.0), DynamicTemperature()).tempers
    assert not DynamicTemperature(1.0, 0.0).tempers
    assert DynamicTemperature(0.0, 0.0).most_tokens == 1
    assert DynamicTemperature(0.0, 0.1).most_tokens is None


def test_after_a_truncation_the_survivors_are_counted() -> None:
    """llama.cpp's order: two equal survivors are fully uncertain among themselves."""
    row = Row.of_probabilities([0.4, 0.4, 0.1, 0.1])
    last = chain(TopK(2), DynamicTemperature(1.0, 0.5))
    shorter = TopK(2).apply(row, None, NOWHERE)
    assert DynamicTemperature(1.0, 0.5).heat(shorter) == pytest.approx(1.5)
    assert DynamicTemperature(1.0, 0.5).heat(row) < 1.5
    assert last.apply(row, (None, None), NOWHERE).probabilities() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    "values",
    [
        {"dynatemp_range": -0.1},
        {"dynatemp_centre": -1.0},
        {"dynatemp_exponent": 0.0},
        {"dynatemp_exponent": 11.0},
    ],
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(values))):
        METHOD(**values)


class WholeVocabulary(DynamicTemperature):
    """ln V in the place of ln n."""

    def heat(self, row):
        low, high = max(0.0, self.centre - self.reach), self.centre + self.reach
        share = row.entropy() / math.log(max(row.vocab_size, 2))
        return low + (high - low) * min(1.0, share) ** self.exponent


class NegativeLow(DynamicTemperature):
    """No max(0, .): |low| in its place."""

    def heat(self, row):
        if row.possible() == 1 or self.reach == 0:
            return super().heat(row)
        low, high = abs(self.centre - self.reach), self.centre + self.reach
        share = min(1.0, row.entropy() / math.log(row.possible()))
        return low + (high - low) * share**self.exponent


class NoExponent(DynamicTemperature):
    def heat(self, row):
        return DynamicTemperature(self.centre, self.reach).heat(row)


@pytest.mark.parametrize("wrong", [WholeVocabulary, NegativeLow, NoExponent])
def test_wrong_variants_are_rejected(wrong: type[DynamicTemperature]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong), 1e-10)

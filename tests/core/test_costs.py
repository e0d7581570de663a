"""The measured cost of forwards by rows: units, lines between, outliers, nothing before it."""

from __future__ import annotations

import pytest

from decodery.core.costs import PRIOR_SLOPE, StepCosts


def measured(costs: dict[int, float], times: int = 200) -> StepCosts:
    found = StepCosts()
    for _ in range(times):
        for rows, seconds in costs.items():
            found.note(rows, seconds)
    return found


def test_before_anything_is_measured_a_prior_stands():
    costs = StepCosts()
    assert costs.unit is None
    assert costs.of(1) == 1.0
    assert costs.of(5) == pytest.approx(1.0 + 4 * PRIOR_SLOPE)


def test_costs_are_in_forwards_of_one_row():
    costs = measured({1: 0.01, 2: 0.012, 8: 0.03})
    assert costs.unit == 0.01
    assert costs.of(2) == pytest.approx(1.2, abs=1e-3)
    assert costs.of(8) == pytest.approx(3.0, abs=1e-3)


def test_between_two_measured_numbers_of_rows_lies_a_line():
    costs = measured({1: 0.01, 3: 0.014, 7: 0.03})
    assert costs.of(5) == pytest.approx((1.4 + 3.0) / 2, abs=1e-2)


def test_beyond_the_last_one_its_slope_goes_on():
    costs = measured({1: 0.01, 3: 0.02})
    assert costs.of(5) == pytest.approx(3.0, abs=1e-2)
    assert measured({1: 0.01, 3: 0.0101}).of(5) == pytest.approx(1.01 + 2 * PRIOR_SLOPE, abs=1e-2)


def test_more_rows_never_cost_less():
    costs = measured({1: 0.01, 2: 0.02, 4: 0.015})
    known = [costs.of(rows) for rows in range(1, 12)]
    assert known == sorted(known)


def test_a_machine_that_slows_down_slows_both_sides():
    costs = measured({1: 0.01, 4: 0.015})
    for _ in range(50):
        costs.note(1, 0.03)
        costs.note(4, 0.045)
    assert costs.unit == 0.03
    assert costs.of(4) == pytest.approx(1.5, abs=0.1)


def test_one_outlier_moves_little():
    costs = measured({1: 0.01, 4: 0.015})
    costs.note(4, 10.0)
    assert costs.of(4) < 1.8
    costs.note(1, 10.0)
    assert costs.unit == 0.01


def test_without_a_unit_more_rows_say_nothing():
    costs = StepCosts()
    costs.note(4, 1.0)
    assert costs.of(4) == pytest.approx(1.0 + 3 * PRIOR_SLOPE)
    assert (costs.rows, costs.seconds) == (4, 1.0)

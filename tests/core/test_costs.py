"""The measured cost of forwards by rows: units, a common slope, outliers, nothing before it."""

from __future__ import annotations

import pytest

from decodery.core.costs import OWN, PRIOR_SLOPE, StepCosts


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
    costs = measured({1: 0.01, 4: 0.016})
    assert costs.unit == 0.01
    assert costs.of(4) == pytest.approx(1.6)


def test_rows_that_were_not_measured_have_the_common_slope():
    costs = measured({1: 0.01, 3: 0.014})
    assert costs.of(2) == pytest.approx(1.2)
    assert costs.of(9) == pytest.approx(2.6)


def test_a_number_of_rows_departs_as_far_as_it_was_measured():
    costs = measured({1: 0.01, 2: 0.012, 3: 0.014}, times=40)
    before = costs.of(8)
    assert before == pytest.approx(1.0 + 7 * 0.2)
    costs.note(8, 0.045)  # a slope of 0.5
    once = costs.of(8)
    for _ in range(OWN):
        costs.note(8, 0.045)
        costs.note(2, 0.012)
        costs.note(3, 0.014)
    assert before < once < costs.of(8) < 4.5
    assert costs.of(2) == pytest.approx(1.2, abs=1e-9)


def test_more_rows_never_cost_less():
    costs = measured({1: 0.01, 2: 0.02, 4: 0.012})
    known = [costs.of(rows) for rows in range(1, 12)]
    assert known == sorted(known)


def test_a_machine_that_slows_down_slows_both_sides():
    costs = measured({1: 0.01, 4: 0.015})
    for _ in range(50):
        costs.note(1, 0.03)
        costs.note(4, 0.045)
    assert costs.unit == 0.03
    assert costs.of(4) == pytest.approx(1.5)


def test_one_outlier_moves_nothing():
    costs = measured({1: 0.01, 4: 0.015})
    costs.note(4, 10.0)
    assert costs.of(4) == pytest.approx(1.5)
    costs.note(1, 10.0)
    assert costs.unit == 0.01


def test_a_forward_that_was_faster_than_one_row_costs_one_row():
    assert measured({1: 0.01, 2: 0.009}).of(2) == 1.0


def test_without_a_unit_more_rows_say_nothing():
    costs = StepCosts()
    costs.note(4, 1.0)
    assert costs.of(4) == pytest.approx(1.0 + 3 * PRIOR_SLOPE)
    assert (costs.rows, costs.seconds) == (4, 1.0)

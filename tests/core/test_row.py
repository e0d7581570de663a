"""Rows: what they refuse, read and make, whole and truncated, in both dtypes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.core.errors import RowError
from decodery.core.row import Row
from decodery.testing import row_bank

BANK = row_bank()


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.0, np.nan], "holds NaN"),
        ([np.nan, np.inf], "holds NaN"),
        ([0.0, np.inf], "holds plus infinity"),
        ([-np.inf, -np.inf], "allows no token"),
        ([], "allows no token"),
    ],
)
def test_a_row_that_is_no_distribution_is_refused(scores, reason):
    with pytest.raises(RowError, match=reason):
        Row(np.array(scores), len(scores))


def test_wrong_dtypes_and_shapes_are_refused():
    with pytest.raises(RowError, match="float16"):
        Row(np.zeros(2, dtype=np.float16), 2)
    with pytest.raises(RowError, match="do not fit 3"):
        Row(np.zeros(2), 3)
    with pytest.raises(RowError, match="do not fit 1"):
        Row(np.zeros(2), 3, np.array([0]))
    with pytest.raises(RowError, match="shape"):
        Row(np.zeros((2, 2)), 4)


def test_integers_become_float64_and_float32_stays():
    assert Row.dense([1, 2]).scores.dtype == np.float64
    assert Row.dense(np.zeros(2, dtype=np.float32)).scores.dtype == np.float32


def test_arrays_are_read_only_and_the_callers_array_is_not():
    scores = np.zeros(3)
    row = Row.dense(scores)
    with pytest.raises(ValueError, match="read-only"):
        row.scores[0] = 1.0
    assert scores.flags.writeable


def test_hand_computed_reading():
    row = Row.of_probabilities([0.5, 0.0, 0.25, 0.25])
    assert row.argmax() == 0
    assert row.possible() == 3
    assert row.log_probability(2) == pytest.approx(math.log(0.25), abs=1e-12)
    assert row.log_probability(1) == -np.inf
    assert row.entropy() == pytest.approx(1.5 * math.log(2), abs=1e-12)
    assert row.log_normaliser == pytest.approx(0.0, abs=1e-12)


def test_the_truncated_row_reads_like_the_whole_one():
    whole = Row.of_probabilities([0.5, 0.0, 0.25, 0.25])
    short = whole.keep(np.array([True, False, True, True]))
    assert len(short) == 3
    assert short.token_ids().tolist() == [0, 2, 3]
    assert short.position(2) == 1
    assert short.position(1) is None
    assert short.position(9) is None
    assert short.log_probability(1) == -np.inf
    np.testing.assert_allclose(short.dense_probabilities(), whole.dense_probabilities(), atol=1e-15)
    np.testing.assert_array_equal(short.dense_scores(), whole.dense_scores())


def test_keep_renormalises_and_nothing_returns():
    row = Row.of_probabilities([0.5, 0.3, 0.2]).keep(np.array([True, False, True]))
    np.testing.assert_allclose(row.dense_probabilities(), [5 / 7, 0, 2 / 7], atol=1e-15)
    again = row.adjusted(np.array([1]), 100.0)
    assert again.log_probability(1) == -np.inf


def test_keep_at_takes_positions_in_any_order():
    row = Row.of_probabilities([0.1, 0.2, 0.3, 0.4])
    assert row.keep_at(np.array([3, 1])).token_ids().tolist() == [1, 3]
    assert row.keep_at(np.array([3, 1])).keep_at(np.array([1])).token_ids().tolist() == [3]


def test_keeping_nothing_is_refused():
    with pytest.raises(RowError, match="no token"):
        Row.dense([0.0, 0.0]).keep(np.array([False, False]))


def test_adjusted_changes_only_what_is_named():
    row = Row.dense(np.zeros(4, dtype=np.float32))
    made = row.adjusted(np.array([1, 3]), np.array([-1.0, 2.0]))
    assert made.scores.tolist() == [0.0, -1.0, 0.0, 2.0]
    assert made.scores.dtype == np.float32
    assert row.scores.tolist() == [0.0] * 4


@pytest.mark.parametrize("change", [np.nan, np.inf])
def test_adjusted_refuses_what_is_no_number(change):
    with pytest.raises(RowError):
        Row.dense([0.0, 0.0]).adjusted(np.array([0]), change)


def test_ties_go_to_the_lowest_id():
    assert Row.dense([1.0, 2.0, 2.0]).argmax() == 1
    assert Row.dense([2.0, 1.0, 2.0]).keep(np.array([False, True, True])).argmax() == 2


@pytest.mark.parametrize("row", BANK, ids=repr)
def test_laws_of_every_row(row):
    probabilities = row.probabilities()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert (probabilities >= 0).all()
    assert row.dense_probabilities().shape == (row.vocab_size,)
    assert row.log_probability(row.argmax()) == pytest.approx(
        math.log(probabilities.max()), abs=1e-6
    )
    for uniform in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        assert row.log_probability(row.draw(uniform)) > -np.inf


def test_draw_is_the_inverse_cdf():
    row = Row.of_probabilities([0.25, 0.0, 0.5, 0.25])
    places = [(0.0, 0), (0.2499, 0), (0.25, 2), (0.7499, 2), (0.75, 3), (0.9999, 3)]
    assert [row.draw(uniform) for uniform, _ in places] == [token for _, token in places]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-50, 50) | st.just(-np.inf), min_size=1, max_size=8).filter(
        lambda scores: max(scores) > -np.inf
    ),
    st.floats(0, 1, exclude_max=True),
    st.floats(-20, 20),
)
def test_a_draw_is_possible_and_a_shift_changes_nothing(scores, uniform, shift):
    row, moved = Row.dense(scores), Row.dense(np.array(scores) + shift)
    assert scores[row.draw(uniform)] > -np.inf
    np.testing.assert_allclose(row.probabilities(), moved.probabilities(), atol=1e-12)
    assert row.log_normaliser + shift == pytest.approx(moved.log_normaliser, abs=1e-9)

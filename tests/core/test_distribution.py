"""The mathematics on probability vectors against closed forms and exact identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.core import distribution as d
from decodery.testing import random_probabilities
from decodery.testing.tables import KINDS

PAIRS = [
    (random_probabilities(np.random.default_rng([1, size, a]), size, one), other)
    for size in (1, 2, 5)
    for a, one in enumerate(KINDS)
    for other in [
        random_probabilities(np.random.default_rng([2, size, b]), size, kind)
        for b, kind in enumerate(KINDS)
    ]
]


def test_log_sum_exp():
    assert d.log_sum_exp(np.log([0.25, 0.75])) == pytest.approx(0.0, abs=1e-15)
    assert d.log_sum_exp(np.array([1000.0, 1000.0])) == pytest.approx(1000 + math.log(2))
    assert d.log_sum_exp(np.array([-np.inf, -np.inf])) == -np.inf
    assert d.log_sum_exp(np.array([])) == -np.inf


def test_a_long_float32_row_is_summed_in_float64():
    row = np.zeros(200_000, dtype=np.float32)
    assert d.log_sum_exp(row) == pytest.approx(math.log(200_000), abs=1e-12)
    assert d.softmax(row).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_divergences_are_consistent(target, draft):
    distance = d.total_variation(target, draft)
    assert 0 <= distance <= 1 + 1e-12
    assert distance == pytest.approx(1 - np.minimum(target, draft).sum(), abs=1e-12)
    assert d.total_variation(draft, target) == pytest.approx(distance, abs=1e-15)
    divergence = d.kl_divergence(target, draft)
    assert divergence >= 2 * distance**2 - 1e-9  # Pinsker
    assert d.kl_divergence(target, target) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_accept_or_residual_is_the_target(target, draft):
    """min(p, q) plus the rejected mass times the residual is p (arXiv:2211.17192, theorem 1)."""
    accepted = np.minimum(target, draft)
    law = accepted + (1 - accepted.sum()) * d.residual(target, draft)
    np.testing.assert_allclose(law, target, atol=1e-12)


def test_residual_of_equal_laws_is_the_law_itself():
    p = np.array([0.3, 0.7])
    np.testing.assert_array_equal(d.residual(p, p), p)
    np.testing.assert_array_equal(d.residual(p, p + 1e-15), p)


def test_kl_is_infinite_where_the_draft_lacks_mass():
    assert d.kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf


def test_inputs_do_not_change():
    p, q = np.array([0.3, 0.7]), np.array([0.6, 0.4])
    before = p.copy(), q.copy()
    for function in (d.residual, d.kl_divergence, d.total_variation):
        function(p, q)
    for function in (d.softmax, d.log_sum_exp, d.entropy):
        function(p)
    np.testing.assert_array_equal((p, q), before)


def test_entropy_bounds():
    assert d.entropy(np.eye(4)[0]) == 0.0
    assert d.entropy(np.full(4, 0.25)) == pytest.approx(math.log(4), abs=1e-15)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.just(0.0) | st.floats(1e-300, 1e10), min_size=1, max_size=10).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_inverse_cdf_never_returns_weight_zero(weights, uniform):
    assert weights[d.inverse_cdf(np.array(weights), uniform)] > 0


def test_inverse_cdf_at_the_very_end():
    weights = np.array([0.1] * 10 + [0.0])
    assert d.inverse_cdf(weights, float(np.nextafter(1.0, 0.0))) == 9

"""The ratio of two laws that contrasting blends share: its formula, its limits, its head."""

from __future__ import annotations

import numpy as np
import pytest

from decodery.core.row import Row
from decodery.methods.blending.contrasting import head, log_probabilities, ratio


def logs(*probabilities):
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float64))


def law(scores):
    return Row.dense(scores).probabilities()


@pytest.mark.parametrize("exponents", [(1, 1), (2.5, 1.5), (1, 0), (0, -1), (0.3, -0.7)], ids=str)
def test_the_quotient_of_powers(exponents):
    a, b = exponents
    generator = np.random.default_rng(0)
    for _ in range(50):
        own, other = generator.dirichlet(np.ones(6), size=2)
        wanted = own**a / other**b
        found = law(ratio(np.log(own), np.log(other), a, b))
        assert found == pytest.approx(wanted / wanted.sum(), abs=1e-13)


@pytest.mark.parametrize("exponents", [(1, 1), (1.5, 0.5), (3, 2)], ids=str)
def test_what_the_other_excludes_wins_as_in_the_limit(exponents):
    """The law with zeros is the limit of laws without, as the other's zeros come from above."""
    a, b = exponents
    own, other = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.0, 0.5, 0.0])
    found = law(ratio(np.log(own), logs(*other), a, b))
    assert found[[0, 2]].tolist() == [0, 0]
    near = np.where(other > 0, other, 1e-200)
    assert found == pytest.approx(law(ratio(np.log(own), np.log(near), a, b)), abs=1e-12)


def test_what_is_impossible_stays_impossible():
    own, other = logs(0.0, 0.5, 0.5, 0.0), logs(0.0, 0.5, 0.25, 0.25)
    for a, b in ((1, 1), (2, 1), (0.5, -0.5)):
        found = law(ratio(own, other, a, b))
        assert found[[0, 3]].tolist() == [0, 0]
        assert np.isfinite(found).all()
    product = law(ratio(logs(0.5, 0.5), logs(0.0, 1.0), 0.5, -0.5))
    assert product.tolist() == [0, 1]


def test_the_head_is_the_plausible_set():
    row = Row.of_probabilities([0.4, 0.04, 0.3, 0.26])
    assert head(row, 0.0) is row
    assert head(row, 0.1).token_ids().tolist() == [0, 1, 2, 3]
    assert head(row, 0.2).token_ids().tolist() == [0, 2, 3]
    assert head(row, 1.0).token_ids().tolist() == [0]
    assert np.exp(log_probabilities(head(row, 0.2))).sum() == pytest.approx(1)

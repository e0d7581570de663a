"""Laws: whole and over some ids they say the same, and what is made of them is by definition."""

from __future__ import annotations

import numpy as np
import pytest
from verifier_cases import pairs

from decodery.core.row import Row
from decodery.methods.speculative.law import Law, overlap

IDS = np.array([1, 4, 7])
SHORT = Law(np.array([0.5, 0.3, 0.2]), 9, IDS)
WHOLE = Law.dense(SHORT.whole())


def test_a_law_of_a_row_has_its_probabilities() -> None:
    row = Row.of_probabilities([0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(Law.of(row).whole(), [0.1, 0.4, 0.2, 0.3])
    kept = Law.of(row.keep_at(np.array([1, 3])))
    np.testing.assert_allclose(kept.whole(), [0.0, 4 / 7, 0.0, 3 / 7])
    assert kept[0] == kept[2] == 0.0
    assert kept.masses.dtype == np.float64


def test_dense_laws_are_normalised() -> None:
    np.testing.assert_allclose(Law.dense([1, 3]).masses, [0.25, 0.75])


def test_one_token_is_certain() -> None:
    law = Law.certain(2, 4)
    assert [law[token] for token in range(4)] == [0.0, 0.0, 1.0, 0.0]
    assert law.draw(0.999) == 2
    assert law.without(2) is None


def test_a_short_law_says_what_the_whole_one_says() -> None:
    assert [SHORT[token] for token in range(9)] == WHOLE.masses.tolist()
    assert SHORT.argmax() == WHOLE.argmax() == 1
    assert SHORT.top(2) == WHOLE.top(2) == [1, 4]
    for uniform in (0.0, 0.49, 0.51, 0.79, 0.81, 0.999):
        assert SHORT.draw(uniform) == WHOLE.draw(uniform)
    for tokens in ((1,), (4, 7), (0, 1), (8,)):
        short, whole = SHORT.without(*tokens), WHOLE.without(*tokens)
        assert short is not None
        assert whole is not None
        np.testing.assert_allclose(short.whole(), whole.whole())


def test_a_law_over_the_tokens_of_another() -> None:
    other = Law(np.array([0.25, 0.75]), 9, np.array([4, 8]))
    np.testing.assert_allclose(SHORT.over(other), [0.3, 0.0])
    np.testing.assert_allclose(other.over(SHORT), [0.0, 0.25, 0.0])
    np.testing.assert_allclose(other.over(WHOLE), other.whole())
    np.testing.assert_allclose(WHOLE.over(other), [0.3, 0.0])


def test_top_tokens_come_best_first_and_ties_by_id() -> None:
    law = Law.dense([0.2, 0.3, 0.0, 0.3, 0.2])
    assert law.argmax() == 1
    assert [law.top(count) for count in range(6)] == [
        [],
        [1],
        [1, 3],
        [1, 3, 0],
        [1, 3, 0, 4],
        [1, 3, 0, 4],  # the third token has no probability
    ]


def test_residual_and_overlap_are_by_their_definitions() -> None:
    for p, q in pairs(80):
        target, draft = Law.dense(p), Law.dense(q)
        over = np.maximum(p - q, 0.0)
        assert overlap(target, draft) == pytest.approx(1.0 - over.sum(), abs=1e-12)
        assert overlap(target, draft, 1.7) == pytest.approx(np.minimum(p, 1.7 * q).sum())
        if over.sum() > 1e-9:
            np.testing.assert_allclose(target.residual(draft).masses, over / over.sum(), atol=1e-9)
        half = np.maximum(p - 0.5 * q, 0.0)
        np.testing.assert_allclose(target.residual(draft, 0.5).masses, half / half.sum())
        np.testing.assert_array_equal(target.masses, p / p.sum())  # nothing was changed


def test_a_residual_of_rounding_is_the_law_itself() -> None:
    law = Law.dense([0.3, 0.7])
    assert law.residual(law) is law
    assert law.residual(Law.dense([0.3 + 1e-13, 0.7 - 1e-13])) is law


def test_without_is_the_law_given_that_they_do_not_come() -> None:
    law = Law.dense([0.1, 0.2, 0.3, 0.4])
    fewer = law.without(3, 0)
    assert fewer is not None
    np.testing.assert_allclose(fewer.masses, [0.0, 0.4, 0.6, 0.0])
    assert law.without(0, 1, 2, 3) is None


def test_without_keeps_its_digits_where_little_is_left() -> None:
    """1 - q(x) would be 0 here."""
    fewer = Law.dense([1.0, 3e-30, 1e-30]).without(0)
    assert fewer is not None
    np.testing.assert_allclose(fewer.masses, [0.0, 0.75, 0.25])


def test_nothing_of_no_mass_is_drawn() -> None:
    law = Law.dense([0.0, 1.0, 0.0])
    assert {law.draw(uniform) for uniform in (0.0, 0.5, 1.0 - 2**-53)} == {1}

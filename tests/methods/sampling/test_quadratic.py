"""Quadratic smoothing against its definition on 10,048 rows; the orders it keeps; limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference_laws import softmax
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.methods.sampling.quadratic import METHOD, Quadratic

NOWHERE = Context((0,), 1)


def reference(scores: list[float], f: float, c: float) -> list[float]:
    """As text-generation-webui writes it, maximum added back."""
    top, k, s = max(scores), (3 - c) / 2, (c - 1) / 2
    return softmax(
        [
            z if z == -math.inf else -(k * f * (z - top) ** 2) + s * f * (z - top) ** 3 + top
            for z in scores
        ]
    )


def pair(kind: type[Quadratic] = Quadratic):
    def made(batch):
        f = pick(batch, 0.05, 0.23, 0.7, 3.0)
        c = pick(batch, 1.0, 1.7, 3.0, 4.32, 10.0)
        return kind(f, c), lambda scores, _: reference(scores, f, c)

    return made


def law(sampler: Quadratic, scores: list[float]) -> np.ndarray:
    return sampler.apply(Row.dense(scores), None, NOWHERE).dense_probabilities()


def test_the_law() -> None:
    """To 1e-10: the reference adds the maximum back, which costs digits at scores of -10,000."""
    assert hold(pair(), 1e-10) > 5000


def test_two_tokens_by_hand() -> None:
    """d = -2: the parabola gives -4 f, the cubic -8 f, and c = 2 their mean."""
    for curve, power in ((1.0, 4.0), (3.0, 8.0), (2.0, 6.0)):
        odds = math.exp(-0.5 * power)
        assert law(Quadratic(0.5, curve), [1.0, -1.0])[1] == pytest.approx(odds / (1 + odds))


def test_a_difference_of_one_over_f_stays_with_the_parabola() -> None:
    """-f d^2 = d at d = -1 / f: nearer tokens rise, farther ones sink."""
    scores = [0.0, -1.0, -4.0, -7.0]  # f = 1 / 4
    before, after = np.log(law(Quadratic(0.25), scores)), np.array(scores)
    assert before[2] - before[0] == pytest.approx(after[2] - after[0])
    assert before[1] - before[0] > after[1] - after[0]
    assert before[3] - before[0] < after[3] - after[0]


@pytest.mark.parametrize("curve", [1.0, 2.0, 3.0])
def test_up_to_three_the_order_of_tokens_stays(curve: float) -> None:
    generator = np.random.default_rng(11)
    assert Quadratic(0.3, curve).keeps_argmax
    for scores in generator.normal(0, 3, (200, 30)):
        result = Quadratic(0.3, curve).apply(Row.dense(scores), None, NOWHERE)
        assert np.argsort(result.scores).tolist() == np.argsort(scores).tolist()


def test_above_three_a_token_below_the_top_rises_above_it() -> None:
    sampler = Quadratic(0.5, 9.0)
    assert not sampler.keeps_argmax
    assert law(sampler, [0.0, -0.4]).argmax() == 1


def test_extremes_stay_finite() -> None:
    for scores in ([3e38, -3e38, 0.0], [1e-45, 0.0, -1e-45], [0.0, -np.inf, -1.0]):
        row = Row.dense(np.array(scores, np.float32))
        for curve in (1.0, 2.0, 10.0):
            result = Quadratic(100.0, curve).apply(row, None, NOWHERE)
            assert math.isfinite(result.maximum)
            assert not (result.scores[row.scores == -np.inf] > -np.inf).any()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"smoothing_factor": 0.0}, "smoothing_factor"),
        ({"smoothing_factor": -1.0}, "smoothing_factor"),
        ({"smoothing_curve": 0.5}, "smoothing_curve"),
        ({"smoothing_curve": 11.0}, "smoothing_curve"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        METHOD(**values)


class NoCubic(Quadratic):
    def apply(self, row, state, context):
        return Quadratic(self.factor, 1.0).apply(row, state, context)


class SignOfTheCubic(Quadratic):
    """+ s |d|^3 in the place of - s |d|^3, which lifts the far tail above the top."""

    def apply(self, row, state, context):
        below = np.maximum(row.scores - row.maximum, -1e4)
        k, s = (3 - self.curve) / 2, (self.curve - 1) / 2
        scores = -self.factor * (k * below**2 + s * below**3)
        return row.with_scores(np.where(row.scores > -np.inf, scores, -np.inf))


class FromTheMean(Quadratic):
    def apply(self, row, state, context):
        finite = row.scores > -np.inf
        away = np.where(finite, row.scores - row.scores[finite].mean(), 0.0)
        return row.with_scores(np.where(finite, -self.factor * away**2, -np.inf))


@pytest.mark.parametrize("wrong", [NoCubic, SignOfTheCubic, FromTheMean])
def test_wrong_variants_are_rejected(wrong: type[Quadratic]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong), 1e-10)

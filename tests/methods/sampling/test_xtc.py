"""XTC: what it removes, on 10,048 rows; how often, by chi-square; limits; wrong variants.

The chi-square draws 20,000 tokens with fixed seeds against (1 - P) p + P p', alpha 1e-4. A law that
moves 0.02 of mass between two tokens of probability 0.2 has noncentrality 80 and is found with
probability above 0.99 at 5 degrees of freedom (asserted below).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from reference_laws import restricted, softmax
from reference_rows import hold, pick
from scipy import stats

from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Context, chain
from decodery.core.source import Policy
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.xtc import METHOD, Xtc
from decodery.testing import LawBroken, TableModel, enumerate_law, require_law

NOWHERE = Context((0,), 1)
ALPHA = 1e-4
DRAWS = 20_000
LAW = [0.3, 0.25, 0.2, 0.15, 0.07, 0.03]


def without_tops(scores: list[float], threshold: float) -> list[float]:
    law = softmax(scores)
    tops = {v for v, p in enumerate(law) if p >= threshold}
    if len(tops) < 2:
        return law
    least = min(tops, key=lambda v: (law[v], v))
    return restricted(scores, set(range(len(law))) - tops | {least})


def certain(kind: type[Xtc] = Xtc):
    """Applied with probability one."""

    def pair(batch):
        threshold = pick(batch, 0.0137, 0.0519, 0.1033, 0.2517, 0.4931)
        return kind(1.0, threshold), lambda scores, _: without_tops(scores, threshold)

    return pair


def kept(sampler: Xtc, row: Row, at: Context = NOWHERE) -> list[int]:
    return sampler.apply(row, None, at).token_ids().tolist()


def test_what_is_removed() -> None:
    assert hold(certain()) > 3000


def test_limits() -> None:
    row = Row.of_probabilities([0.5, 0.3, 0.15, 0.05])
    assert Xtc(0.0).apply(row, None, NOWHERE) is row
    assert kept(Xtc(1.0, 0.2), row) == [1, 2, 3]
    assert kept(Xtc(1.0, 0.4), row) == [0, 1, 2, 3]  # one top alone stays
    assert kept(Xtc(1.0, 1e-9), row) == [3]
    assert kept(Xtc(1.0, 0.5), Row.of_probabilities([0.5, 0.5])) == [0]  # ties: the lowest id stays
    assert kept(Xtc(1.0, 0.1), Row.dense(np.zeros(5))) == [0]
    assert kept(Xtc(1.0, 0.1), Row.dense([1.0, -np.inf])) == [0, 1]


def draws(sampler: Xtc, seed: int = 1) -> Counter[int]:
    """Tokens drawn at 20,000 positions with the decoder's own noise."""
    row, stream = Row.of_probabilities(LAW), Stream(seed)
    counts: Counter[int] = Counter()
    for position in range(1, DRAWS + 1):
        at = Context(range(position), 1, stream=stream)
        made = sampler.apply(row, None, at)
        counts[made.draw(stream.uniform(0, position, "token"))] += 1
    return counts


def average(probability: float, threshold: float) -> dict[int, float]:
    logs = np.log(LAW).tolist()
    mixed = (1 - probability) * np.array(LAW) + probability * np.array(
        without_tops(logs, threshold)
    )
    return dict(enumerate(mixed.tolist()))


@pytest.mark.parametrize(("probability", "threshold"), [(0.5, 0.1), (0.2, 0.18), (1.0, 0.1)])
def test_draws_follow_the_average_law(probability: float, threshold: float) -> None:
    counts = draws(Xtc(probability, threshold))
    require_law(counts, average(probability, threshold), ALPHA, "xtc")


class SharedNoise(Xtc):
    """The toss is the number that draws the token."""

    def apply(self, row, state, context):
        if context.uniform("token") >= self.probability:
            return row
        return Xtc(1.0, self.threshold).apply(row, state, context)


class OneToss(Xtc):
    """One toss for all positions."""

    def apply(self, row, state, context):
        if context.stream.uniform(0, 0, "xtc") >= self.probability:
            return row
        return Xtc(1.0, self.threshold).apply(row, state, context)


class Seldom(Xtc):
    def apply(self, row, state, context):
        return Xtc(self.probability**2, self.threshold).apply(row, state, context)


@pytest.mark.parametrize("wrong", [SharedNoise, OneToss, Seldom])
def test_wrong_tosses_are_rejected(wrong: type[Xtc]) -> None:
    with pytest.raises(LawBroken, match="does not follow"):
        require_law(draws(wrong(0.5, 0.1)), average(0.5, 0.1), ALPHA, "mutant")


def test_the_stated_power() -> None:
    noncentrality = DRAWS * 2 * 0.02**2 / 0.2
    assert stats.ncx2.sf(stats.chi2.isf(ALPHA, 5), 5, noncentrality) > 0.99


def test_the_mean_over_noise_is_the_product_of_average_laws() -> None:
    """Two positions toss apart: 1,000 seeds, each path within five standard errors."""
    table = TableModel(lambda _: LAW[:3], 3, 0)
    sampler = Xtc(0.5, 0.2)
    laws = [
        enumerate_law(Policy(table, chain(sampler)), (0,), 2, stream=Stream(seed))
        for seed in range(1000)
    ]
    single = 0.5 * np.array(softmax(np.log(LAW[:3]).tolist())) + 0.5 * np.array(
        without_tops(np.log(LAW[:3]).tolist(), 0.2)
    )
    for first in range(3):
        for second in range(3):
            seen = np.array([law.get((first, second), 0.0) for law in laws])
            error = seen.std() / np.sqrt(len(seen))
            assert abs(seen.mean() - single[first] * single[second]) < 5 * error


def test_after_a_cut_to_one_token_it_is_refused() -> None:
    with pytest.raises(ParameterError, match="xtc needs two tokens"):
        chain(Temperature(0.0), Xtc())
    assert chain(Xtc(), Temperature(0.0)).stages
    assert chain(Temperature(0.0), Xtc(0.0)).stages


def test_branches_toss_apart_and_again_the_same() -> None:
    row, stream = Row.of_probabilities(LAW), Stream(3)
    sets = [
        [
            kept(Xtc(0.5, 0.1), row, Context((0,) * 4, 1, stream=stream, sequence=sequence))
            for sequence in range(40)
        ]
        for _ in range(2)
    ]
    assert sets[0] == sets[1]
    assert {len(tokens) for tokens in sets[0]} == {3, 6}


class Strict(Xtc):
    """All tops go, the least probable too."""

    def apply(self, row, state, context):
        tops = row.probabilities() >= self.threshold
        return row if tops.sum() < 2 or tops.all() else row.keep(~tops)


class KeepsTheMost(Xtc):
    def apply(self, row, state, context):
        tops = row.probabilities() >= self.threshold
        tops[row.scores.argmax()] = False
        return row.keep(~tops)


class AlsoAlone(Xtc):
    """Removes a single top too."""

    def apply(self, row, state, context):
        tops = row.probabilities() >= self.threshold
        if row.possible() > 1 and tops.sum() == 1:
            return row.keep(~tops)
        return super().apply(row, state, context)


@pytest.mark.parametrize("wrong", [Strict, KeepsTheMost, AlsoAlone])
def test_wrong_variants_are_rejected(wrong: type[Xtc]) -> None:
    with pytest.raises(AssertionError):
        hold(certain(wrong))


@pytest.mark.parametrize(
    "values",
    [
        {"xtc_probability": 1.1},
        {"xtc_probability": -0.1},
        {"xtc_threshold": 0.0},
        {"xtc_threshold": 0.51},
    ],
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(values))):
        METHOD(**values)

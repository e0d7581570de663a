"""Adaptive-p against the engine's formulas on 10,048 rows and along paths; it reaches its target.

The engine keeps two decayed sums; here they are the reference for the one mean that the sampler
keeps. The steering test draws 6,000 tokens with a fixed seed; the standard error of the mean of
drawn probabilities is below 0.003 there, and the bound is 0.02.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference_laws import softmax
from reference_rows import EXACT, hold, pick

from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, chain
from decodery.core.source import Policy
from decodery.methods.sampling.adaptive_p import METHOD, AdaptiveP
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.testing import TableModel, enumerate_law

NOWHERE = Context((0,), 1)


def bent(scores: list[float], target: float) -> list[float]:
    """The engine's transform: a peak of 5 at the target, width 0.3, sharpness 10."""
    distances = [abs((p - target) * (1 / 0.3)) for p in softmax(scores)]
    return softmax(
        [
            z if z == -math.inf else 5 - 10 * d * d / (1 + d)
            for z, d in zip(scores, distances, strict=True)
        ]
    )


class Engine:
    """The engine's state: sums of p_i decay^age and of decay^age, started as if t had been met."""

    def __init__(self, target: float, decay: float) -> None:
        self.target, self.decay = target, decay
        self.sum, self.weight = target / (1 - decay), 1 / (1 - decay)

    def law(self, scores: list[float]) -> list[float]:
        return bent(scores, min(1.0, max(0.0, 2 * self.target - self.sum / self.weight)))

    def accept(self, probability: float) -> None:
        self.sum = probability + self.decay * self.sum
        self.weight = 1 + self.decay * self.weight


def first_step(kind: type[AdaptiveP] = AdaptiveP):
    def pair(batch):
        target = pick(batch, 0.0, 0.1, 0.37, 0.55, 0.9, 1.0)
        return kind(target), lambda scores, _: bent(scores, target)

    return pair


def worst_gap(kind: type[AdaptiveP]) -> float:
    """The largest difference from the engine along 60 paths of 40 random rows."""
    worst = 0.0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        target, decay = generator.uniform(0, 1), (0.0, 0.5, 0.9, 0.99)[seed % 4]
        sampler, engine = kind(target, decay), Engine(target, decay)
        state = sampler.start(NOWHERE)
        for _ in range(40):
            row = Row.dense(generator.normal(0, 2, 7))
            got = sampler.apply(row, state, NOWHERE)
            gap = np.abs(got.dense_probabilities() - engine.law(row.scores.tolist())).max()
            worst = max(worst, float(gap))
            token = got.draw(generator.random())
            state = sampler.advance(state, token, row, NOWHERE)
            engine.accept(softmax(row.scores.tolist())[token])
    return worst


def test_the_first_step() -> None:
    assert hold(first_step()) > 6000


def test_along_paths() -> None:
    assert worst_gap(AdaptiveP) < EXACT


def test_the_peak_is_at_the_target_and_both_sides_fall() -> None:
    row = Row.of_probabilities([0.4, 0.3, 0.2, 0.1])
    law = AdaptiveP(0.2).apply(row, 0.2, NOWHERE).probabilities()
    assert law.argmax() == 2
    assert law[1] == pytest.approx(law[3])
    assert law[1] / law[2] == pytest.approx(math.exp(-10 / 9 / (1 + 1 / 3)))


def test_the_target_leans_against_the_past_and_is_clipped() -> None:
    sampler = AdaptiveP(0.6, 0.5)
    assert sampler.adapted_target(0.6) == pytest.approx(0.6)
    assert sampler.adapted_target(0.4) == pytest.approx(0.8)
    assert sampler.adapted_target(0.1) == 1.0
    assert AdaptiveP(0.2).adapted_target(0.9) == 0.0
    row = Row.of_probabilities([0.9, 0.1])
    assert sampler.advance(0.6, 0, row, NOWHERE) == pytest.approx(0.75)
    assert sampler.advance(0.6, 1, row, NOWHERE) == pytest.approx(0.35)


def test_without_decay_only_the_last_token_counts() -> None:
    row = Row.of_probabilities([0.7, 0.3])
    assert AdaptiveP(0.5, 0.0).advance(0.1, 1, row, NOWHERE) == pytest.approx(0.3)


@pytest.mark.parametrize("before", [(), (TopK(2),)], ids=["alone", "after top_k"])
def test_on_the_tree_each_branch_has_its_own_past(before: tuple[TopK, ...]) -> None:
    """Enumerated against the engine run along every path; the row seen is the one it is given."""
    table = TableModel.random(3, order=1, seed=5)
    law = enumerate_law(Policy(table, chain(*before, AdaptiveP(0.4, 0.7))), (0,), 4)

    def by_hand(path: tuple[int, ...]) -> float:
        engine, product = Engine(0.4, 0.7), 1.0
        for place, token in enumerate(path):
            row = Row.dense(table.scores([0, *path[:place]]))
            for stage in before:
                row = stage.apply(row, None, NOWHERE)
            scores = row.dense_scores().tolist()
            product *= engine.law(scores)[token]
            engine.accept(softmax(scores)[token])
        return product

    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    for path, probability in law.items():
        assert probability == pytest.approx(by_hand(path), abs=1e-12)


def drawn_mean(kind: type[AdaptiveP], target: float) -> float:
    """The mean probability of 6,000 tokens drawn from one row of six tokens."""
    row = Row.of_probabilities([0.45, 0.25, 0.15, 0.08, 0.05, 0.02])
    sampler, stream = kind(target), Stream(7)
    state, total, law = sampler.start(NOWHERE), 0.0, row.probabilities()
    for place in range(6000):
        token = sampler.apply(row, state, NOWHERE).draw(stream.uniform(0, place, "token"))
        state = sampler.advance(state, token, row, NOWHERE)
        total += law[token]
    return total / 6000


class Frozen(AdaptiveP):
    """The target never adapts."""

    def adapted_target(self, mean):
        return self.target


class WithThePast(AdaptiveP):
    """The mean of the past in the place of its mirror image."""

    def adapted_target(self, mean):
        return min(1.0, max(0.0, mean))


class OfTheBentRow(AdaptiveP):
    """The state reads the transformed law in the place of the original."""

    def advance(self, state, token, row, context):
        return super().advance(state, token, self.apply(row, state, context), context)


class FromZero(AdaptiveP):
    """An empty past: the first target is 2 t."""

    def start(self, context):
        return 0.0


class NotClipped(AdaptiveP):
    def adapted_target(self, mean):
        return 2 * self.target - mean


@pytest.mark.parametrize("target", [0.2, 0.3])
def test_it_meets_its_target(target: float) -> None:
    assert abs(drawn_mean(AdaptiveP, target) - target) < 0.02
    assert abs(drawn_mean(Frozen, target) - target) > 0.03


@pytest.mark.parametrize("wrong", [Frozen, WithThePast, OfTheBentRow, FromZero, NotClipped])
def test_wrong_variants_are_rejected(wrong: type[AdaptiveP]) -> None:
    assert worst_gap(wrong) > 1e-3


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((AdaptiveP(), TopK(3)), "put adaptive_p last"),
        ((AdaptiveP(), Temperature(2.0)), "put adaptive_p last"),
        ((Temperature(0.0), AdaptiveP()), "no effect"),
    ],
)
def test_chains_that_undo_it_are_refused(stages: tuple[Sampler, ...], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        chain(*stages)


@pytest.mark.parametrize(
    "values",
    [
        {"adaptive_target": -1.0},
        {"adaptive_target": 1.1},
        {"adaptive_decay": 0.999},
        {"adaptive_decay": -0.1},
    ],
)
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=next(iter(values))):
        METHOD(**values)

"""Laws of the samplers on generated rows: what they may never do, and how they compose."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, chain
from decodery.methods.sampling.allowed_tokens import AllowedTokens
from decodery.methods.sampling.banned_tokens import BannedTokens
from decodery.methods.sampling.frequency_penalty import FrequencyPenalty
from decodery.methods.sampling.logit_bias import LogitBias
from decodery.methods.sampling.min_p import MinP
from decodery.methods.sampling.min_tokens import MinTokens
from decodery.methods.sampling.no_repeat_ngram import NoRepeatNgram
from decodery.methods.sampling.presence_penalty import PresencePenalty
from decodery.methods.sampling.repetition_penalty import RepetitionPenalty
from decodery.methods.sampling.temperature import Temperature
from decodery.methods.sampling.top_k import TopK
from decodery.methods.sampling.top_p import TopP
from decodery.methods.sampling.typical import Typical

NOWHERE = Context((0,), 1)
PATH = Context((0, 3, 1, 3, 1, 0), 2, eos_ids=frozenset({2}))
TRUNCATIONS: list[Sampler] = [
    TopK(3),
    TopP(0.7),
    MinP(0.2),
    MinP(0.9, keep=3),
    Typical(0.6),
    Temperature(0.0),
]
RESHAPERS: list[Sampler] = [
    Temperature(0.3),
    Temperature(4.0),
    RepetitionPenalty(1.4),
    PresencePenalty(0.6),
    FrequencyPenalty(-0.4),
    LogitBias(((1, 5.0), (3, -2.0))),
]
MASKS: list[Sampler] = [
    NoRepeatNgram(2),
    MinTokens(9),
    BannedTokens((1, 2)),
    AllowedTokens((0, 2, 3, 4)),
]
ALL = [*TRUNCATIONS, *RESHAPERS, *MASKS]


@st.composite
def rows(draw: Any) -> Row:
    """Rows of 6 to 40 tokens, some tied, some impossible; token 4 is always possible."""
    size = draw(st.integers(6, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 3, size)
    if draw(st.booleans()):
        scores = np.round(scores)
    scores[generator.random(size) < 0.2] = -np.inf
    scores[4] = generator.normal()
    return Row.dense(scores.astype(draw(st.sampled_from([np.float32, np.float64]))))


def same_law(left: Row, right: Row, tolerance: float = 1e-12) -> bool:
    gap = np.abs(left.dense_probabilities() - right.dense_probabilities()).max()
    return bool(gap < tolerance)


@pytest.mark.parametrize("sampler", ALL, ids=repr)
@given(row=rows())
@settings(max_examples=15, deadline=None)
def test_nothing_impossible_comes_back_and_nothing_is_changed_in_place(
    sampler: Sampler, row: Row
) -> None:
    before = row.scores.copy()
    result = sampler.apply(row, None, PATH)
    assert np.array_equal(row.scores, before)
    assert not ((result.dense_scores() > -np.inf) & (before == -np.inf)).any()
    assert result.scores.dtype == row.scores.dtype
    again = sampler.apply(row, None, PATH)
    assert np.array_equal(result.dense_scores(), again.dense_scores())


@pytest.mark.parametrize("sampler", ALL, ids=repr)
@given(row=rows())
@settings(max_examples=15, deadline=None)
def test_a_truncated_row_is_the_same_row(sampler: Sampler, row: Row) -> None:
    short = row.keep(row.scores > -np.inf)
    left, right = sampler.apply(row, None, PATH), sampler.apply(short, None, PATH)
    assert np.array_equal(left.dense_scores(), right.dense_scores())


@pytest.mark.parametrize("sampler", ALL, ids=repr)
@given(row=rows())
@settings(max_examples=15, deadline=None)
def test_the_declared_argmax_stays(sampler: Sampler, row: Row) -> None:
    if not sampler.keeps_argmax:
        return
    result = sampler.apply(row, None, PATH)
    assert result.log_probability(row.argmax()) == pytest.approx(
        float(result.scores.max()) - result.log_normaliser
    )


@pytest.mark.parametrize("sampler", [*TRUNCATIONS, Temperature(0.3)], ids=repr)
@given(row=rows(), shift=st.integers(-64, 64))
@settings(max_examples=15, deadline=None)
def test_a_shift_of_all_scores_does_not_matter(sampler: Sampler, row: Row, shift: int) -> None:
    exact = Row.dense(np.round(row.scores.astype(np.float64) * 1024) / 1024)  # shifts are exact
    moved = exact.with_scores(exact.scores + shift)
    left, right = sampler.apply(exact, None, PATH), sampler.apply(moved, None, PATH)
    assert same_law(left, right, 1e-9)


@pytest.mark.parametrize("sampler", [TopK(3), MinP(0.2), TopP(0.7), Typical(0.6)], ids=repr)
def test_renaming_the_vocabulary_does_not_matter(sampler: Sampler) -> None:
    generator = np.random.default_rng(5)
    for _ in range(200):
        scores = generator.normal(0, 2, 30)
        order = generator.permutation(30)
        straight = sampler.apply(Row.dense(scores), None, NOWHERE).dense_probabilities()
        renamed = sampler.apply(Row.dense(scores[order]), None, NOWHERE).dense_probabilities()
        assert np.allclose(straight[order], renamed, atol=1e-12)


@pytest.mark.parametrize("sampler", [TopK(3), MinP(0.2), MinP(0.9, 3), *MASKS], ids=repr)
@given(row=rows())
@settings(max_examples=15, deadline=None)
def test_twice_is_once(sampler: Sampler, row: Row) -> None:
    once = sampler.apply(row, None, PATH)
    assert np.array_equal(once.dense_scores(), sampler.apply(once, None, PATH).dense_scores())


def kept(sampler: Sampler, row: Row) -> set[int]:
    result = sampler.apply(row, None, NOWHERE)
    return set(result.token_ids()[result.scores > -np.inf].tolist())


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("base", [0.05, 0.1, 0.3])
def test_min_p_after_temperature_is_its_power_before(heat: float, base: float) -> None:
    """Base b after T keeps what b^T keeps before T: 1000 rows of 50 tokens, no exception."""
    generator = np.random.default_rng(11)
    after = chain(Temperature(heat), MinP(base))
    before = MinP(base**heat)
    for scores in generator.normal(0, 3, (1000, 50)):
        row = Row.dense(scores)
        warm = after.apply(row, (None, None), NOWHERE)
        assert set(warm.token_ids().tolist()) == kept(before, row)


def test_min_p_oracles() -> None:
    """Monotone in b, floor on every kept token, kept mass, entropy, composition with top-k."""
    generator = np.random.default_rng(12)
    for scores in generator.normal(0, 3, (300, 50)):
        row = Row.dense(scores)
        sets = [kept(MinP(base), row) for base in (0.0, 0.01, 0.1, 0.5, 1.0)]
        assert all(larger >= smaller for larger, smaller in itertools.pairwise(sets))
        assert sets[-1] == {row.argmax()}
        result = MinP(0.1).apply(row, None, NOWHERE)
        law = result.probabilities()
        assert law.min() >= 0.1 * law.max() * (1 - 1e-12)
        assert law.min() >= 0.1 / len(result) * (1 - 1e-12)
        whole = row.dense_probabilities()
        assert whole[result.token_ids()].sum() >= whole.max()
        assert result.entropy() <= row.entropy() + 1e-12
        for other in (TopK(5), TopP(0.8)):
            both = chain(other, MinP(0.1)).apply(row, (None, None), NOWHERE)
            assert set(both.token_ids().tolist()) == kept(other, row) & kept(MinP(0.1), row)


def test_top_p_keeps_the_smallest_head_that_reaches_p_on_long_rows() -> None:
    """The prefilter loses nothing: 30 rows of 5,000 tokens, from peaked to flat, full sort."""
    generator = np.random.default_rng(13)
    for index in range(30):
        row = Row.dense(generator.normal(0, 0.01 * 1.3**index, 5000))
        law = row.dense_probabilities()
        order = np.argsort(-row.scores, kind="stable")
        for p in (0.001, 0.3, 0.95, 0.9999):
            count = int(np.searchsorted(np.cumsum(law[order]), p)) + 1
            assert kept(TopP(p), row) == set(order[:count].tolist())


def test_typical_keeps_the_nearest_to_the_entropy_on_long_rows() -> None:
    """The prefilter loses nothing: 30 rows of 5,000 tokens, from peaked to flat, full sort."""
    generator = np.random.default_rng(14)
    for index in range(30):
        row = Row.dense(generator.normal(0, 0.01 * 1.3**index, 5000))
        law = row.dense_probabilities()
        surprise = row.log_normaliser - row.scores
        deviation = np.abs(surprise - (law * surprise).sum())
        order = np.argsort(deviation, kind="stable")
        for mass in (0.001, 0.3, 0.95, 0.9999):
            count = int(np.searchsorted(np.cumsum(law[order]), mass)) + 1
            assert kept(Typical(mass), row) == set(order[:count].tolist())


def test_penalties_follow_their_own_branch() -> None:
    """The history is the path's: two branches of one prompt are penalised differently."""
    row = Row.dense(np.zeros(3))
    left, right = Context((0, 1), 1), Context((0, 2), 1)
    for sampler in (PresencePenalty(1.0), FrequencyPenalty(1.0)):
        assert sampler.apply(row, None, left).scores.tolist() == [0.0, -1.0, 0.0]
        assert sampler.apply(row, None, right).scores.tolist() == [0.0, 0.0, -1.0]


def test_a_window_longer_than_the_history_is_all_of_it() -> None:
    row = Row.dense([1.0, 1.0, 1.0, 1.0])
    everything = RepetitionPenalty(2.0).apply(row, None, PATH)
    assert np.array_equal(
        RepetitionPenalty(2.0, window=1000).apply(row, None, PATH).scores, everything.scores
    )


def test_extreme_scores_stay_finite_under_a_strong_penalty() -> None:
    row = Row.dense(np.array([1e-3, -1e30, 1.0, 0.0], np.float32))
    result = RepetitionPenalty(100.0).apply(row, None, PATH)
    assert math.isfinite(result.maximum)

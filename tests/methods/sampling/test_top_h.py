"""Top-h against its definition on 10,048 rows and on long ones; limits; wrong variants rejected."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference_laws import restricted, softmax
from reference_rows import hold, pick

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context
from decodery.methods.sampling.top_h import METHOD, TopH

NOWHERE = Context((0,), 1)


def head_of(scores: list[float], share: float) -> set[int]:
    """Tokens in order of probability while the sum of -p ln p stays within the share."""
    order = sorted(range(len(scores)), key=lambda v: (-scores[v], v))[:100]
    law = softmax([scores[v] for v in order])
    terms = [-p * math.log(p) if p else 0.0 for p in law]
    bound = share * math.fsum(terms) * (1 + 1e-12)
    count = 1
    while count < len(order) and math.fsum(terms[: count + 1]) <= bound:
        count += 1
    return set(order[:count])


def pair(kind: type[TopH] = TopH):
    def made(batch):
        share = pick(batch, 0.0517, 0.2173, 0.4, 0.7319, 0.9531, 1.0)
        return kind(share), lambda scores, _: restricted(scores, head_of(scores, share))

    return made


def kept(sampler: TopH, row: Row) -> list[int]:
    return sampler.apply(row, None, NOWHERE).token_ids().tolist()


def test_the_law() -> None:
    assert hold(pair()) > 5000


def test_long_rows_with_ties_at_the_hundredth() -> None:
    """5,000 tokens, from peaked to flat, some rounded: only the 100 first count, lowest ids."""
    generator = np.random.default_rng(5)
    for index in range(24):
        scores = generator.normal(0, 0.02 * 1.4**index, 5000)
        scores = np.round(scores, 1) if index % 2 else scores
        for share in (0.1, 0.4, 0.9, 1.0):
            row = Row.dense(scores)
            assert set(kept(TopH(share), row)) == head_of(scores.tolist(), share)


def test_limits() -> None:
    row = Row.of_probabilities([0.1, 0.5, 0.15, 0.25])
    assert kept(TopH(1e-9), row) == [1]
    assert kept(TopH(1.0), row) == [0, 1, 2, 3]
    assert len(kept(TopH(1.0), Row.dense(np.zeros(300)))) == 100
    assert kept(TopH(0.5), Row.dense(np.zeros(8))) == [0, 1, 2, 3]  # equal terms: half of them
    assert kept(TopH(0.4), Row.dense([0.0, -np.inf])) in ([0], [0, 1])
    generator = np.random.default_rng(6)
    for scores in generator.normal(0, 3, (200, 50)):
        sizes = [len(kept(TopH(share), Row.dense(scores))) for share in (0.05, 0.3, 0.6, 1.0)]
        assert sizes == sorted(sizes)


def test_the_share_is_kept_and_one_token_more_would_pass_it() -> None:
    generator = np.random.default_rng(7)
    for scores in generator.normal(0, 2, (200, 60)):
        row = Row.dense(scores)
        law = -np.sort(-row.probabilities())
        terms = -law * np.log(law)
        count = len(kept(TopH(0.4), row))
        assert count == 1 or terms[:count].sum() <= 0.4 * terms.sum() * (1 + 1e-12)
        assert terms[: count + 1].sum() > 0.4 * terms.sum()


@pytest.mark.parametrize("value", [0.0, -0.4, 1.01])
def test_impossible_values_are_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="top_h"):
        METHOD(value)


class OneMore(TopH):
    def apply(self, row, state, context):
        count = min(len(super().apply(row, state, context)) + 1, row.possible())
        return row.keep_at(np.argsort(-row.scores, kind="stable")[:count])


class OneLess(TopH):
    def apply(self, row, state, context):
        count = max(len(super().apply(row, state, context)) - 1, 1)
        return row.keep_at(np.argsort(-row.scores, kind="stable")[:count])


class Renormalised(TopH):
    """Algorithm 1 of the paper."""

    def apply(self, row, state, context):
        order = np.argsort(-row.scores, kind="stable")
        count = 1
        while count < row.possible():
            if row.keep_at(order[: count + 1]).entropy() > self.top_h * row.entropy():
                break
            count += 1
        return row.keep_at(order[:count])


@pytest.mark.parametrize("wrong", [OneMore, OneLess, Renormalised])
def test_wrong_variants_are_rejected(wrong: type[TopH]) -> None:
    with pytest.raises(AssertionError):
        hold(pair(wrong))

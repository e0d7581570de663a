"""Best of n: P(y) = F(y)^n - F(y-)^n exactly, ties to the first, NaN the worst.

Statistics: N = 3,000, seeds fixed, alpha 1e-5 each, no reruns. Each wrong variant below differs
from the law so far (measured p below 1e-9) that 1,500 runs reject it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import UnknownNameError
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.scorer import Scorer
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import LawBroken, TableModel, decoder_law, enumerate_law, require_law

BEST = registry.get("best_of_n")
ALPHA = 1e-5
N = 3000


class Ordered(Scorer):
    """Reads tokens as digits: no two sequences of one length tie."""

    name = "ordered"

    def score(self, candidates):
        return np.array([worth(item.tokens) for item in candidates], dtype=np.float64)


def worth(tokens):
    return float((7 * int("".join(map(str, tokens)), 3)) % 31)


class Constant(Scorer):
    """The same number for all."""

    name = "constant"

    def __init__(self, value):
        self.value = value

    def score(self, candidates):
        return np.full(len(candidates), self.value)


def best_law(law, n):
    """F(y)^n - F(y-)^n over sequences ordered by their worth."""
    made, below = {}, 0.0
    for path in sorted(law, key=worth):
        up_to = below + law[path]
        made[path] = up_to**n - below**n
        below = up_to
    return made


def test_the_formula_sums_to_one_and_n_of_one_is_the_policy():
    law = enumerate_law(Policy(TableModel.random(3, seed=1)), (0,), 2)
    assert len({worth(path) for path in law}) == len(law)
    assert sum(best_law(law, 5).values()) == pytest.approx(1.0, abs=1e-12)
    assert best_law(law, 1) == pytest.approx(law, abs=1e-12)


def halves(context):
    return [[1, 1, 2], [0, 2, 2], [2, 2, 0]][sum(context) % 3]


@pytest.mark.parametrize(("n", "length"), [(1, 2), (2, 2), (3, 1), (2, 1)])
def test_the_exact_law_by_enumeration_of_the_noise(n, length):
    policy = Policy(TableModel(halves, 3, 2))
    found = decoder_law(BEST(n=n, scorer=Ordered()), policy, (0,), length, grid=4)
    wanted = best_law(enumerate_law(policy, (0,), length), n)
    assert all(abs(found.get(path, 0.0) - wanted[path]) < 1e-12 for path in wanted)


POLICY = Policy(TableModel.random(3, seed=1))
LAW = best_law(enumerate_law(POLICY, (0,), 2), 3)


def counted(decoder, policy=POLICY, runs=N):
    runner = Runner()
    handles = [
        runner.submit(decoder, Task(policy, (0,), Stopping(2), Stream(seed)))
        for seed in range(runs)
    ]
    runner.run()
    return Counter(handle.result()[0].tokens for handle in handles)


def test_the_law_by_chi_square():
    require_law(counted(BEST(n=3, scorer=Ordered())), LAW, ALPHA, "best of 3")


class Reversed(Ordered):
    def score(self, candidates):
        return -super().score(candidates)


WRONG = {
    "best of two": BEST(n=2, scorer=Ordered()),
    "best of four": BEST(n=4, scorer=Ordered()),
    "the worst": BEST(n=3, scorer=Reversed()),
    "the first": BEST(n=3, scorer=Constant(0.0)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_variants_are_rejected(name):
    with pytest.raises(LawBroken):
        require_law(counted(WRONG[name], runs=1500), LAW, ALPHA, name)


def pool(seed, n):
    return run_alone(registry.get("sample")(n=n), Task(POLICY, (0,), Stopping(2), Stream(seed)))


def chosen(decoder, seed):
    (item,) = run_alone(decoder, Task(POLICY, (0,), Stopping(2), Stream(seed)))
    return item


def test_the_pool_is_what_sample_draws():
    for seed in range(20):
        candidates = [item.tokens for item in pool(seed, 4)]
        item = chosen(BEST(n=4, scorer=Ordered()), seed)
        assert item.tokens == max(candidates, key=worth)
        assert item.score == worth(item.tokens)
        assert item.details["scores"] == [worth(tokens) for tokens in candidates]


@pytest.mark.parametrize("value", [0.0, np.nan, -np.inf])
def test_ties_go_to_the_first(value):
    item = chosen(BEST(n=4, scorer=Constant(value)), 3)
    assert item.details["chosen"] == 0
    assert item.tokens == pool(3, 4)[0].tokens


def test_nan_is_the_worst():
    class Holes(Scorer):
        name = "holes"

        def score(self, candidates):
            scores = np.arange(len(candidates), dtype=np.float64)
            scores[-1] = np.nan
            return scores

    assert chosen(BEST(n=4, scorer=Holes()), 3).details["chosen"] == 2


def test_likelihood_is_of_the_source_and_known_to_the_scorer():
    """The likelihood scorer chooses by the mean of ln p of the table, whatever the sampler."""
    for seed in range(20):
        item = chosen(BEST(n=4, scorer="likelihood"), seed)
        law = enumerate_law(POLICY, (0,), 2)
        best = max((one.tokens for one in pool(seed, 4)), key=lambda path: law[path])
        assert law[item.tokens] == pytest.approx(law[best], abs=1e-12)
        assert item.log_probability == pytest.approx(np.log(law[item.tokens]), abs=1e-12)


def test_one_score_call_for_all_requests():
    calls = []

    class Counting(Ordered):
        def score(self, candidates):
            calls.append(len(candidates))
            return super().score(candidates)

    decoder = BEST(n=3, scorer=Counting())
    counted(decoder, runs=10)
    assert calls == [30]


def test_an_unknown_scorer_is_refused_before_anything_runs():
    with pytest.raises(UnknownNameError, match="did you mean 'likelihood'"):
        BEST(scorer="likelyhood")

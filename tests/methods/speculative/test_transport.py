"""The optimal verifier: its plan is a plan, it is the best one, and the token has the target's law.

160 pairs of laws on 1 to 6 tokens, and what large vocabularies are told."""

from __future__ import annotations

import numpy as np
import pytest
from every_outcome import PROMPT, distance
from verifier_cases import averaged, counts, lists, pairs

from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.bound import bound
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.transport import MOST_TOKENS, Transport, best_plan
from decodery.methods.speculative.walks import NodeWise
from decodery.models.table import TableModel

PAIRS = pairs(160, seed=2)
DRAWN: tuple[Drawn, ...] = ("iid", "distinct", "greedy", "hub")


@pytest.mark.parametrize("drawn", DRAWN)
def test_the_law_is_kept_and_the_bound_is_reached(drawn: Drawn) -> None:
    for p, q in PAIRS:
        for count in counts(q, drawn):
            law, accepted = averaged(Transport(drawn), drawn, p, q, count)
            np.testing.assert_allclose(law, p, atol=1e-12)
            best = bound(Law.dense(p), Law.dense(q), count, drawn)
            assert accepted == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_plan_gives_no_more_than_there_is(drawn: Drawn) -> None:
    for p, q in PAIRS[:60]:
        chances: dict[tuple[int, ...], float] = {}
        for tokens, chance in lists(q, 2, drawn):
            given = tuple(sorted(set(tokens)))
            chances[given] = chances.get(given, 0.0) + chance
        plan = best_plan(p, chances)
        taken = np.zeros(p.size)
        for given, row in plan.items():
            assert set(row) == set(given)
            assert min(row.values()) >= 0.0
            assert sum(row.values()) <= chances[given] + 1e-15
            taken[list(row)] += list(row.values())
        assert (taken <= p + 1e-15).all()


def test_a_plan_takes_back_what_it_gave() -> None:
    """The first way gives token 0 to {0, 1}; {0} needs it, so {0, 1} must move on to 1."""
    plan = best_plan(np.array([0.5, 0.5]), {(0, 1): 0.5, (0,): 0.5})
    assert plan == {(0, 1): {0: 0.0, 1: 0.5}, (0,): {0: 0.5}}


@pytest.mark.parametrize("drawn", ["iid", "distinct"])
def test_whole_texts_keep_the_law(drawn: Drawn) -> None:
    target = TableModel.random(3, 1, seed=3, eos_ids=frozenset({2}))
    drafter = Drawing(TableModel.random(3, 1, seed=4), Branching((2,), drawn))
    decoder = Speculation(drafter, NodeWise(Transport(drawn)))
    assert distance(decoder, Policy(target), 3) < 1e-12


def test_large_vocabularies_are_refused_before_any_forward() -> None:
    for size in (MOST_TOKENS, MOST_TOKENS + 1):
        table, draft = TableModel.random(size, 1, seed=1), TableModel.random(size, 1, seed=2)
        decoder = Speculation(
            Drawing(draft, Branching((2,), "distinct")), NodeWise(Transport("distinct"))
        )
        task = Task(Policy(table), PROMPT, Stopping(3))
        if size == MOST_TOKENS:
            assert len(run_alone(decoder, task)[0].tokens) == 3
            continue
        with pytest.raises(ParameterError, match=r"at most 8 tokens; random table has 9"):
            run_alone(decoder, task)
        assert table.calls == draft.calls == 0
        with pytest.raises(ParameterError, match="8 tokens at most, not 9"):
            next(Transport("iid").trial(Law.dense(np.ones(9)), Law.dense(np.ones(9)), [0]))


def test_more_than_four_candidates_are_refused() -> None:
    with pytest.raises(ParameterError, match="at most 4 candidates"):
        Speculation(Drawing(None, Branching((5,), "iid")), NodeWise(Transport("iid")))


def test_fixed_candidates_are_refused() -> None:
    with pytest.raises(ParameterError, match="match is optimal"):
        Transport("fixed")

"""The bound on acceptance: by all sets of tokens, by linear programming, by its known values; its
draws without replacement against sums that are written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog
from verifier_cases import Lists, Masses, averaged, counts, lists, pairs

from decodery.core.errors import ParameterError
from decodery.methods.speculative import bound as bounds
from decodery.methods.speculative.acceptance import acceptance
from decodery.methods.speculative.bound import bound, bound_by_search
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.transport import Transport, best_plan, candidate_lists
from decodery.methods.speculative.verifiers import (
    Greedy,
    Hub,
    KSeq,
    Match,
    Recursive,
    Rule,
)

PAIRS = pairs(200, seed=1)
FEW = PAIRS[:64]
DRAWN: tuple[Drawn, ...] = ("iid", "distinct", "greedy", "hub")


def best(p: Masses, q: Masses, count: int, drawn: Drawn) -> float:
    return bound(Law.dense(p), Law.dense(q), count, drawn)


def sets(drafts: Lists) -> dict[tuple[int, ...], float]:
    """The law of the set of candidates."""
    found: dict[tuple[int, ...], float] = {}
    for tokens, chance in drafts:
        given = tuple(sorted(set(tokens)))
        found[given] = found.get(given, 0.0) + chance
    return found


def by_linear_program(p: Masses, drafts: Lists) -> float:
    """The largest flow from sets to their tokens, by scipy."""
    chances = sets(drafts)
    ways = [(row, token) for row, given in enumerate(chances) for token in given]
    table = np.zeros((len(chances) + p.size, len(ways)))
    for column, (row, token) in enumerate(ways):
        table[row, column] = table[len(chances) + token, column] = 1.0
    limits = [*chances.values(), *p]
    return -linprog(-np.ones(len(ways)), A_ub=table, b_ub=limits, method="highs").fun


# -- three ways to the same number -----------------------------------------------------------------


@pytest.mark.parametrize("drawn", DRAWN)
def test_one_sort_finds_what_all_sets_find(drawn: Drawn) -> None:
    for p, q in PAIRS:
        for count in counts(q, drawn):
            wanted = bound_by_search(p, lists(q, count, drawn))
            assert best(p, q, count, drawn) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("drawn", DRAWN)
def test_linear_programming_finds_the_same(drawn: Drawn) -> None:
    for p, q in FEW:
        for count in counts(q, drawn):
            drafts = lists(q, count, drawn)
            plan = best_plan(p, sets(drafts))
            flow = sum(mass for row in plan.values() for mass in row.values())
            assert flow == pytest.approx(best(p, q, count, drawn), abs=1e-12)
    for p, q in FEW[::3]:
        for count in counts(q, drawn):
            drafts = lists(q, count, drawn)
            assert by_linear_program(p, drafts) == pytest.approx(best(p, q, count, drawn), abs=1e-7)


@pytest.mark.parametrize("drawn", DRAWN)
def test_lists_of_candidates_have_their_probabilities(drawn: Drawn) -> None:
    """The code's own enumeration, which transport uses, against that of the tests."""
    for _, q in FEW:
        for count in counts(q, drawn):
            found = dict(candidate_lists(Law.dense(q), count, drawn))
            wanted = dict(lists(q, count, drawn))
            assert found.keys() == wanted.keys()
            for tokens, chance in wanted.items():
                assert found[tokens] == pytest.approx(chance, abs=1e-12)


# -- values and limits -----------------------------------------------------------------------------

FIRST = (np.array([0.3, 0.4, 0.3]), np.array([0.6, 0.3, 0.1]))
SECOND = (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(
    ("laws", "count", "iid", "distinct", "greedy"),
    [
        (FIRST, 1, 0.70, 0.70, 0.70),
        (FIRST, 2, 0.89, 0.992857142857, 0.95),
        (FIRST, 3, 0.971, 1.0, 1.0),
        (SECOND, 2, 0.79, 0.834523809524, 0.766666666667),
        (SECOND, 3, 0.871, 1.0, 0.933333333333),
    ],
    ids=["3 tokens-1", "3 tokens-2", "3 tokens-3", "4 tokens-2", "4 tokens-3"],
)
def test_known_values(
    laws: tuple[Masses, Masses], count: int, iid: float, distinct: float, greedy: float
) -> None:
    assert best(*laws, count, "iid") == pytest.approx(iid, abs=1e-12)
    assert best(*laws, count, "distinct") == pytest.approx(distinct, abs=1e-12)
    assert best(*laws, count, "greedy") == pytest.approx(greedy, abs=1e-12)


def test_order_of_the_bounds() -> None:
    """Without replacement is at least as good as with; more candidates are; one is 1 - TV."""
    for p, q in PAIRS:
        common = float(np.minimum(p, q).sum())
        rows = {drawn: [best(p, q, count, drawn) for count in range(1, 6)] for drawn in DRAWN[:3]}
        for drawn, row in rows.items():
            assert row[0] == pytest.approx(common, abs=1e-12)
            if drawn != "greedy":
                assert all(b >= a - 1e-12 for a, b in itertools.pairwise(row))
        pairwise = zip(rows["iid"], rows["distinct"], strict=True)
        assert all(less <= more + 1e-12 for less, more in pairwise)


def test_limits() -> None:
    p, q = np.array([0.2, 0.5, 0.3, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])
    for count in (1, 2, 3, 4):
        for drawn in DRAWN[:3]:
            assert best(p, q, count, drawn) == pytest.approx(0.0, abs=1e-12)  # disjoint
        for drawn in DRAWN[:2]:
            assert best(p, p, count, drawn) == pytest.approx(1.0, abs=1e-12)  # equal
    certain = np.array([0.0, 1.0, 0.0, 0.0])
    for count in (1, 2, 3):
        assert best(p, certain, count, "iid") == pytest.approx(0.5, abs=1e-12)  # p of that token
        assert best(p, certain, count, "distinct") == pytest.approx(0.5, abs=1e-12)


def test_greedy_drafts_are_not_always_better() -> None:
    assert best(*SECOND, 2, "greedy") < best(*SECOND, 2, "iid")
    assert best(*FIRST, 2, "greedy") > best(*FIRST, 2, "iid")


@pytest.mark.parametrize(
    ("count", "drawn", "words"),
    [(0, "iid", "one candidate or more"), (3, "hub", "two"), (2, "fixed", "no law")],
)
def test_what_has_no_bound_is_refused(count: int, drawn: Drawn, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        best(*FIRST, count, drawn)


# -- draws without replacement on many tokens ------------------------------------------------------


def inside_written_out(q: Masses, count: int) -> Masses:
    """Q of every prefix: the chance that 2, 3 or 4 draws without replacement lie in it."""
    found = np.zeros(q.size + 1)
    for size in range(count, q.size + 1):
        for tokens in itertools.permutations(range(size), count - 1):
            chance, taken = 1.0, 0.0
            for token in tokens:
                chance *= q[token] / (1.0 - taken)
                taken += q[token]
            found[size] += chance * (q[:size].sum() - taken) / (1.0 - taken)
    return found


def peaked(size: int, heavy: list[float], seed: int) -> Masses:
    """A law with tokens of these masses at random places, and the rest among all others."""
    generator = np.random.default_rng(seed)
    q = generator.dirichlet(np.full(size, 0.5)) * (1.0 - sum(heavy))
    places = generator.permutation(size)[: len(heavy)]
    q[places] = heavy
    return q / q.sum()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "heavy",
    [[], [0.6], [0.99], [0.7, 0.29], [0.5, 0.3, 0.19], [0.999], [0.25, 0.25, 0.25, 0.249]],
    ids=str,
)
def test_draws_without_replacement_are_summed_right(heavy: list[float], count: int) -> None:
    q = peaked(9 if count == 4 else 14, heavy, seed=len(heavy))
    np.testing.assert_allclose(
        bounds._all_inside(q, count, "distinct"), inside_written_out(q, count), atol=2e-12
    )


@pytest.mark.parametrize("rest", [1e-6, 1e-12, 1e-200])
def test_a_draft_that_is_nearly_sure_keeps_its_digits(rest: float) -> None:
    """What comes behind the first draw is the law of the others, however little that is."""
    others = np.array([0.5, 0.3, 0.15, 0.05])
    q = np.array([1.0, *(rest * others)])
    for count in (2, 3, 4):
        inside = bounds._all_inside(q, count, "distinct")
        behind = bounds._all_inside(others, count - 1, "distinct")
        np.testing.assert_allclose(inside[1:], behind, atol=20 * rest + 1e-12)


def test_a_vocabulary_of_many_tokens() -> None:
    """Of equally probable tokens Q is a product: k (k-1) ... / V (V-1) ..."""
    size = 20_000
    q = np.full(size, 1.0 / size)
    k = np.arange(size + 1.0)
    wanted = k * (k - 1) * (k - 2) * (k - 3)
    inside = bounds._all_inside(q, 4, "distinct")
    np.testing.assert_allclose(inside, wanted / wanted[-1], atol=1e-11)


# -- acceptance on average, without enumerating ----------------------------------------------------

RULES: list[tuple[Rule, Drawn]] = [
    (Recursive("iid"), "iid"),
    (Recursive("distinct"), "distinct"),
    (KSeq(), "iid"),
    (Hub(), "hub"),
    (Greedy(), "greedy"),
    (Transport("distinct"), "distinct"),
    *((Match(), drawn) for drawn in DRAWN),
]


@pytest.mark.parametrize(
    ("rule", "drawn"), RULES, ids=[f"{type(rule).__name__}-{drawn}" for rule, drawn in RULES]
)
def test_acceptance_is_the_average_over_all_candidates(rule: Rule, drawn: Drawn) -> None:
    for p, q in FEW[:40]:
        for count in counts(q, drawn)[:3]:
            found = acceptance(rule, Law.dense(p), Law.dense(q), count, drawn)
            wanted = averaged(rule, drawn, p, q, count)[1]
            assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("rule", [Recursive("distinct"), Match()], ids=lambda rule: str(rule))
def test_paths_stand_for_all_of_them(rule: Rule) -> None:
    """On nine tokens acceptance is averaged over paths: near what all lists come to."""
    generator = np.random.default_rng(5)
    errors = []
    for _ in range(3):
        p, q = (generator.dirichlet(np.full(9, 0.7)) for _ in "pq")
        for count in (2, 3):
            wanted = averaged(rule, "distinct", p, q, count)[1]
            found = acceptance(rule, Law.dense(p), Law.dense(q), count, "distinct", paths=256)
            errors.append(found - wanted)
            again = acceptance(rule, Law.dense(p), Law.dense(q), count, "distinct", paths=256)
            assert again == found
    assert max(map(abs, errors)) < 0.01


def test_fixed_candidates_have_no_average() -> None:
    with pytest.raises(ParameterError, match="no law"):
        acceptance(Match(), *map(Law.dense, FIRST), 2, "fixed")

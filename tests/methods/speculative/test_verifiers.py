"""Every rule at one node, exactly: all candidates that a drafter may draw, both branches of every
test. 240 pairs of laws on 1 to 6 tokens, 1 to 4 candidates."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from every_outcome import Noise, every_way
from verifier_cases import Masses, averaged, counts, is_seen, lists, pairs, worst
from wrong_verifiers import WRONG

from decodery.core.errors import ParameterError
from decodery.methods.speculative import verifiers
from decodery.methods.speculative.bound import bound
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law, overlap, ratio
from decodery.methods.speculative.transport import Transport
from decodery.methods.speculative.verifiers import (
    Greedy,
    Hub,
    KSeq,
    Match,
    Recursive,
    Rule,
    decide,
    k_seq_rho,
    outcome,
)

PAIRS = pairs()
FEW = PAIRS[:48]

RULES: list[tuple[Rule, Drawn]] = [
    (Recursive("iid"), "iid"),
    (Recursive("distinct"), "distinct"),
    (KSeq(), "iid"),
    (Hub(), "hub"),
    (Greedy(), "greedy"),
    (Match(), "iid"),
    (Match(), "distinct"),
    (Match(), "greedy"),
    (Match(), "hub"),
]
IDS = [f"{type(rule).__name__}-{drawn}" for rule, drawn in RULES]


@pytest.fixture(autouse=True)
def rho_once_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the two laws only, not on the list at hand; a law equals itself alone."""
    monkeypatch.setattr(verifiers, "k_seq_rho", functools.cache(k_seq_rho))


# -- the law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "drawn"), RULES, ids=IDS)
def test_the_token_has_the_law_of_the_target(rule: Rule, drawn: Drawn) -> None:
    assert drawn in rule.drawn
    assert worst(rule, drawn, PAIRS) < 1e-12


@pytest.mark.parametrize(
    ("drawn", "rule"),
    [pair for rules in WRONG.values() for pair in rules],
    ids=[f"{name}-{type(rule).__name__}" for name, rules in WRONG.items() for _, rule in rules],
)
def test_a_mistake_is_seen(drawn: Drawn, rule: Rule) -> None:
    """What is judged wrongly is off by 0.03 and more somewhere; the right ones by 1e-12."""
    assert is_seen(rule, drawn, PAIRS, 0.03)


def test_every_verifier_has_three_mistakes() -> None:
    assert min(map(len, WRONG.values())) >= 3


def test_the_last_of_equal_laws_is_never_nan() -> None:
    """p = q up to rounding, and q nearly sure: 0/0 never reaches a draw."""
    for gap in (0.0, 1e-17, 1e-13, 1e-9):
        p = np.array([1.0 - gap, gap, 0.0])
        q = np.array([1.0, 0.0, gap * gap])
        for rule, drawn in RULES:
            for left, right in ((p, q), (q, p), (p, p)):
                for count in counts(right, drawn):
                    law, accepted = averaged(rule, drawn, left, right, count)
                    np.testing.assert_allclose(law, left / left.sum(), atol=2e-12)
                    assert 0.0 <= accepted <= 1.0 + 1e-12


def test_laws_over_some_ids_are_judged_as_whole_ones() -> None:
    """A truncated row's law has masses of its own ids only; nothing else changes."""
    p, q = np.array([0.0, 0.5, 0.2, 0.0, 0.3]), np.array([0.4, 0.0, 0.35, 0.0, 0.25])
    short = [Law(law[law > 0], 5, np.flatnonzero(law)) for law in (p, q)]
    for rule, drawn in RULES:
        for tokens, _ in lists(q, 2, drawn):
            wanted, share = outcome(rule, Law.dense(p), Law.dense(q), tokens)
            for target, draft in (short, (Law.dense(p), short[1]), (short[0], Law.dense(q))):
                law, accepted = outcome(rule, target, draft, tokens)
                np.testing.assert_allclose(law, wanted, atol=1e-15)
                assert accepted == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize(("rule", "drawn"), RULES, ids=IDS)
def test_a_decision_has_the_chances_that_the_outcome_adds_up(rule: Rule, drawn: Drawn) -> None:
    """`decide`, which meets numbers, against `outcome`, which sums; tests share no number."""
    for p, q in FEW[::9]:
        target, draft = Law.dense(p), Law.dense(q)
        for tokens, _ in lists(q, 2, drawn)[:6]:
            law, accepted = np.zeros(p.size), 0.0

            def run(way, target=target, draft=draft, tokens=tokens):
                numbers: dict[int, Noise] = {}
                trial = rule.trial(target, draft, tokens)
                return decide(
                    trial, tokens, lambda test: numbers.setdefault(test, Noise(way)), Noise(way)
                )

            for verdict, share in every_way(run):
                law[verdict.token] += share
                if verdict.number is not None:
                    accepted += share
                    assert tokens[verdict.number] == verdict.token
            wanted, chance = outcome(rule, target, draft, tokens)
            np.testing.assert_allclose(law, wanted, atol=1e-12)
            assert accepted == pytest.approx(chance, abs=1e-12)


# -- acceptance ------------------------------------------------------------------------------------

FIRST = (np.array([0.3, 0.4, 0.3]), np.array([0.6, 0.3, 0.1]))
SECOND = (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(
    ("laws", "count", "iid", "distinct", "k_seq"),
    [
        (FIRST, 1, 0.70, 0.70, 0.70),
        (FIRST, 2, 0.82, 0.875, 0.84),
        (FIRST, 3, 0.848, 1.0, 0.875),
        (SECOND, 2, 0.72, 0.7642857142857142, 0.75),
        (SECOND, 3, 0.768, 0.8402976190476190, 0.79395),
    ],
    ids=["3 tokens-1", "3 tokens-2", "3 tokens-3", "4 tokens-2", "4 tokens-3"],
)
def test_acceptance_has_its_known_values(
    laws: tuple[Masses, Masses], count: int, iid: float, distinct: float, k_seq: float
) -> None:
    assert averaged(Recursive("iid"), "iid", *laws, count)[1] == pytest.approx(iid, abs=1e-12)
    found = averaged(Recursive("distinct"), "distinct", *laws, count)[1]
    assert found == pytest.approx(distinct, abs=1e-6)
    assert averaged(KSeq(), "iid", *laws, count)[1] == pytest.approx(k_seq, abs=1e-6)


@pytest.mark.parametrize(
    ("laws", "count", "rho"),
    [(FIRST, 2, 1.4), (FIRST, 3, 1.75), (SECOND, 2, 1.5), (SECOND, 3, 1.9395)],
    ids=["3 tokens-2", "3 tokens-3", "4 tokens-2", "4 tokens-3"],
)
def test_rho_has_its_known_values(laws: tuple[Masses, Masses], count: int, rho: float) -> None:
    assert k_seq_rho(*map(Law.dense, laws), count) == pytest.approx(rho, abs=1e-4)


def test_rho_solves_its_equation_from_above() -> None:
    for p, q in PAIRS:
        target, draft = Law.dense(p), Law.dense(q)
        for count in (1, 2, 3, 4):
            rho = k_seq_rho(target, draft, count)
            beta = overlap(target, draft, rho) / rho
            assert 1.0 <= rho <= count
            assert 1.0 - (1.0 - beta) ** count == pytest.approx(rho * beta, abs=1e-12)


def test_k_seq_accepts_its_share_of_the_best() -> None:
    """SpecTr's guarantee: at least 1 - (1 - 1/n)^n of the best, which is above 1 - 1/e."""
    for p, q in FEW:
        for count in counts(q, "iid"):
            best = bound(Law.dense(p), Law.dense(q), count, "iid")
            share = 1.0 - (1.0 - 1.0 / count) ** count
            assert averaged(KSeq(), "iid", p, q, count)[1] >= share * best - 1e-12


@pytest.mark.parametrize(("rule", "drawn"), RULES, ids=IDS)
def test_no_rule_accepts_more_than_the_bound(rule: Rule, drawn: Drawn) -> None:
    for p, q in FEW:
        for count in counts(q, drawn):
            best = bound(Law.dense(p), Law.dense(q), count, drawn)
            accepted = averaged(rule, drawn, p, q, count)[1]
            assert accepted <= best + 1e-12
            reaches = isinstance(rule, Greedy | Hub)
            reaches |= count == 1 and not isinstance(rule, Match)
            if reaches:
                assert accepted == pytest.approx(best, abs=1e-12)


def test_one_candidate_is_a_maximal_coupling() -> None:
    for p, q in PAIRS:
        common = float(np.minimum(p, q).sum())
        for rule, drawn in RULES:
            if drawn != "hub" and not isinstance(rule, Match):
                assert averaged(rule, drawn, p, q, 1)[1] == pytest.approx(common, abs=1e-12)


def test_a_hub_accepts_as_often_as_two_greedy_candidates() -> None:
    for p, q in PAIRS:
        hub, greedy = averaged(Hub(), "hub", p, q, 2)[1], averaged(Greedy(), "greedy", p, q, 2)[1]
        assert hub == pytest.approx(greedy, abs=1e-12)


def test_limits_of_recursive_rejection() -> None:
    """Equal laws: always accepted. Disjoint ones: never."""
    seen = {"equal": 0, "disjoint": 0}
    for p, q in PAIRS:
        common = float(np.minimum(p, q).sum())
        if 0.0 < common < 1.0 - 1e-12:
            continue
        seen["disjoint" if common == 0.0 else "equal"] += 1
        for drawn in ("iid", "distinct"):
            for count in counts(q, drawn):
                accepted = averaged(Recursive(drawn), drawn, p, q, count)[1]
                assert accepted == pytest.approx(float(common > 0.5), abs=1e-12)
    assert min(seen.values()) > 10


def test_more_candidates_are_accepted_more_often() -> None:
    for p, q in FEW:
        for rule, drawn in RULES:
            shares = [averaged(rule, drawn, p, q, count)[1] for count in counts(q, drawn)]
            if not isinstance(rule, Greedy):  # another proposal for each count
                assert all(b >= a - 1e-12 for a, b in itertools.pairwise(shares))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("drawn", ["fixed", "greedy", "hub"])
def test_recursive_rejection_is_of_drawn_candidates(drawn: Drawn) -> None:
    with pytest.raises(ParameterError, match=f"not {drawn}"):
        Recursive(drawn)


def test_a_rule_knows_how_its_candidates_are_drawn() -> None:
    """Draws with replacement judged as draws without are not exact: neither takes the other's."""
    assert Recursive("iid").drawn == {"iid"}
    assert Recursive("distinct").drawn == {"distinct"}
    assert Transport("hub").drawn == {"hub"}
    assert Match().drawn == {"fixed", "iid", "distinct", "greedy", "hub"}
    assert KSeq() == KSeq()
    assert Recursive("iid") != Recursive("distinct")


def test_a_ratio_is_a_chance() -> None:
    assert ratio(0.0, 0.0) == 0.0
    assert ratio(0.2, 0.0) == 1.0
    assert ratio(0.2, 0.8) == pytest.approx(0.25)
    assert ratio(0.8, 0.2) == 1.0

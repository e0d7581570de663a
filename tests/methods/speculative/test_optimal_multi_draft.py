"""Trees of any drafter and a rule that fits: exact texts, refusals, and the bound beside the rule.

Every outcome of a run's noise is tried, through the real runner: trees of one to three levels."""

from __future__ import annotations

import numpy as np
import pytest
from every_outcome import PROMPT, completions, distance
from verifier_cases import averaged

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Completion, Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.bound import bound
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.optimal_multi_draft import METHOD, rule_of
from decodery.methods.speculative.shapes import Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.tally import Tally
from decodery.methods.speculative.verifiers import Greedy, Hub, KSeq, Match, Recursive
from decodery.methods.speculative.walks import NodeWise
from decodery.models.table import TableModel

EXACT = [
    ("greedy", "greedy"),
    ("greedy", "match"),
    ("greedy", "transport"),
    ("distinct", "recursive"),
    ("distinct", "match"),
    ("distinct", "transport"),
    ("iid", "recursive"),
    ("iid", "k_seq"),
    ("iid", "match"),
    ("iid", "transport"),
    ("hub", "hub"),
    ("hub", "match"),
    ("hub", "transport"),
]
REFUSED = [
    ("greedy", "recursive", "all drawn from q"),
    ("hub", "recursive", "all drawn from q"),
    ("greedy", "k_seq", "judges every candidate alike"),
    ("distinct", "k_seq", "judges every candidate alike"),
    ("hub", "k_seq", "judges every candidate alike"),
    ("iid", "greedy", "which candidates are certain"),
    ("distinct", "greedy", "which candidates are certain"),
    ("hub", "greedy", "which candidates are certain"),
    ("iid", "hub", "SpecHub's pairs"),
    ("distinct", "hub", "SpecHub's pairs"),
    ("greedy", "hub", "SpecHub's pairs"),
]
TWO = TableModel.random(2, 2, seed=21)
THREE = TableModel.random(3, 1, seed=22, eos_ids=frozenset({2}))


def pair_ids(pairs: list) -> list[str]:
    return ["-".join(pair[:2]) for pair in pairs]


# -- what goes together ----------------------------------------------------------------------------


def test_every_pair_is_either_exact_or_refused() -> None:
    pairs = [pair[:2] for pair in (*EXACT, *REFUSED)]
    assert len(set(pairs)) == len(pairs) == 4 * 6


@pytest.mark.parametrize(("drafter", "rule", "reason"), REFUSED, ids=pair_ids(REFUSED))
def test_what_is_not_exact_is_refused_with_its_reason(drafter: str, rule: str, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason) as refusal:
        METHOD(drafter=drafter, rule=rule, branching=(2,))
    assert f"rule {rule} cannot verify drafter {drafter}" in str(refusal.value)


def test_each_drafter_has_a_rule_of_its_own() -> None:
    assert rule_of("greedy", None) == Greedy()
    assert rule_of("distinct", None) == Recursive("distinct")
    assert rule_of("iid", None) == Recursive("iid")
    assert rule_of("hub", None) == Hub()
    assert METHOD() == METHOD(drafter="greedy", rule="greedy", branching=(2, 2, 2))


@pytest.mark.parametrize("drafter", ["hub", "greedy"])
def test_hubs_have_two_candidates(drafter: str) -> None:
    if drafter == "hub":
        with pytest.raises(ParameterError, match="hub"):
            METHOD(drafter=drafter, rule="match", branching=(3, 2))
    else:
        METHOD(drafter=drafter, branching=(3, 2))


def test_parts_that_do_not_fit_cannot_be_joined() -> None:
    """The same refusals below the method, for who composes parts."""
    wrong = [
        ("distinct", Recursive("iid")),
        ("iid", Recursive("distinct")),
        ("greedy", KSeq()),
        ("fixed", Recursive("iid")),
        ("hub", Greedy()),
    ]
    for drawn, rule in wrong:
        with pytest.raises(ParameterError, match="exactly"):
            Speculation(Drawing(None, Branching((2,), drawn)), NodeWise(rule))
    Speculation(Drawing(None, Branching((2,), "fixed")), NodeWise(Match()))


# -- the law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drafter", "rule"), EXACT, ids=pair_ids(EXACT))
@pytest.mark.parametrize("branching", [(2,), (2, 2)], ids=str)
def test_texts_have_the_law_of_the_policy(
    drafter: str, rule: str, branching: tuple[int, ...]
) -> None:
    """Two tokens, a table that looks back by two."""
    draft = TableModel.random(2, 2, seed=31)
    decoder = METHOD(draft=draft, branching=branching, drafter=drafter, rule=rule)
    assert distance(decoder, Policy(TWO), len(branching) + 1) < 1e-12


@pytest.mark.parametrize(
    ("drafter", "rule", "branching"),
    [
        ("greedy", "greedy", (3,)),
        ("greedy", "greedy", (2, 2)),
        ("hub", "hub", (2, 2)),
        ("distinct", "recursive", (3,)),
        ("distinct", "recursive", (2, 1)),
        ("iid", "k_seq", (2, 1)),
        ("distinct", "transport", (2, 1)),
    ],
    ids=lambda value: str(value),
)
def test_texts_of_three_tokens_that_end(
    drafter: str, rule: str, branching: tuple[int, ...]
) -> None:
    draft = TableModel.random(3, 1, seed=32)
    decoder = METHOD(draft=draft, branching=branching, drafter=drafter, rule=rule)
    assert distance(decoder, Policy(THREE), len(branching) + 1) < 1e-12


@pytest.mark.parametrize(
    ("drafter", "rule", "branching"),
    [
        ("greedy", "greedy", (2, 1, 2)),
        ("distinct", "recursive", (1, 2, 1)),
    ],
    ids=lambda value: str(value),
)
def test_trees_of_three_levels(drafter: str, rule: str, branching: tuple[int, ...]) -> None:
    draft = TableModel.random(2, 1, seed=33)
    decoder = METHOD(draft=draft, branching=branching, drafter=drafter, rule=rule)
    assert distance(decoder, Policy(TWO), 4) < 1e-12


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_a_temperature_of_its_own_leaves_the_law(temperature: float) -> None:
    policy = Policy(THREE, chain(dc.temperature(0.8), dc.top_p(0.95)))
    draft = TableModel.random(3, 1, seed=34)
    decoder = METHOD(draft=draft, branching=(2,), draft_temperature=temperature)
    assert distance(decoder, policy, 2) < 1e-12


@pytest.mark.parametrize(
    ("drawn", "rule"),
    [("distinct", Recursive("iid")), ("iid", Recursive("distinct"))],
    ids=["distinct-iid", "iid-distinct"],
)
def test_a_wrong_pair_is_seen_in_the_texts(
    drawn: Drawn, rule: Recursive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `Speculation` refuses to join would be off by more than 0.01."""
    monkeypatch.setattr(Recursive, "drawn", frozenset({drawn}))
    draft = TableModel(lambda _: [0.5, 0.45, 0.05], 3, 0)
    decoder = Speculation(Drawing(draft, Branching((2,), drawn)), NodeWise(rule))
    policy = Policy(TableModel(lambda _: [0.05, 0.55, 0.4], 3, 0))
    assert distance(decoder, policy, 2) > 0.01


# -- the bound beside the rule ---------------------------------------------------------------------

P, Q = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]
EVEN = TableModel(lambda _: P, 4, 0), TableModel(lambda _: Q, 4, 0)


def run(decoder: Speculation, policy: Policy, length: int, seed: int = 0) -> Completion:
    return run_alone(decoder, Task(policy, PROMPT, Stopping(length), Stream(seed)))[0]


@pytest.mark.parametrize(("drafter", "rule"), EXACT, ids=pair_ids(EXACT))
def test_the_bound_and_the_rule_are_reported(drafter: Drawn, rule: str) -> None:
    """Of laws that are everywhere the same the means are known."""
    target, draft = EVEN
    decoder = METHOD(draft=draft, drafter=drafter, rule=rule, branching=(2, 2), optimum=True)
    item = run(decoder, Policy(target), 9)
    found, tally = item.details["optimum"], Tally.from_dict(item.details["speculation"])
    best = bound(Law.dense(P), Law.dense(Q), 2, drafter)
    share = averaged(rule_of(drafter, rule), drafter, np.array(P), np.array(Q), 2)[1]
    assert found["bound"] == pytest.approx(best, abs=1e-12)
    assert found["acceptance"] == pytest.approx(share, abs=1e-12)
    assert tally.steps <= found["nodes"] <= 2 * tally.steps


def test_visited_nodes_are_those_where_the_rule_was_asked() -> None:
    """A step of two levels asks at the tip, and at the node that it accepted there; only the last
    step that drafts may have one level."""
    target, draft = EVEN
    decoder = METHOD(draft=draft, branching=(2, 2), optimum=True)
    flat = METHOD(draft=draft, branching=(2,), optimum=True)
    for item, _ in completions(flat, Policy(target), 2):
        assert item.details["optimum"]["nodes"] == 1  # one level, one step that has room for it
    for seed in range(5):
        item = run(decoder, Policy(target), 30, seed)
        tally = Tally.from_dict(item.details["speculation"])
        most = tally.offered[0] + tally.taken[0]
        assert most - 1 <= item.details["optimum"]["nodes"] <= most


def test_the_report_is_absent_unless_asked_for() -> None:
    target, draft = EVEN
    assert "optimum" not in run(METHOD(draft=draft), Policy(target), 5).details
    nothing = run(METHOD(draft=draft, optimum=True), Policy(target), 1)  # no room for a draft
    assert nothing.details["optimum"] == {"nodes": 0, "bound": None, "acceptance": None}


def test_greedy_decoding_has_no_bound() -> None:
    """It drafts the most probable tokens: there is no draw to have a bound."""
    target, draft = EVEN
    with pytest.raises(ParameterError, match="optimum: greedy decoding draws nothing"):
        METHOD(draft=draft, optimum=True).certain()
    item = run(METHOD(draft=draft).certain(), Policy(target), 6)
    assert item.tokens == (3,) * 6


def test_the_report_changes_no_token() -> None:
    target, draft = EVEN
    for seed in range(5):
        one, other = (
            run(METHOD(draft=draft, optimum=optimum), Policy(target), 12, seed)
            for optimum in (False, True)
        )
        assert one.tokens == other.tokens


def test_every_sequence_has_a_report_of_its_own() -> None:
    target, draft = EVEN
    decoder = METHOD(draft=draft, optimum=True, n=3)
    items = run_alone(decoder, Task(Policy(target), PROMPT, Stopping(20)))
    found = [item.details["optimum"] for item in items]
    assert len({item["nodes"] for item in found}) > 1
    whole = decoder.totals(items)["optimum"]
    assert whole["nodes"] == sum(item["nodes"] for item in found)
    for name in ("bound", "acceptance"):
        mean = sum(item[name] * item["nodes"] for item in found) / whole["nodes"]
        assert whole[name] == pytest.approx(mean, abs=1e-12)
    nothing = run(decoder, Policy(target), 1)  # no room for a draft
    assert decoder.totals([nothing])["optimum"]["bound"] is None
    assert decoder.totals([nothing, *items])["optimum"] == pytest.approx(whole)


def test_transport_refuses_a_large_vocabulary_before_any_forward() -> None:
    table, draft = TableModel.random(9, 1, seed=1), TableModel.random(9, 1, seed=2)
    decoder = METHOD(draft=draft, drafter="distinct", rule="transport")
    with pytest.raises(ParameterError, match="at most 8 tokens"):
        run(decoder, Policy(table), 4)
    assert table.calls == draft.calls == 0


# -- the real model --------------------------------------------------------------------------------


def test_a_run_on_the_embedded_model(default_lm: LanguageModel) -> None:
    """Greedy drafts reach their bound at every node; recursive rejection stays below its own."""
    for drafter, reaches in (("greedy", True), ("distinct", False)):
        method = dc.optimal_multi_draft(
            draft="exit:12", drafter=drafter, branching=(2, 2), optimum=True
        )
        item = default_lm.generate("Name a colour.", method=method, max_tokens=6, seed=1).samples[0]
        found = item.details["optimum"]
        assert 0.0 < found["acceptance"] <= found["bound"] + 1e-9 <= 1.0 + 1e-9
        if reaches:
            assert found["acceptance"] == pytest.approx(found["bound"], abs=1e-12)

"""Recursive speculative decoding: its parameters do what they say and change no law.

The law of whole runs is proved in `test_speculation.py`, that of the shapes in `test_shapes.py`.
The chi-square tests here have 400 texts each at alpha 1e-6; six of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from speculative_runs import DRAFT, TARGET, law, policies, task

import decodery as dc
from decodery.core import registry
from decodery.core.errors import ParameterError
from decodery.core.runner import run_alone
from decodery.core.sampler import Chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.model_drafter import Drawing, at_temperature
from decodery.methods.speculative.shapes import Beam, Branching
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match, Recursive
from decodery.methods.speculative.walks import NodeWise
from decodery.testing import TableModel, chi_square

RSD = registry.get("rsd")


def test_the_defaults_are_the_spec() -> None:
    beam, tree = RSD(draft="same"), RSD(draft="same", tree="branching")
    assert beam == Speculation(Drawing("same", Beam(3, 3)), NodeWise(beam.walk.rule))
    assert tree.drafter.shape == Branching((2, 2, 2))
    assert (beam.drafter.nodes, tree.drafter.nodes) == (9, 14)
    assert isinstance(beam.walk.rule, Recursive)
    assert RSD(draft="same", beams=7, levels=2).drafter.shape == Beam(7, 2)
    wide = RSD(draft="same", tree="branching", branching=(3, 1))
    assert wide.drafter.shape == Branching((3, 1))


@pytest.mark.parametrize(
    "given",
    [
        {"branching": (2, 2)},
        {"tree": "branching", "beams": 3},
        {"tree": "branching", "levels": 3},
        {"tree": "branching", "branching": (2, 0)},
        {"tree": "both"},
        {"beams": 0},
        {"levels": 0},
        {"node_budget": 0},
        {"draft_temperature": 0.0},
        {"n": 0},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        RSD(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"draft_temperature": 0.4},
        {"draft_temperature": 3.0, "tree": "branching", "branching": (2, 2)},
        {"node_budget": 1},
        {"node_budget": 5},
        {"node_budget": 3, "tree": "branching"},
        {"beams": 2, "levels": 1},
    ],
    ids=str,
)
def test_no_parameter_changes_the_law(given: dict[str, Any]) -> None:
    decoder = RSD(draft=DRAFT, n=400, **given)
    found = Counter(item.tokens for item in run_alone(decoder, task(policies()["top_p"], 3)))
    assert chi_square(found, law("top_p")).p_value > 1e-6


def speculation(decoder: Speculation, policy: Policy, **more: Any) -> dict[str, Any]:
    (text,) = run_alone(decoder, task(policy, 2, Stopping(30, **more)))
    return text.details["speculation"]


def test_a_draft_that_is_the_policy_is_always_accepted() -> None:
    policy = Policy(TARGET, dc.chain(dc.temperature(0.7)))
    for given in ({}, {"tree": "branching"}, {"beams": 1, "levels": 4}):
        found = speculation(RSD(draft="same", **given), policy)
        depth = RSD(draft="same", **given).drafter.shape.depth
        assert found["acceptance_by_depth"] == [1.0] * depth


def test_a_draft_at_another_temperature_is_refused_at_times() -> None:
    policy = Policy(TARGET, dc.chain(dc.temperature(0.7)))
    found = speculation(RSD(draft="same", draft_temperature=5.0, beams=1, levels=4), policy)
    assert 0.2 < found["acceptance_by_depth"][0] < 1.0


def test_the_node_budget_bounds_a_step() -> None:
    table = TableModel.random(12, seed=3)
    for most in (1, 2, 7, 100):
        found = speculation(RSD(draft="same", node_budget=most), Policy(table))
        assert found["nodes_per_step"] <= min(9, most)
        drafter = RSD(tree="branching", node_budget=most).drafter
        assert drafter.nodes == min(14, most)


@pytest.mark.parametrize("tree", ["beam", "branching"])
def test_one_beam_is_a_chain(tree: str) -> None:
    """The same drafts and tests: the very text of a chain."""
    one = {"beams": 1, "levels": 3} if tree == "beam" else {"tree": tree, "branching": (1, 1, 1)}
    chain = Speculation(Drawing(DRAFT, Branching((1, 1, 1))), NodeWise(Recursive("distinct")))
    for seed in range(30):
        asked = task(policies()["mirostat"], seed)
        assert run_alone(RSD(draft=DRAFT, **one), asked) == run_alone(chain, asked)


def test_its_greedy_form_drafts_the_most_probable_branches() -> None:
    for decoder in (RSD(), RSD(tree="branching", node_budget=5)):
        certain = decoder.certain()
        assert certain.greedy
        assert certain.drafter.drawn == "fixed"
        assert isinstance(certain.walk.rule, Match)
        assert certain.drafter.drawing.shape.certain() == certain.drafter.drawing.shape
        assert certain.drafter.nodes == decoder.drafter.nodes


# -- the draft's temperature -----------------------------------------------------------------------

COLD = dc.temperature(0.5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (dc.chain(), dc.chain(COLD)),
        (dc.chain(dc.temperature(2.0)), dc.chain(COLD)),
        (dc.chain(dc.top_p(0.9)), dc.chain(COLD, dc.top_p(0.9))),
        (
            dc.chain(dc.repetition_penalty(1.2), dc.temperature(1.5), dc.top_k(3)),
            dc.chain(dc.repetition_penalty(1.2), COLD, dc.top_k(3)),
        ),
        (
            dc.chain(dc.top_p(0.9), dc.temperature(2.0)),
            dc.chain(dc.top_p(0.9), COLD),
        ),
        (dc.chain(dc.repetition_penalty(1.2)), dc.chain(dc.repetition_penalty(1.2), COLD)),
    ],
    ids=["empty", "its own", "before a cut", "in its place", "after a cut", "behind penalties"],
)
def test_a_temperature_takes_the_place_of_the_chains_own(given: Chain, wanted: Chain) -> None:
    assert at_temperature(given, 0.5) == wanted


def test_two_temperatures_are_refused() -> None:
    """Where another sampler sets one; before the first forward."""
    policy = Policy(TARGET, dc.chain(dc.dynamic_temperature(1.0, 0.5)))
    calls = TARGET.calls
    with pytest.raises(ParameterError, match="temperature"):
        run_alone(RSD(draft=DRAFT, draft_temperature=0.5), task(policy))
    assert TARGET.calls == calls

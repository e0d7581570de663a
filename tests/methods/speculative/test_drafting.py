"""Who drafts: what a run's `draft` names, and what it means where it names nothing."""

from __future__ import annotations

import pytest

import decodery as dc
from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.distilled import Distilled
from decodery.methods.speculative.drafting import Usual, drafter_for
from decodery.methods.speculative.model_drafter import Drawing
from decodery.methods.speculative.shapes import Beam, Branching
from decodery.models.table import TableModel

SHAPE = Branching((2, 1))
TABLE = TableModel.random(4, seed=1)


@pytest.mark.parametrize(
    "draft", ["same", "exit:8", "./a-model", TABLE], ids=["same", "exit", "folder", "source"]
)
def test_sources_draw_on_trees_of_their_own(draft):
    assert drafter_for(draft, SHAPE) == Drawing(draft, SHAPE)


def test_the_head_is_named_alone_or_with_a_file():
    assert drafter_for("distilled", SHAPE) == Distilled(SHAPE)
    assert drafter_for("distilled:mine.safetensors", SHAPE, temperature=0.5, most=2) == Distilled(
        SHAPE, 0.5, "mine.safetensors", most=2
    )
    with pytest.raises(ParameterError, match="comes a file"):
        drafter_for("distilled:", SHAPE)


def test_without_a_name_a_source_without_head_drafts_by_itself():
    drafter = drafter_for(None, SHAPE, most=1)
    assert isinstance(drafter, Usual)
    assert (drafter.nodes, drafter.width, drafter.drawn) == (1, 2, "distinct")
    task = Task(Policy(TABLE), (0,), Stopping(20), Stream(0))
    named = registry.get("rsd")(draft="same", tree="branching", branching=(2, 1))
    usual = registry.get("rsd")(tree="branching", branching=(2, 1))
    assert run_alone(usual, task) == run_alone(named, task)


@pytest.mark.parametrize("method", ["draft_model", "rsd", "optimal_multi_draft"])
def test_the_embedded_model_drafts_with_its_head(method):
    model = dc.load()
    run = {"method": method, "max_tokens": 24, "seed": 3, "temperature": 0.7}
    usual = model.generate("Name a bird.", **run)
    named = model.generate("Name a bird.", draft="distilled", **run)
    assert usual.tokens == named.tokens
    found = usual.report.details["speculation"]
    assert found["draft_calls"] == 0
    assert found["nodes"] > 0


def test_a_file_that_is_no_head_is_refused_before_any_forward():
    model = dc.load()
    with pytest.raises(ParameterError, match=r"none\.safetensors"):
        model.generate("Hello", method="rsd", draft="distilled:none.safetensors")


@pytest.mark.parametrize("shape", [Beam(3, 2), Branching((2, 2))], ids=["beam", "branching"])
def test_the_greedy_form_has_fixed_candidates(shape):
    certain = drafter_for(None, shape).certain()
    assert certain.drawn == "fixed"
    assert certain.head.shape == certain.drawing.shape

"""The rsd reproduction: what a tree gains is added up rightly, and its claims follow the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import decodery as dc
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node, Tree
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.verifiers import Recursive
from decodery.methods.speculative.walks import NodeWise, Place
from decodery.reproductions import frame, rsd_measure
from decodery.reproductions.rsd import REPRODUCTION
from decodery.reproductions.rsd_measure import Gain, Probe, gain
from decodery.reproductions.rsd_settings import (
    C_6,
    C_14,
    CHAIN_3,
    CHAIN_6,
    COOL,
    HOT,
    IID_6,
    IID_14,
    NARROW_6,
    NARROW_14,
    PROMPTS,
    S_6,
    S_12,
    S_14,
    SHAPES,
    Setting,
    size,
)
from decodery.testing import TableModel

# -- what a tree gains -----------------------------------------------------------------------------


def planted(table: TableModel, seed: int = 0) -> Node:
    root = Tree(Policy(table), (0,), Stream(seed)).root
    return grown(root)


def grown(node: Node) -> Node:
    table = node.tree.policy.source
    assert isinstance(table, TableModel)
    node.receive(Row(table.scores(node.tokens), table.vocab_size))
    return node


def one_level(p: Sequence[float], q: Sequence[float], tokens: Sequence[int]) -> Candidates:
    root = planted(TableModel(lambda _: p, len(p), 0))
    draft = Candidates(root, 0)
    draft.add(root, tokens, Law.dense(q))
    return draft


def test_the_worked_example_of_one_level() -> None:
    """p = (.3, .4, .3), q = (.6, .3, .1): acceptance with 1, 2, 3 children."""
    p, q = (0.3, 0.4, 0.3), (0.6, 0.3, 0.1)
    for count, wanted in ((1, 0.7), (2, 0.875), (3, 1.0)):
        found = 0.0
        for order in itertools.permutations(range(3), count):
            chance, left = 1.0, 1.0
            for token in order:
                chance *= q[token] / left
                left -= q[token]
            given = gain(one_level(p, q, order), Recursive("distinct"))
            assert given.tokens == pytest.approx(1 + given.acceptance)
            found += chance * given.acceptance
        assert found == pytest.approx(wanted, abs=1e-12)
    for count, wanted in ((2, 0.82), (3, 0.848)):
        found = sum(
            float(np.prod([q[token] for token in drawn]))
            * gain(one_level(p, q, drawn), Recursive("iid")).acceptance
            for drawn in itertools.product(range(3), repeat=count)
        )
        assert found == pytest.approx(wanted, abs=5e-4)


def test_the_gain_of_a_tree_is_the_mean_of_its_walks() -> None:
    """A drafted tree of two levels, 4,000 walks: the mean length within 4 standard errors."""
    table, other = TableModel.random(4, seed=3), TableModel.random(4, seed=4)
    root = planted(table)
    draft = Candidates(root, 0)
    for child in draft.add(root, [2, 0], Law.of(Row(other.scores([0]), 4))):
        grown(child)
        for leaf in draft.add(child, [1, 3], Law.of(Row(other.scores(child.tokens), 4))):
            grown(leaf)
    rule = Recursive("distinct")
    task = Task(root.tree.policy, (0,), Stopping(9))
    lengths = []
    for seed in range(4000):
        path = NodeWise(rule).path(draft, Place(replace(task, stream=Stream(seed)), 0))
        lengths.append(len(path))
        if not path[-1].grown:
            path[-1].drop()
    found = gain(draft, rule)
    assert found.nodes == 6
    error = float(np.std(lengths)) / np.sqrt(len(lengths))
    assert np.mean(lengths) == pytest.approx(found.tokens, abs=4 * error)
    assert np.mean(np.array(lengths) > 1) == pytest.approx(found.acceptance, abs=4 * error)


def test_a_perfect_draft_gains_its_depth_and_probing_changes_no_text() -> None:
    table = TableModel.random(5, seed=1)
    chosen = (CHAIN_3, C_6, S_12)
    task = Task(Policy(table), (0, 1), Stopping(12), Stream(4))
    (text,) = run_alone(Probe(table, chosen, 4), task)
    assert text.tokens == run_alone(dc.sample(), task)[0].tokens
    assert table.tokens_alive == 0
    for setting, gains in text.details["gains"].items():
        assert len(gains) == 3  # after 2, 6 and 10 tokens
        for item in gains:
            assert item.tokens == pytest.approx(1 + setting.shape.depth)
            assert item.acceptance == pytest.approx(1.0)
            assert item.nodes <= setting.shape.nodes


# -- settings --------------------------------------------------------------------------------------


def test_settings_are_the_shapes_they_name() -> None:
    assert [item.shape.nodes for item in SHAPES] == [3, 6, 6, 14, 6, 14, 6, 12, 14, 6, 14]
    assert [CHAIN_3.shape.depth, IID_14.shape.depth, C_14.shape.depth, S_12.shape.depth] == [3] * 4
    assert str(S_14.at(0.7)) == "RSD-S 7x2, T=0.7"
    assert str(CHAIN_6) == "chain 6, T=1"
    assert str(IID_6) == "i.i.d. 2,2, T=1"
    assert len(set(PROMPTS)) == len(PROMPTS) == 16


# -- claims follow the data ------------------------------------------------------------------------

Invent = Callable[[Setting], float]


def invented(tokens: Invent, mode: frame.Mode = "full") -> frame.Measurements:
    """Cells without noise."""
    todo = size(mode)
    cells: dict[str, dict[Setting, np.ndarray]] = {name: {} for name in Gain._fields}
    for setting in todo.settings:
        values = (tokens(setting), 0.5, setting.shape.nodes)
        for name, value in zip(Gain._fields, values, strict=True):
            cells[name][setting] = np.full((3, 1), float(value))
    facts = {"layers of the draft": "24 of 30"}
    return frame.Measurements("invented", (0,), cells, facts)


WORTH = {CHAIN_3: 1.4, CHAIN_6: 1.5, IID_6: 1.55, IID_14: 1.6, C_6: 1.65, C_14: 1.8, S_6: 1.66}
WORTH |= {S_12: 1.75, S_14: 1.7, NARROW_6: 1.6, NARROW_14: 1.65}


def as_the_paper_says(setting: Setting) -> float:
    worth = WORTH[setting.at(HOT)]
    return 1 + 1.5 * (worth - 1) if setting.temperature == COOL else worth


def the_other_way(setting: Setting) -> float:
    return 3.0 - WORTH[setting.at(HOT)] * (1 if setting.temperature == HOT else 1.2)


def verdicts(measurements: frame.Measurements, mode: frame.Mode = "full") -> dict[str, str]:
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize(("mode", "count"), [("quick", 2), ("full", 8)])
def test_claims_follow_the_data(mode: frame.Mode, count: int) -> None:
    said = verdicts(invented(as_the_paper_says, mode), mode)
    assert list(said.values()) == ["confirmed"] * count
    other = verdicts(invented(the_other_way, mode), mode)
    assert list(other.values()) == ["not confirmed"] * count


@pytest.mark.parametrize(
    ("claim", "setting", "worth"),
    [
        ("a", C_14, 1.59),
        ("b", IID_14, 1.39),
        ("c", S_12.at(COOL), 1.5),
        ("d", C_6.at(COOL), 1.5),
        ("e1", S_14, 1.59),
        ("e2", NARROW_14.at(COOL), 1.5),
        ("f", S_6, 1.49),
        ("g", C_14.at(COOL), 2.0),
    ],
    ids=["a", "b", "c", "d", "e1", "e2", "f", "g"],
)
def test_one_wrong_setting_is_enough(claim: str, setting: Setting, worth: float) -> None:
    found = verdicts(invented(lambda item: worth if item == setting else as_the_paper_says(item)))
    assert found[claim] == "not confirmed"


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_the_figure_is_drawn(mode: frame.Mode, tmp_path: Path) -> None:
    measured = invented(as_the_paper_says, mode)
    fake = replace(REPRODUCTION, measure=lambda *_: measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "find", lambda _: fake)
        result = frame.reproduce("rsd", mode, out=tmp_path)
    assert result.figure.stat().st_size > 10_000


# -- the real thing --------------------------------------------------------------------------------


def test_a_small_run_on_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt, three shapes, two temperatures: the parts of `measure` work together."""
    chosen = tuple(item.at(heat) for heat in (HOT, COOL) for item in (CHAIN_3, IID_6, S_6))
    tiny = replace(size("quick"), settings=chosen, prompts=PROMPTS[2:3], tokens=3, every=4)
    monkeypatch.setattr(rsd_measure, "size", lambda _: tiny)
    first, again = (rsd_measure.measure("quick", 3, lambda *_: None) for _ in range(2))
    assert first.facts["drafts of a setting and text"] == 1
    for name in Gain._fields:
        assert set(first.cells[name]) == set(chosen)
        for setting, values in first.cells[name].items():
            assert values.shape == (1, 1)
            np.testing.assert_array_equal(values, again.cells[name][setting])
    for setting, values in first.cells["tokens"].items():
        assert 1.0 <= values.item() <= 1 + setting.shape.depth

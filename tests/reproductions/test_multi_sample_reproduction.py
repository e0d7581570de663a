"""The reproduction of `multi_sample`: replays are the method itself, claims follow the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise
from decodery.models.table import TableModel
from decodery.reproductions import frame, multi_sample
from decodery.reproductions.drawing import NotedDraws
from decodery.reproductions.multi_sample import REPRODUCTION, Setting
from decodery.reproductions.multi_sample_measure import (
    CHANCE,
    PAPER,
    TREE,
    Replayed,
    agreement,
    chance,
    replay,
    replayed,
    with_budget,
)

TABLE = TableModel.random(6, 2, seed=4, concentration=0.3, eos_ids=frozenset({5}))
LENGTH = 30


def task(seed: int) -> Task:
    return Task(Policy(TABLE, chain()), (0, 1, 2), Stopping(LENGTH, TABLE.eos_ids), Stream(seed))


def drawn(seed: int, n: int):
    return run_alone(NotedDraws(n, {CHANCE: chance}), task(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["paper", "tree", "small tree", "viterbi"])
def test_a_replay_is_the_method(name, seed):
    """Steps, drafted tokens and accepted tokens of every run, on a table whose texts end early."""
    drafters = {"paper": PAPER, "tree": TREE, "small tree": with_budget(3)}
    drafter = drafters.get(name) or replace(PAPER, shape="viterbi", shortest=1)
    found = replay(drawn(seed, 6), drafter, LENGTH, task(seed).prompt)
    items = run_alone(Speculation(drafter, NodeWise(Match()), 6), task(seed))
    tallies = [item.details["speculation"] for item in items]
    for mine, theirs in (("steps", "steps"), ("drafted", "nodes"), ("accepted", "accepted")):
        assert getattr(found, mine) == sum(tally[theirs] for tally in tallies)
    assert found.emitted == sum(len(item.tokens) for item in items)
    assert found.rounds == max(tally["steps"] for tally in tallies)


def test_agreement_sees_what_differs():
    todo = multi_sample.Size((Setting("default", 4, TREE),), (), LENGTH)
    texts = drawn(1, 4)
    assert agreement(task(1), texts, todo)[todo.settings[0]].item() == 1.0
    assert agreement(task(2), texts, todo)[todo.settings[0]].item() == 0.0
    other = replace(task(1), stopping=Stopping(LENGTH - 10, TABLE.eos_ids))
    assert agreement(other, texts, todo)[todo.settings[0]].item() == 0.0


def test_samples_are_replayed_in_groups():
    texts = drawn(3, 5)
    whole = replayed(texts, Setting("default", 1, TREE), LENGTH, (0, 1, 2))
    each = [replay([text], TREE, LENGTH, (0, 1, 2)) for text in texts]
    assert whole.emitted == sum(len(text.tokens) for text in texts)
    assert whole.steps == sum(item.steps for item in each)
    some = replayed(texts, Setting("default", 2, TREE), LENGTH, (0, 1, 2))
    pairs = [replay(texts[start : start + 2], TREE, LENGTH, (0, 1, 2)) for start in (0, 2)]
    assert some.emitted == sum(len(text.tokens) for text in texts[:4])
    assert some.steps == sum(item.steps for item in pairs)


def test_quantities_by_hand():
    found = Replayed(steps=10, emitted=15, accepted=5, drafted=20, rounds=4, matched=6)
    assert found.quantities == {
        "tokens per step": 1.5,
        "nodes per step": 2.0,
        "acceptance": 0.25,
        "steps with a draft": 0.6,
    }


def verdicts(good: bool, mode: frame.Mode) -> dict[str, str]:
    """Numbers without noise: as the claims say, or the other way round."""
    sign = 1.0 if good else -1.0
    cells: dict[str, dict[Setting, np.ndarray]] = {}
    for setting in multi_sample.size(mode).settings:
        base = {"default": 1.6, "paper": 1.3}.get(setting.name, 1.3)
        values = {
            "tokens per step": base + sign * 0.05 * setting.n,
            "acceptance": 0.2 + sign * (0.005 * setting.n + 0.1 * (setting.name == "paper")),
        }
        for name, value in values.items():
            cells.setdefault(name, {})[setting] = np.full((3, 1), value)
    most = multi_sample.DEFAULT[multi_sample.MOST]
    cells["agreement"] = {most: np.full((1, 1), float(good))}
    measurements = frame.Measurements("invented", (0,), cells, {})
    means, resampled = frame.cell_means(measurements), frame.bootstrap(measurements, 50)
    return {
        claim.id: frame.judge(claim, means, resampled).verdict
        for claim in REPRODUCTION.claims
        if mode in claim.modes
    }


@pytest.mark.parametrize("mode", frame.BOTH_MODES)
def test_claims_follow_the_data(mode):
    assert set(verdicts(good=True, mode=mode).values()) == {"confirmed"}
    assert set(verdicts(good=False, mode=mode).values()) == {"not confirmed"}


def test_the_default_is_the_methods():
    from decodery.core import registry

    assert registry.get("multi_sample")().drafter == TREE
    assert frame.find("multi_sample") is REPRODUCTION

"""Greedy: the argmax by hand on every kind of table, ties to the lowest id."""

from __future__ import annotations

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import TableModel, decoder_law, edge_table
from decodery.testing.samplers import Heat, Shy, Surprised

GREEDY = registry.get("greedy")()


def greedy(policy, length=6, prompt=(0,), seed=0):
    stopping = Stopping(length, policy.source.eos_ids)
    (item,) = run_alone(GREEDY, Task(policy, prompt, stopping, Stream(seed)))
    return item


def by_hand(table, length, prompt=(0,)):
    path = []
    while len(path) < length:
        scores = table.scores([*prompt, *path]).tolist()
        path.append(scores.index(max(scores)))
        if path[-1] in table.eos_ids:
            break
    return tuple(path)


@pytest.mark.parametrize("vocab_size", [1, 2, 5])
@pytest.mark.parametrize("seed", range(10))
def test_the_argmax_by_hand(vocab_size, seed):
    end = frozenset({vocab_size - 1})
    for table in (edge_table(seed, vocab_size), edge_table(seed, vocab_size, eos_ids=end)):
        assert greedy(Policy(table)).tokens == by_hand(table, 6)


def test_ties_go_to_the_lowest_id():
    assert greedy(Policy(TableModel(lambda _: [0.2, 0.4, 0.4], 3, 0))).tokens == (1,) * 6


def test_the_seed_does_not_matter():
    policy = Policy(edge_table(3, 5))
    assert len({greedy(policy, seed=seed).tokens for seed in range(20)}) == 1


def test_no_noise_is_drawn_at_all():
    law = decoder_law(GREEDY, Policy(edge_table(3, 5)), (0,), 4, grid=2)
    assert list(law.values()) == [1.0]


def test_a_temperature_changes_nothing():
    table = edge_table(4, 5)
    for temperature in (0.1, 0.9, 3.0):
        assert greedy(Policy(table, chain(Heat(temperature)))).tokens == by_hand(table, 6)


def test_it_is_greedy_on_the_policy_not_on_the_source():
    """A penalty that forbids repeats makes greedy walk through the tokens by falling chance."""
    policy = Policy(TableModel(lambda _: [0.1, 0.4, 0.3, 0.2], 4, 0), chain(Shy(10.0)))
    assert greedy(policy, 4).tokens == (1, 2, 3, 0)


def test_samplers_that_keep_the_argmax_change_nothing():
    table = TableModel.random(4, seed=9)
    assert greedy(Policy(table, chain(Surprised()))).tokens == by_hand(table, 6)


def wrong_lowest_chance(scores):
    return int(np.argmin(scores))


def wrong_last_of_ties(scores):
    return len(scores) - 1 - int(np.argmax(scores[::-1]))


def wrong_second(scores):
    return int(np.argsort(-scores, kind="stable")[min(1, len(scores) - 1)])


@pytest.mark.parametrize("wrong", [wrong_lowest_chance, wrong_last_of_ties, wrong_second])
def test_wrong_variants_are_told_apart(wrong):
    def walk(table):
        path = []
        while len(path) < 6:
            path.append(wrong(table.scores([0, *path])))
        return tuple(path)

    tables = [edge_table(seed, 5) for seed in range(10)]
    assert any(walk(table) != by_hand(table, 6) for table in tables)
    assert any(walk(table) != greedy(Policy(table)).tokens for table in tables)

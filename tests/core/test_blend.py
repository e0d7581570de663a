"""A blend of sources is a source: its law by enumeration, its calls counted, its cache returned.

The chi-square tests have N = 2,000 and alpha 1e-6 each; a decoder that drew from one member alone
(total variation above 0.1 here) is rejected with power above 0.999.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import CapacityError, PromptError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import (
    LawBroken,
    MixtureBlend,
    TableModel,
    WatchedTable,
    enumerate_law,
    require_law,
)
from decodery.testing.samplers import Heat, Shy, Surprised

SAMPLE = registry.get("sample")()
END = frozenset({2})


def table(seed, eos_ids=END, capacity=None):
    law = TableModel.random(3, seed=seed).law
    return WatchedTable(law, 3, 2, eos_ids=eos_ids, capacity=capacity, name=f"table {seed}")


def counted(policy, runs=2000, length=3):
    runner = Runner()
    stopping = Stopping(length, END)
    handles = [
        runner.submit(SAMPLE, Task(policy, (0,), stopping, Stream(seed))) for seed in range(runs)
    ]
    runner.run()
    return Counter(handle.result()[0].tokens for handle in handles)


def by_hand(members, openings, length):
    """The mixture's law from the tables alone."""
    law = {}

    def walk(path, probability):
        rows = [
            np.exp(member.scores([*opening, 0, *path]))
            for member, opening in zip(members, openings, strict=True)
        ]
        for token, share in enumerate(np.mean(rows, axis=0)):
            longer = (*path, token)
            if token in END or len(longer) == length:
                law[longer] = probability * share
            else:
                walk(longer, probability * share)

    walk((), 1.0)
    return law


@pytest.mark.parametrize("openings", [((), ()), ((1,), (2, 1)), ((0, 0, 0), ())], ids=str)
def test_the_enumerated_law_is_the_law_by_hand(openings):
    members = table(1), table(2)
    law = enumerate_law(Policy(MixtureBlend(*members, openings=openings)), (0,), Stopping(3, END))
    wanted = by_hand(members, openings, 3)
    assert law.keys() == wanted.keys()
    assert all(abs(law[path] - wanted[path]) < 1e-12 for path in law)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("openings", [((), ()), ((1,), (2, 1))], ids=["one prompt", "two prompts"])
def test_what_is_drawn_follows_the_law(openings):
    members = table(1), table(2)
    policy = Policy(MixtureBlend(*members, openings=openings))
    require_law(counted(policy), by_hand(members, openings, 3), 1e-6, "the blend")


def test_samplers_with_state_act_after_the_blend():
    policy = Policy(MixtureBlend(table(1), table(2)), chain(Shy(), Surprised(), Heat()))
    require_law(counted(policy), enumerate_law(policy, (0,), Stopping(3, END)), 1e-6, "the blend")


def test_one_member_alone_would_be_found():
    members = table(1), table(2)
    with pytest.raises(LawBroken):
        require_law(counted(Policy(members[0])), by_hand(members, ((), ()), 3), 1e-6, "one member")


def test_one_call_a_step_when_both_members_are_one_model():
    model = table(1, eos_ids=frozenset())
    policy = Policy(MixtureBlend(model, model, openings=((1,), (2, 1))))
    (item,) = run_alone(SAMPLE, Task(policy, (0,), Stopping(5), Stream(1)))
    assert len(item.tokens) == 5
    assert model.calls == 5
    assert model.tokens_alive == 0


def test_one_call_a_step_for_each_of_two_models():
    members = table(1, frozenset()), table(2, frozenset())
    runner = Runner()
    for seed in range(6):
        runner.submit(SAMPLE, Task(Policy(MixtureBlend(*members)), (0,), Stopping(4), Stream(seed)))
    runner.run()
    assert [model.calls for model in members] == [4, 4]
    assert [model.tokens_alive for model in members] == [0, 0]
    assert [model.reserved for model in members] == [0, 0]


def test_a_blend_of_blends():
    members = [table(seed) for seed in (1, 2, 3)]
    nested = Policy(MixtureBlend(members[0], MixtureBlend(members[1], members[2])))
    law = enumerate_law(nested, (0,), 1)
    rows = [np.exp(model.scores([0])) for model in members]
    wanted = rows[0] / 2 + rows[1] / 4 + rows[2] / 4
    assert [law[token,] for token in range(3)] == pytest.approx(wanted.tolist(), abs=1e-12)
    require_law(counted(nested, length=1), law, 1e-6, "a blend of blends")


def test_the_longer_prompt_of_a_member_counts_for_its_cache():
    small = table(2, capacity=8)
    policy = Policy(MixtureBlend(table(1), small, openings=((), (0,) * 5)))
    with pytest.raises(CapacityError, match="may need 10 cache slots and table 2 has 8"):
        Runner().submit(SAMPLE, Task(policy, (0,), Stopping(4)))
    run_alone(SAMPLE, Task(policy, (0,), Stopping(2)))
    assert small.peak <= 8


def test_a_member_without_a_prompt_is_refused():
    class Promptless(MixtureBlend):
        def prompts(self, prompt):
            return [prompt, ()]

    with pytest.raises(PromptError, match="empty"):
        Runner().submit(SAMPLE, Task(Policy(Promptless(table(1), table(2))), (0,), Stopping(2)))


def test_a_blend_that_makes_nan_ends_its_request_only():
    class Broken(MixtureBlend):
        def combine(self, rows, state, context):
            return Row.dense([np.nan] * 3)

    runner = Runner()
    sick = runner.submit(SAMPLE, Task(Policy(Broken(table(1), table(2))), (0,), Stopping(2)))
    well = runner.submit(SAMPLE, Task(Policy(table(1)), (0,), Stopping(2)))
    runner.run()
    assert "NaN" in str(sick.error)
    assert well.completions

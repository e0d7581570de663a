"""Joint rows: a decoder that reads several nodes together gives a node the row it draws from."""

from __future__ import annotations

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import CapacityError, TreeError
from decodery.core.requests import Grow, Open
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy, total
from decodery.core.stopping import Stopping
from decodery.testing import TableModel, WatchedTable
from decodery.testing.samplers import Coin, Heat, Surprised

SAMPLE = registry.get("sample")()
OTHER = Row.of_probabilities([0.7, 0.2, 0.1])


def driven(body, sampler=None, source=None):
    """Run a generator function as the decoder of one request."""

    class Drive(type(SAMPLE)):
        def decode(self, task):
            yield from body(task)
            return []

    policy = Policy(source or TableModel.random(3, seed=1), sampler or chain())
    run_alone(Drive(), Task(policy, (0,), Stopping(4)))


@pytest.mark.parametrize("sampler", [chain(), chain(Heat(0.5)), chain(Coin())], ids=str)
def test_the_samplers_act_on_the_new_row(sampler):
    def body(task):
        root = yield Open(task.policy, task.prompt)
        root.policy_row()  # what was computed from the old row is forgotten
        root.replace_row(OTHER)
        wanted = sampler.apply(OTHER, root.state, root.context())
        assert root.row is OTHER
        assert root.policy_row().dense_probabilities() == pytest.approx(
            wanted.dense_probabilities(), abs=1e-15
        )

    driven(body, sampler)


def test_states_that_observe_rows_see_the_new_one():
    sampler = chain(Surprised())

    def body(task):
        root = yield Open(task.policy, task.prompt)
        own = root.row
        root.replace_row(OTHER)
        child = root.child(2)
        yield Grow([child])
        seen, old = (
            sampler.advance(sampler.start(root.context()), 2, row, root.context())
            for row in (OTHER, own)
        )
        assert child.state == seen != old

    driven(body, sampler)


def test_it_comes_after_growth_and_before_children():
    def body(task):
        root = yield Open(task.policy, task.prompt)
        child = root.child(0)
        with pytest.raises(TreeError, match="no row to replace"):
            child.replace_row(OTHER)  # not grown
        with pytest.raises(TreeError, match="or children that came from it"):
            root.replace_row(OTHER)
        child.drop()
        root.replace_row(OTHER)
        child = root.child(1)
        yield Grow([child])
        with pytest.raises(TreeError, match="no row to replace"):
            root.replace_row(OTHER)  # let go
        assert root.tree.alive == 2

    driven(body)


def test_a_decoder_of_other_prompts_reserves_for_them():
    """Its slots are what is admitted and given back, not the task's prompt's."""

    class Elsewhere(type(SAMPLE)):
        def slots(self, task):
            return total(task.policy.source.slots(task, p, self.footprint) for p in self.prompts)

        def decode(self, task):
            roots = yield tuple(Open(task.policy, prompt) for prompt in self.prompts)
            assert task.policy.source.reserved == 5 + 2 + 2 * 3
            assert np.allclose(roots[0].row.scores, task.policy.source.scores(self.prompts[0]))
            return []

    Elsewhere.prompts = ((0, 1, 2, 0, 1), (2, 2))
    for capacity in (12, 13):
        source = WatchedTable(TableModel.random(3, seed=1).law, 3, 2, capacity=capacity)
        task = Task(Policy(source), (0,), Stopping(3))
        if capacity == 12:
            with pytest.raises(CapacityError, match="may need 13 cache slots"):
                Runner().submit(Elsewhere(), task)
        else:
            run_alone(Elsewhere(), task)
        assert source.reserved == source.tokens_alive == 0

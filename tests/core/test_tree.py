"""The tree: paths shared and copied at forks, states of branches, rows released, nodes dropped."""

from __future__ import annotations

import numpy as np
import pytest

from decodery.core.errors import TreeError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.tree import Tree
from decodery.testing import TableModel
from decodery.testing.samplers import Coin, Shy, Surprised

TABLE = TableModel.random(4, seed=1)


def plant(*samplers, prompt=(0, 1)):
    tree = Tree(Policy(TABLE, chain(samplers)), prompt, Stream(3))
    grow(tree.root)
    return tree


def grow(node):
    node.receive(Row.dense(TABLE.scores(node.tokens)))
    return node


def line(node, tokens):
    for token in tokens:
        node = grow(node.child(token))
    return node


def test_paths():
    tree = plant()
    tip = line(tree.root, [2, 3, 1])
    assert tip.tokens == [0, 1, 2, 3, 1]
    assert tip.generated == [2, 3, 1]
    assert tip.tail(2) == [3, 1]
    assert tip.tail(9) == [2, 3, 1]
    assert tip.depth == 5
    assert [node.token for node in tip.ancestors()] == [3, 2, 1]
    assert tree.root.generated == []
    assert tree.root.is_root


def test_forks_do_not_see_each_other():
    tree = plant()
    trunk = line(tree.root, [2])
    branches = [line(trunk, [token, token]) for token in range(4)]
    assert [tip.generated for tip in branches] == [[2, token, token] for token in range(4)]
    assert trunk.generated == [2]


def test_a_straight_sequence_shares_one_list_and_a_fork_copies_it():
    tree = plant()
    first = line(tree.root, [1, 2])
    assert first._path is tree.root._path
    second = tree.root.child(3)
    assert second._path is not tree.root._path
    assert first.generated == [1, 2]


def test_a_child_made_after_its_sibling_was_dropped():
    tree = plant()
    tree.root.child(1).drop()
    later = tree.root.child(2)
    assert later.generated == [2]
    assert tree.root.children == [later]


def test_random_trees_keep_their_paths():
    """A thousand random growths, forks and drops; every living path is what its tokens say."""
    generator = np.random.default_rng(0)
    tree = plant()
    known = {tree.root: ()}
    for _ in range(1000):
        nodes = [node for node in known if not node.dropped]
        parent = nodes[generator.integers(len(nodes))]
        if generator.random() < 0.1 and not parent.is_root:
            parent.drop()
            continue
        token = int(generator.integers(4))
        known[grow(parent.child(token))] = (*known[parent], token)
    alive = {node: path for node, path in known.items() if not node.dropped}
    assert all(tuple(node.generated) == path for node, path in alive.items())
    assert tree.alive == len(alive)


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(TreeError, match=f"token {token} is outside the vocabulary of 4"):
        plant().root.child(token)


def test_the_row_of_a_node_not_grown_is_refused():
    child = plant().root.child(1)
    with pytest.raises(TreeError, match="is not grown yet"):
        child.row  # noqa: B018
    assert not child.has_row


# -- states ----------------------------------------------------------------------------------------


def test_states_follow_the_path():
    tree = plant(Shy())
    left, right = line(tree.root, [1, 1]), line(tree.root, [2])
    assert left.state == ((1, 1),)
    assert right.state == ((2,),)
    assert tree.root.state == ((),)


def test_states_are_computed_when_asked_for_and_once():
    class Counted(Shy):
        calls = 0

        def advance(self, state, token, row, context):
            Counted.calls += 1
            return super().advance(state, token, row, context)

    tree = plant(Counted())
    tip = line(tree.root, [1, 2, 3])
    assert Counted.calls == 0
    assert tip.state == ((1, 2, 3),)
    assert tip.state == ((1, 2, 3),)
    assert Counted.calls == 3


def test_a_deep_path_needs_no_recursion():
    tree = plant(Shy(0.0))
    tip = tree.root
    for _ in range(3000):
        tip = tip.child(1)
    assert len(tip.state[0]) == 3000


def test_releasing_a_row_saves_the_states_that_need_it():
    tree = plant(Surprised())
    expected = plant(Surprised())
    child, twin = tree.root.child(2), expected.root.child(2)
    tree.root.release_row()
    assert not tree.root.has_row
    assert child.state == twin.state
    late = tree.root.child(1)
    with pytest.raises(TreeError, match="has released its row"):
        late.state  # noqa: B018


def test_policy_rows_are_kept_and_match_the_sampler():
    tree = plant(Shy(1.0))
    tip = line(tree.root, [2])
    row = tip.policy_row()
    assert row is tip.policy_row()
    assert row.scores[2] == pytest.approx(tip.row.scores[2] - 1.0)


def test_noise_depends_on_the_sequence_and_the_place():
    tree = plant(Coin())
    rows = [tree.root.policy_row(sequence).scores.tolist() for sequence in range(40)]
    assert len({tuple(row) for row in rows}) == 2
    assert rows[7] == tree.root.policy_row(7).scores.tolist()


def test_a_draw_is_keyed_by_sequence_and_depth():
    tree = plant()
    expected = tree.root.row.draw(Stream(3).uniform(5, 2, "token"))
    assert tree.root.draw(5) == expected


# -- dropping --------------------------------------------------------------------------------------


def test_drop_takes_everything_below():
    tree = plant()
    trunk = line(tree.root, [1])
    below = [line(trunk, [token]) for token in (1, 2, 3)]
    other = line(tree.root, [2])
    for place, node in enumerate([trunk, *below]):
        node.handle = place
    trunk.drop()
    assert all(node.dropped for node in [trunk, *below])
    assert not other.dropped
    assert tree.root.children == [other]
    assert sorted(tree.abandoned) == [0, 1, 2, 3]
    assert tree.alive == 2
    trunk.drop()
    assert tree.alive == 2
    assert sorted(tree.pruned) == sorted(node.index for node in [trunk, *below])


def test_nothing_grows_below_a_dropped_node():
    node = plant().root.child(1)
    node.drop()
    with pytest.raises(TreeError, match="was dropped"):
        node.child(1)


def test_abandon_climbs_to_the_last_fork():
    tree = plant()
    trunk = line(tree.root, [1])
    left, right = line(trunk, [1, 2, 3]), line(trunk, [2])
    left.abandon()
    assert trunk.children == [right]
    right.abandon()
    assert trunk.dropped
    assert not tree.root.dropped
    assert tree.alive == 1


def test_abandon_of_what_is_gone_or_the_root_does_nothing():
    tree = plant()
    trunk = line(tree.root, [1])
    left, right = line(trunk, [1]), line(trunk, [2])
    left.drop()
    left.abandon()
    assert not right.dropped
    tree.root.abandon()
    assert not tree.root.dropped

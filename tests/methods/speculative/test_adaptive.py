"""Adaptive drafts: the nodes that pay are chosen, guesses are judged in hindsight, texts stay.

Everything here is deterministic: costs are handed in, and tables answer. That texts are, token for
token, those of plain sampling is an identity, so one differing token fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from decodery.core.costs import StepCosts
from decodery.core.decoder import Task
from decodery.core.rng import Stream as Noise
from decodery.core.runner import run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node, Tree
from decodery.methods.autoregressive import greedy, sample
from decodery.methods.speculative import speculate
from decodery.methods.speculative.adaptive import GAIN, Adaptive, AdaptiveSession
from decodery.methods.speculative.drafters import Stream
from decodery.methods.speculative.lookup_proposer import Continuations, LookupProposer
from decodery.methods.speculative.proposers import Chances, Guess, Proposer, Watcher
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match
from decodery.methods.speculative.walks import NodeWise
from decodery.models.table import TableModel

SIZE = 8


@dataclass(frozen=True)
class Scripted(Proposer):
    """Guesses by the path below the tip: {(): [(token, chance), ...], (token,): ...}."""

    script: Any = None
    asked: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])

    def watcher(self, task: Task) -> Watcher:
        return _ScriptedWatcher(self)


class _ScriptedWatcher(Watcher):
    def __init__(self, proposer: Scripted) -> None:
        self.proposer = proposer

    def begin(self, stream: Stream) -> tuple[int, ...]:
        return ()

    def after(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)

    def guesses(self, state: tuple[int, ...]) -> Sequence[Guess]:
        self.proposer.asked.append(state)
        entries = self.proposer.script.get(state, ())
        return [Guess(token, (state, token), chance) for token, chance in entries]


class Priced(StepCosts):
    """Costs by rows that are known; beyond, the last one for each further row."""

    def __init__(self, costs: dict[int, float]) -> None:
        super().__init__()
        self.costs = {1: 1.0, **costs}
        self.rows = 1  # no rows but this request's own

    unit = 1.0

    def note(self, rows: int, seconds: float) -> None:
        return

    def of(self, rows: int) -> float:
        last = max(self.costs)
        return self.costs[min(rows, last)] + max(0, rows - last)


def table(costs: StepCosts | None = None) -> TableModel:
    model = TableModel.random(SIZE, seed=3)
    model.costs = costs
    return model


def drafted(
    script: Any,
    costs: dict[int, float] | None,
    *,
    nodes: int = 8,
    room: int = 50,
    streams: int = 1,
    ends: frozenset[int] = frozenset(),
) -> list[set[tuple[int, ...]]]:
    """The paths that a session drafts for each of some streams."""
    model = table(None if costs is None else Priced(costs))
    task = Task(Policy(model), (0,), Stopping(room, ends))
    tree = Tree(task.policy, (0,), Noise(0))
    session = AdaptiveSession(Adaptive((Scripted(script),), nodes), task)
    session._rows = 1
    made = [Stream(number, tree.root, room) for number in range(streams)]
    drafting = session.draft(made, nodes)
    with pytest.raises(StopIteration) as end:
        next(drafting)
    return [{_path(node, tree.root) for node in draft.nodes()} for draft in end.value.value]


def _path(node: Node, root: Node) -> tuple[int, ...]:
    found: list[int] = []
    while node is not root:
        found.append(node.token)
        assert node.parent is not None
        node = node.parent
    return tuple(reversed(found))


CHAIN = {(): [(1, 0.9)], (1,): [(2, 0.8)], (1, 2): [(3, 0.5)], (1, 2, 3): [(4, 0.1)]}


# -- what is chosen --------------------------------------------------------------------------------


def test_where_rows_are_free_every_guess_is_drafted():
    assert drafted(CHAIN, None) == [{(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)}]


def test_where_rows_cost_as_much_as_steps_nothing_is_drafted():
    assert drafted(CHAIN, {2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}) == [set()]


def test_a_draft_is_as_long_as_it_pays():
    # values: 1, 1.9/1.2 = 1.58, 2.62/1.5 = 1.75, 2.98/1.9 = 1.57, 3.016/2.4
    assert drafted(CHAIN, {2: 1.2, 3: 1.5, 4: 1.9, 5: 2.4}) == [{(1,), (1, 2)}]


def test_the_choice_is_the_best_of_all_trees():
    """Against all sets of nodes that are closed upwards, on random scripts and costs."""
    generator = np.random.default_rng(5)
    for _ in range(40):
        tokens = [1, 2]
        paths = [path for depth in (1, 2) for path in itertools.product(tokens, repeat=depth)]
        shares = {above: generator.dirichlet([1.0, 1.0, 0.7])[:2] for above in [(), (1,), (2,)]}
        script = {
            above: [(t, float(c)) for t, c in zip(tokens, share, strict=True)]
            for above, share in shares.items()
        }
        steps = np.sort(generator.uniform(0.05, 0.5, len(paths)))  # convex: rows get dearer
        costs = {count + 2: 1.0 + float(steps[: count + 1].sum()) for count in range(len(paths))}
        chances = {
            path: float(
                np.prod([shares[path[:i]][tokens.index(path[i])] for i in range(len(path))])
            )
            for path in paths
        }
        worth = {
            tuple(chosen): (1 + sum(chances[p] for p in chosen)) / (costs[len(chosen) + 1])
            for count in range(1, len(paths) + 1)
            for chosen in itertools.combinations(paths, count)
            if all(len(p) == 1 or p[:1] in chosen for p in chosen)
        }
        best = max(worth, key=worth.__getitem__)
        (found,) = drafted(script, costs)
        chosen = tuple(path for path in paths if path in found)
        if worth[best] > GAIN:
            assert worth[chosen] == pytest.approx(worth[best])
        else:
            assert chosen == ()


def test_no_more_nodes_than_allowed_and_none_beyond_the_room():
    assert drafted(CHAIN, None, nodes=2) == [{(1,), (1, 2)}]
    assert drafted(CHAIN, None, room=2) == [{(1,)}]
    assert drafted(CHAIN, None, room=1) == [set()]


def test_nothing_is_guessed_behind_an_end():
    assert drafted(CHAIN, None, ends=frozenset({2})) == [{(1,), (1, 2)}]


def test_streams_share_the_rows():
    """Two streams begin at two rows; a node must pay at the price of its own row."""
    costs = {2: 1.1, 3: 1.3, 4: 2.5, 5: 4.0, 6: 6.0}
    found = drafted({(): [(1, 0.95)]}, costs, streams=2)
    assert sum(map(len, found)) == 1


# -- hindsight -------------------------------------------------------------------------------------


def test_chances_follow_what_comes():
    chances = Chances()
    sure, never = Guess(1, "a", 0.5), Guess(2, "b", 0.5)
    for _ in range(60):
        chances.learn(sure, came=True)
        chances.learn(never, came=False)
    assert chances.of(sure) > 0.92
    assert chances.of(never) < 0.08
    for _ in range(60):
        chances.learn(sure, came=False)
    assert chances.of(sure) < 0.35  # what was long ago counts less


def test_guesses_that_were_not_verified_are_judged_too():
    """A stream of 3s: the guess 3 is not drafted at first, since it is thought unlikely."""
    model = TableModel(lambda _: np.eye(SIZE)[3], SIZE, 0)
    model.costs = Priced({2: 1.3, 3: 1.6, 4: 2.2})
    script = {(): [(3, 0.1)]}
    decoder = Speculation(Adaptive((Scripted(script),)), NodeWise(Match()))
    task = Task(Policy(model), (0,), Stopping(60))
    (answer,) = run_alone(decoder, task)
    assert answer.tokens == (3,) * 60
    told = answer.details["speculation"]
    assert 0 < told["accepted"] < 40
    assert told["nodes"] == told["accepted"]


def test_of_kinds_that_are_new_here_what_is_known_elsewhere_counts():
    known = Chances()
    guess = Guess(1, "a", 0.1)
    for _ in range(30):
        Chances(known).learn(guess, came=True)
    here = Chances(known)
    assert here.of(guess) == known.of(guess) > 0.8
    assert here.of(Guess(1, "b", 0.1)) == pytest.approx(0.1)
    for _ in range(30):
        here.learn(guess, came=False)
    assert here.of(guess) < 0.2 < known.of(guess)  # what came here counts more


def test_a_request_learns_from_those_before_it():
    """A stream of 3s again: whoever comes later drafts from the start. Greedy decoding, of which
    more comes true, keeps what it learns apart."""
    model = TableModel(lambda _: np.eye(SIZE)[3], SIZE, 0)
    model.costs = Priced({2: 1.3, 3: 1.6, 4: 2.2})
    decoder = Speculation(Adaptive((Scripted({(): [(3, 0.1)]}),)), NodeWise(Match()))
    task = Task(Policy(model), (0,), Stopping(30))

    def accepted(decoder: Speculation) -> int:
        return run_alone(decoder, task)[0].details["speculation"]["accepted"]

    first, second = accepted(decoder), accepted(decoder)
    assert 0 < first < second == 15  # every step has room for one: two tokens each
    assert accepted(decoder.certain()) == first


def test_where_nothing_is_measured_a_request_is_repeatable():
    """How much is drafted depends on the request alone, unlike where forwards are timed."""
    model = TableModel(lambda _: np.eye(SIZE)[3], SIZE, 0)
    never = Scripted({(): [(2, 0.06)]})  # given up before long: 1.06 tokens a step were hoped for
    decoder = Speculation(Adaptive((never,)), NodeWise(Match()))
    task = Task(Policy(model), (0,), Stopping(30))
    first, second = (run_alone(decoder, task)[0].details for _ in range(2))
    assert first["speculation"]["nodes"] > 0
    assert first == second


# -- lookups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_continuations_equal_a_search_by_hand(seed):
    generator = np.random.default_rng(seed)
    text = generator.integers(0, 3, 60).tolist()
    known = Continuations(4)
    for place, token in enumerate(text):
        size, counts = known.after(known.tail)
        wanted = _by_hand(text[:place], 4)
        assert (size, counts) == wanted
        known.extend([token])


def _by_hand(text: list[int], longest: int) -> tuple[int, dict[int, int]]:
    for size in range(min(longest, len(text)), 0, -1):
        end = text[-size:]
        after = [
            text[place + size]
            for place in range(len(text) - size)
            if text[place : place + size] == end
        ]
        if after:
            return size, {token: after.count(token) for token in after}
    return 0, {}


def test_the_most_frequent_continuation_is_guessed_and_of_equal_ones_the_latest():
    task = Task(Policy(table()), (1, 5, 1, 6, 1, 5, 2, 1), Stopping(9))
    watcher = LookupProposer(longest=1).watcher(task)
    tree = Tree(task.policy, task.prompt, Noise(0))
    (guess,) = watcher.guesses(watcher.begin(Stream(0, tree.root, 9)))
    assert guess.token == 5
    even = Task(Policy(table()), (1, 5, 1, 6, 1), Stopping(9))
    watcher = LookupProposer(longest=1).watcher(even)
    (guess,) = watcher.guesses(
        watcher.begin(Stream(0, Tree(even.policy, even.prompt, Noise(0)).root, 9))
    )
    assert guess.token == 6


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("costs", [None, {2: 1.2, 3: 1.4, 4: 1.7}], ids=["free", "priced"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_text_is_that_of_plain_sampling(costs, n):
    for seed in range(20):
        model = TableModel.random(4, seed=seed, concentration=0.3, eos_ids=frozenset({3}))
        model.costs = None if costs is None else Priced(costs)
        task = Task(Policy(model), (0, 1, 2, 0, 1), Stopping(30, model.eos_ids), Noise(seed))
        plain = run_alone(sample.METHOD(n=n), task)
        fast = run_alone(speculate.METHOD(n=n), task)
        assert [item.tokens for item in fast] == [item.tokens for item in plain]
        assert [item.finish_reason for item in fast] == [item.finish_reason for item in plain]


def test_certain_is_greedy_decoding():
    for seed in range(20):
        model = TableModel.random(4, seed=seed, concentration=0.3, eos_ids=frozenset({3}))
        task = Task(Policy(model), (0, 1, 2, 0, 1), Stopping(30, model.eos_ids), Noise(seed))
        decoder = speculate.METHOD().certain()
        assert decoder.reads_argmax_only
        assert run_alone(decoder, task)[0].tokens == run_alone(greedy.METHOD(), task)[0].tokens


def test_an_answer_that_repeats_takes_few_forwards():
    model = TableModel(lambda context: np.eye(SIZE)[(context[-1] + 1) % SIZE], SIZE, 1)
    task = Task(Policy(model), (0,), Stopping(200))
    (answer,) = run_alone(speculate.METHOD(), task)
    assert answer.details["speculation"]["steps"] < 60

"""The conditional walk on fixed trees: its threshold, its longest path, and what is monotone.

Trees are random, on random tables; every path is tried by hand. Negative controls: a threshold that
may exceed the most probable token, the first long path in place of the likeliest, a first child in
place of the longest path, and no guard of the end.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from alignment_cases import threshold

from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Tree
from decodery.methods.speculative import walks
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.walks import Conditional, Place
from decodery.testing import TableModel

LETTERS = 4
END = frozenset({3})


def draft_of(seed, nodes=12, ends=frozenset()):
    """A random tree of candidates, grown, below a prompt, and its place."""
    generator = np.random.default_rng(seed)
    concentration = float(generator.choice([0.3, 1.0, 3.0]))
    table = TableModel.random(LETTERS, seed=seed, concentration=concentration, eos_ids=ends)
    task = Task(Policy(table), (0, 1), Stopping(20, ends), Stream(seed))
    tree = Tree(task.policy, task.prompt, task.stream)
    draft, open_nodes = Candidates(tree.root, 0), [tree.root]
    grow(tree.root, table)
    for _ in range(nodes):
        parent = open_nodes[int(generator.integers(len(open_nodes)))]
        taken = [child.token for child in draft.children.get(parent, [])]
        left = [token for token in range(LETTERS) if token not in taken]
        if left:
            token = int(generator.choice(left))
            node = parent.child(token, 0)
            draft.children.setdefault(parent, []).append(node)
            grow(node, table)
            if token not in ends:
                open_nodes.append(node)
    return draft, Place(task, 0, greedy=True)


def grow(node, table):
    node.receive(Row(table.scores(node.tokens), LETTERS))


def chances(node):
    return node.row.probabilities().tolist()


def accepted_by_hand(draft, walk, ends=frozenset()):
    """Every node that passes at its parent, judged alone."""
    passing = set()
    for parent, children in draft.children.items():
        law = chances(parent)
        if walk.constant:
            least = max([walk.base, *(law[end] for end in ends)])
        else:
            least = threshold(law, walk.slope, walk.base, walk.floor)
        for child in children:
            outdone = child.token not in ends and any(law[end] >= law[child.token] for end in ends)
            if law[child.token] >= least and not outdone:
                passing.add(child)
    return passing


def best_by_hand(draft, passing):
    """The longest path of passing nodes, of those the most probable."""
    best, worth = [], 0.0

    def visit(node, path, log):
        nonlocal best, worth
        if len(path) > len(best) or (len(path) == len(best) and log > worth + 1e-12):
            best, worth = path, log
        for child in draft.children.get(node, []):
            if child in passing:
                visit(child, [*path, child], log + math.log(chances(node)[child.token]))

    visit(draft.tip, [], 0.0)
    return best


def random_walk(seed):
    generator = np.random.default_rng([9, seed])
    return Conditional(
        slope=float(generator.choice([0.0, 0.1, 0.3, 1.0])),
        base=float(generator.uniform(0.0, 0.9)),
        floor=float(generator.choice([0.0, 0.02, 0.2])),
        constant=seed % 3 == 0,
    )


def accepted(draft, walk, place):
    """The candidates on the walk's path; what is drawn behind them is dropped again."""
    path = walk.path(draft, place)
    if path and not path[-1].grown:
        path[-1].drop()
        path = path[:-1]
    return path


def check_paths(seeds=range(200)):
    for seed in seeds:
        ends = END if seed % 2 else frozenset()
        draft, place = draft_of(seed, ends=ends)
        walk = random_walk(seed)
        wanted = best_by_hand(draft, accepted_by_hand(draft, walk, ends))
        found = accepted(draft, walk, place)
        assert len(found) == len(wanted)
        assert log_chance(found) == pytest.approx(log_chance(wanted), abs=1e-9)


def log_chance(path):
    return sum(math.log(chances(node.parent)[node.token]) for node in path)


def test_the_longest_path_of_accepted_candidates_then_the_likeliest() -> None:
    check_paths()


def test_an_ignored_end_token_guards_nothing() -> None:
    """With `ignore_eos` it is a token as any other: paths are those of a text without ends."""
    differs = 0
    for seed in range(40):
        draft, place = draft_of(seed, ends=END)
        walk = random_walk(seed)
        guarded = accepted(draft, walk, place)
        stopping = replace(place.task.stopping, ignore_eos=True)
        free = Place(replace(place.task, stopping=stopping), 0, greedy=True)
        without = Place(replace(place.task, stopping=Stopping(20)), 0, greedy=True)
        assert accepted(draft, walk, free) == accepted(draft, walk, without)
        differs += accepted(draft, walk, free) != guarded
    assert differs > 0


def test_what_comes_behind_is_the_argmax_or_ends_the_text() -> None:
    for seed in range(60):
        ends = END if seed % 2 else frozenset()
        draft, place = draft_of(seed, ends=ends)
        path = random_walk(seed).path(draft, place)
        last = path[-1]
        if last.grown:
            assert last.token in ends
        else:
            assert last.token == int(np.argmax(chances(last.parent)))


def check_thresholds():
    """tau = min(max p, max(b - a H, floor)) in closed form: even, certain, and two tokens."""
    place = draft_of(0)[1]
    law = walks.Law.dense
    even = law([0.25] * 4)
    assert Conditional(0.1, 0.3, 0.02).threshold(even, place) == pytest.approx(
        0.3 - 0.1 * math.log(4), abs=1e-12
    )
    assert Conditional(0.1, 0.9, 0.0).threshold(even, place) == pytest.approx(0.25, abs=1e-12)
    assert Conditional(0.1, 0.1, 0.02).threshold(even, place) == pytest.approx(0.02, abs=1e-12)
    assert Conditional(0.1, 0.1, 0.6).threshold(even, place) == pytest.approx(0.25, abs=1e-12)
    certain = law([0.0, 1.0, 0.0])
    assert Conditional(5.0, 0.4, 0.0).threshold(certain, place) == pytest.approx(0.4, abs=1e-12)
    assert Conditional(0.0, 1.0, 0.0).threshold(certain, place) == pytest.approx(1.0, abs=1e-12)
    two = law([0.75, 0.25])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    wanted = 0.5 - 0.2 * entropy
    assert Conditional(0.2, 0.5, 0.0).threshold(two, place) == pytest.approx(wanted, abs=1e-12)


def test_the_threshold_in_closed_form() -> None:
    check_thresholds()


def test_the_most_probable_candidate_passes_whatever_the_threshold() -> None:
    for seed in range(60):
        draft, place = draft_of(seed)
        law = chances(draft.tip)
        tops = [node for node in draft.children[draft.tip] if law[node.token] == max(law)]
        found = accepted(draft, Conditional(0.0, 1.0, 1.0), place)
        assert len(found) >= len(tops[:1])


GRID = {
    "base": (0.0, 0.05, 0.1, 0.3, 0.6, 1.0),
    "floor": (0.0, 0.02, 0.1, 0.3, 0.7),
    "slope": (0.0, 0.05, 0.1, 0.3, 1.0, 5.0),
}


def passing(draft, walk, place):
    """Every candidate that is above the walk's threshold at its parent."""
    return {
        child
        for parent, children in draft.children.items()
        for child in children
        if chances(parent)[child.token] >= walk.threshold(place.law(parent), place)
    }


@pytest.mark.parametrize("name", sorted(GRID))
def test_acceptance_is_monotone(name) -> None:
    """A higher base or floor accepts fewer and never a longer path; a higher slope more."""
    for seed in range(60):
        draft, place = draft_of(seed, nodes=20)
        walk_of = {"base": 0.4, "floor": 0.02, "slope": 0.1}
        walks_ = [Conditional(**{**walk_of, name: value}) for value in GRID[name]]
        sets = [passing(draft, walk, place) for walk in walks_]
        lengths = [len(accepted(draft, walk, place)) for walk in walks_]
        if name == "slope":
            sets, lengths = sets[::-1], lengths[::-1]
        for more, fewer in pairwise(sets):
            assert fewer <= more
        assert lengths == sorted(lengths, reverse=True)


def test_without_threshold_every_possible_candidate_passes() -> None:
    for seed in range(60):
        draft, place = draft_of(seed)
        deepest = sum(1 for _ in draft.levels())
        assert len(accepted(draft, Conditional(0.0, 0.0, 0.0), place)) == deepest


# -- negative controls -----------------------------------------------------------------------------


def unbounded(self, law, place):
    positive = law.masses[law.masses > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    if self.constant:
        return PROPER_THRESHOLD(self, law, place)
    return max(self.base - self.slope * entropy, self.floor)


def in_bits(self, law, place):
    if self.constant:
        return PROPER_THRESHOLD(self, law, place)
    masses = law.masses[law.masses > 0]
    entropy = float(-(masses * np.log2(masses)).sum())
    return min(float(law.masses.max()), max(self.base - self.slope * entropy, self.floor))


PROPER_THRESHOLD = Conditional.threshold


@pytest.mark.parametrize("mutant", [unbounded, in_bits])
def test_wrong_thresholds_are_found(monkeypatch, mutant) -> None:
    monkeypatch.setattr(Conditional, "threshold", mutant)
    for check in (check_thresholds, check_paths):
        with pytest.raises(AssertionError):
            check()


def first_child(self, draft, place, node):
    """Follows the first candidate that passes, as token by token."""
    law = place.law(node)
    for child in draft.children.get(node, ()):
        if law[child.token] >= self.threshold(law, place):
            if place.is_over(child):
                return (1, math.log(law[child.token])), [child]
            (length, worth), rest = first_child(self, draft, place, child)
            return (length + 1, worth + math.log(law[child.token])), [child, *rest]
    return (0, 0.0), []


def least_likely(self, draft, place, node):
    """Of equally long paths the least probable."""
    best = ((0, 0.0), [])
    law = place.law(node)
    for child in draft.children.get(node, ()):
        chance = law[child.token]
        if chance < self.threshold(law, place) or self._is_ending(law, place, child.token, chance):
            continue
        over = place.is_over(child)
        (length, worth), rest = ((0, 0.0), []) if over else least_likely(self, draft, place, child)
        key = (length + 1, worth - math.log(chance))
        if key > best[0]:
            best = (key, [child, *rest])
    return best


def unguarded(self, law, place, token, chance):
    return False


@pytest.mark.parametrize(
    ("part", "mutant"),
    [("_longest", first_child), ("_longest", least_likely), ("_is_ending", unguarded)],
)
def test_wrong_paths_are_found(monkeypatch, part, mutant) -> None:
    monkeypatch.setattr(Conditional, part, mutant)
    with pytest.raises(AssertionError):
        check_paths()

"""Retrieval and trees of alternatives against their definitions, on random texts.

Negative controls: six wrong versions, each of which a check here must reject.
"""

from __future__ import annotations

import numpy as np
import pytest
from alignment_cases import (
    longest_match,
    most_frequent,
    paths_of,
    random_context,
    tree_of,
    trie_counts,
)

from decodery.methods.speculative import alignment_tree
from decodery.methods.speculative.alignment_pool import Alternative
from decodery.methods.speculative.alignment_tree import Suffixes

SEEDS = range(150)


def random_case(seed):
    """A text, a span of it, places of a match in it, and alternatives of some places."""
    generator = np.random.default_rng(seed)
    while True:
        text, span = random_context(generator)
        places = [place for place in range(span.start, span.stop - 1) if generator.random() < 0.3]
        if places:
            break
    alternatives = {
        place: tuple(
            Alternative(int(token), float(generator.random()))
            for token in generator.permutation(5)[: generator.integers(1, 4)]
            if token != text[place + 1]
        )
        for place in range(span.start, span.stop - 1)
        if generator.random() < 0.5
    }
    return text, span, places, alternatives, generator


# -- retrieval -------------------------------------------------------------------------------------


def check_matches(seeds=SEEDS):
    for seed in seeds:
        generator = np.random.default_rng(seed)
        text, span = random_context(generator)
        shortest = int(generator.integers(1, 4))
        longest = shortest + int(generator.integers(0, 5))
        suffixes = Suffixes(text, span, shortest, longest)
        for _ in range(8):
            tail = generator.integers(0, 3, generator.integers(0, 9)).tolist()
            wanted = longest_match(text, span, shortest, longest, tail)
            assert suffixes.matches(tail) == wanted


def test_the_longest_suffix_is_found_wherever_it_occurs() -> None:
    check_matches()


def test_the_end_of_the_text_does_not_match_itself() -> None:
    assert Suffixes([0, 1, 2, 3], range(4), 1, 4).matches([0, 1, 2, 3]) == (0, [])
    assert Suffixes([3, 1, 2, 3], range(4), 1, 4).matches([1, 2, 3]) == (1, [0])


def test_nothing_outside_the_span_is_used() -> None:
    text = [0, 1, 2, 0, 1, 3, 0, 1, 4]
    assert Suffixes(text, range(3, 9), 2, 8).matches([9, 0, 1]) == (2, [4, 7])
    assert Suffixes(text, range(4, 9), 2, 8).matches([9, 0, 1]) == (2, [7])
    assert Suffixes(text, range(3, 8), 2, 8).matches([9, 0, 1]) == (2, [4])
    assert Suffixes(text, range(3, 3), 2, 8).matches([9, 0, 1]) == (0, [])


# -- the trie --------------------------------------------------------------------------------------


def test_the_most_frequent_nodes_with_their_counts() -> None:
    """With their ancestors, within the budget, ties by depth and then by the first occurrence."""
    for seed in SEEDS:
        text, span, places, _, generator = random_case(seed)
        depth, nodes = int(generator.integers(1, 8)), int(generator.integers(1, 30))
        ends = frozenset({0}) if seed % 3 == 0 else frozenset()
        found = paths_of(tree_of(text, span, places, depth=depth, nodes=nodes, ends=ends))
        wanted = most_frequent(text, span, places, depth, nodes, ends)
        counts, _ = trie_counts(text, span, places, depth, ends)
        assert {path for path, _, _ in found} == set(wanted)
        assert all(count == counts[path] and not other for path, other, count in found)
        assert all(path[:-1] in wanted for path in wanted if len(path) > 1)


def test_the_example_by_hand() -> None:
    a, b, c, d, e = range(5)
    text = [a, b, c, d, a, b, e]
    assert Suffixes(text, range(7), 2, 16).matches([d, a, b]) == (3, [5])
    assert Suffixes(text, range(7), 2, 16).matches([c, a, b]) == (2, [1, 5])
    check_example()


def check_example():
    a, b, c, d, e, x, y = range(7)
    text, span, places = [a, b, c, d, a, b, e], range(7), [1, 5]
    assert paths_of(tree_of(text, span, places, depth=1, nodes=9)) == [
        ((c,), False, 1),
        ((e,), False, 1),
    ]
    # Of the place of b, its alternatives are rivals of what comes after b; of the place of c, of d.
    aligned = {5: (Alternative(x, 0.6),), 2: (Alternative(y, 0.5),)}
    assert paths_of(tree_of(text, span, places, aligned, depth=2, nodes=9)) == [
        ((c,), False, 1),
        ((c, d), False, 1),
        ((c, y), True, 0),
        ((e,), False, 1),
        ((x,), True, 0),
    ]


# -- alternatives ----------------------------------------------------------------------------------


def expected(text, span, places, alternatives, depth, nodes, share):
    """Tree and alternatives by the definition: reserved nodes, alternatives by weight, the rest."""
    ranked = most_frequent(text, span, places, depth, 10**6)
    kept = ranked[: min(int(share * nodes), len(ranked))]
    offered = {}
    for path in [(), *kept]:
        if len(path) == depth:
            continue
        for place in places:
            end = place + len(path)
            if end >= span.stop or tuple(text[place + 1 : end + 1]) != path:
                continue
            for token, chance in alternatives.get(end, ()):
                if (*path, token) not in kept:
                    new = (*path, token)
                    offered[new] = offered.get(new, 0.0) + chance / len(places)
    best = sorted(offered, key=lambda path: -offered[path])[: nodes - len(kept)]
    chosen = set(kept) | set(best)
    for path in ranked[len(kept) :]:
        if len(chosen) >= nodes:
            break
        chosen.add(path)
    return chosen, offered


def check_augmented(seeds=SEEDS):
    for seed in seeds:
        text, span, places, alternatives, generator = random_case(seed)
        depth, nodes = int(generator.integers(1, 6)), int(generator.integers(1, 24))
        share = float(generator.choice([0.0, 0.25, 0.5, 0.75, 1.0]))
        tree = tree_of(text, span, places, alternatives, depth=depth, nodes=nodes, share=share)
        found = paths_of(tree)
        chosen, offered = expected(text, span, places, alternatives, depth, nodes, share)
        paths = {path for path, _, _ in found}
        assert len(found) == len(paths) <= nodes
        assert paths == chosen
        for path, is_alternative, count in found:
            if is_alternative:
                assert path in offered
                assert count == 0
                assert not any(len(other) > len(path) and other[:-1] == path for other in paths)


def test_alternatives_by_share_times_chance_within_the_budget() -> None:
    check_augmented()


def test_without_alternatives_it_is_the_trie_whatever_the_share() -> None:
    for seed in SEEDS:
        text, span, places, _, _ = random_case(seed)
        plain = paths_of(tree_of(text, span, places, depth=6, nodes=12, share=1.0))
        for share in (0.0, 0.4, 0.75):
            assert paths_of(tree_of(text, span, places, depth=6, nodes=12, share=share)) == plain


def test_an_alternative_that_the_trie_has_too_becomes_one_of_its_nodes() -> None:
    text, span, places = [0, 1, 5, 0, 2, 6], range(6), [0, 3]
    aligned = {0: (Alternative(2, 0.9),)}
    found = paths_of(tree_of(text, span, places, aligned, depth=2, nodes=4, share=0.25))
    assert found == [((1,), False, 1), ((1, 5), False, 1), ((2,), False, 1), ((2, 6), False, 1)]


def test_nothing_comes_after_an_end() -> None:
    text, span, places = [0, 7, 3, 0, 7, 4], range(6), [0, 3]
    aligned = {1: (Alternative(5, 0.9),)}
    found = tree_of(text, span, places, aligned, depth=5, nodes=9, ends=frozenset({7}))
    assert paths_of(found) == [((7,), False, 2)]


def test_a_rare_alternative_gives_way_to_a_likely_one() -> None:
    text, span, places = [0, 1, 0, 1, 0, 2], range(6), [0, 2, 4]
    aligned = {0: (Alternative(8, 0.5),), 4: (Alternative(9, 0.9),), 2: (Alternative(8, 0.5),)}
    found = paths_of(tree_of(text, span, places, aligned, depth=1, nodes=3, share=0.7))
    assert found == [((1,), False, 2), ((2,), False, 1), ((8,), True, 0)]


# -- negative controls -----------------------------------------------------------------------------


def rejected(check) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


class OneLate(alignment_tree._Growing):
    """Takes the alternatives of the place behind: rivals of the wrong token."""

    def _weights(self, branch, alternatives):
        shifted = {place: alternatives.get(place + 1, ()) for place in branch.places}
        return super()._weights(branch, shifted)


class Unweighted(alignment_tree._Growing):
    """Takes alternatives by chance alone, however rare their place."""

    def _weights(self, branch, alternatives):
        weights = super()._weights(branch, alternatives)
        return {token: weight / max(1, len(branch.places)) for token, weight in weights.items()}


class Greedy(alignment_tree._Growing):
    """Fills the tree with the trie before any alternative comes."""

    def retrieve(self, most):
        super().retrieve(self.limits.nodes)


class Unbounded(alignment_tree._Growing):
    """Has room for every alternative."""

    def augment(self, alternatives):
        kept, self.limits = self.limits, alignment_tree.Limits(10**6, self.limits.depth)
        super().augment(alternatives)
        self.limits = kept


@pytest.mark.parametrize("mutant", [OneLate, Unweighted, Greedy, Unbounded])
def test_wrong_trees_are_found(monkeypatch, mutant) -> None:
    monkeypatch.setattr(alignment_tree, "_Growing", mutant)
    assert rejected(check_augmented)


def test_alternatives_of_the_place_behind_are_found_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(alignment_tree, "_Growing", OneLate)
    assert rejected(check_example)


def test_a_match_of_the_end_with_itself_is_found(monkeypatch) -> None:
    proper = Suffixes.__init__

    def itself(self, text, span, shortest, longest):
        proper(self, text, span, shortest, longest)
        if len(span) >= shortest:
            end = span.stop - 1
            self._ends[tuple(text[end - shortest + 1 : end + 1])].append(end)

    monkeypatch.setattr(Suffixes, "__init__", itself)
    assert rejected(check_matches)


def test_a_match_that_begins_before_the_span_is_found(monkeypatch) -> None:
    def matches(self, tail):
        size, places = 0, []
        for longer in range(self.shortest, min(self.longest, len(tail)) + 1):
            kept = [
                end
                for end in range(max(self.span.start, longer - 1), self.span.stop - 1)
                if list(self.text[end - longer + 1 : end + 1]) == list(tail[-longer:])
            ]
            if kept:
                size, places = longer, kept
        return size, places

    monkeypatch.setattr(Suffixes, "matches", matches)
    assert rejected(check_matches)

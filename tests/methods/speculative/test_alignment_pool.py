"""Alternatives of a prompt's tokens: where there are some, which, with what chance, at what cost.

The chi-square test has alpha 1e-6 and 20,000 draws of ordered pairs out of four tokens: a law of
the pair at a total variation of 0.05 is rejected with power above 0.99. Negative controls: rows one
place off, alternatives everywhere, draws with replacement.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise, permutations

import numpy as np
import pytest
from alignment_cases import REPEATING, reported, task_of

from decodery.core.decoder import Decoder
from decodery.core.handle import Budget
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.tree import Tree
from decodery.methods.speculative import alignment_pool
from decodery.methods.speculative.alignment_pool import CHUNK, PURPOSE, Alignment, align
from decodery.testing import TableModel, chi_square
from decodery.testing.observe import LawBroken
from decodery.testing.samplers import Heat, Shy
from decodery.testing.statistics import require_law
from decodery.testing.tables import MixtureBlend, WatchedTable


class Aligns(Decoder):
    """A decoder that does nothing else; what it found is kept."""

    def __init__(self, rule, span=None):
        self.rule, self.span, self.found = rule, span, None

    def decode(self, task):
        span = range(len(task.prompt)) if self.span is None else self.span
        self.found = yield from align(task, span, self.rule)
        return []


def aligned(policy, prompt=REPEATING, rule=None, span=None, seed=0):
    decoder = Aligns(rule or Alignment(), span)
    reported(decoder, task_of(policy, prompt, seed=seed))
    return decoder.found


def by_definition(table, prompt, below, count, span):
    """Place -> (the other tokens, most probable first, with their chances) where there are some."""
    found = {}
    for place in span[:-1]:
        scores = table.scores(prompt[: place + 1])
        chances = np.exp(scores) / np.exp(scores).sum()
        following = prompt[place + 1]
        if chances[following] < below:
            others = [token for token in np.argsort(-chances, kind="stable") if token != following]
            found[place] = [(int(token), float(chances[token])) for token in others[:count]]
    return found


def random_prompt(seed, letters, most=30):
    generator = np.random.default_rng(seed)
    return tuple(generator.integers(0, letters, generator.integers(1, most)).tolist())


def check_top(seeds=range(40)):
    for seed in seeds:
        letters, count = 3 + seed % 3, 1 + seed % 4
        table = TableModel.random(letters, seed=seed)
        prompt = random_prompt(seed, letters)
        below = (0.1, 0.3, 0.6, 1.0)[seed % 4]
        span = range(seed % 3, max(seed % 3, len(prompt) - seed % 2))
        found = aligned(Policy(table), prompt, Alignment(below, count, "top"), span)
        wanted = by_definition(table, prompt, below, count, span)
        assert {place: [token for token, _ in one] for place, one in found.items()} == {
            place: [token for token, _ in one] for place, one in wanted.items()
        }
        for place, one in wanted.items():
            assert np.allclose([c for _, c in found[place]], [c for _, c in one], atol=1e-12)


def test_the_most_probable_others_where_the_own_token_is_improbable() -> None:
    check_top()


def test_all_other_tokens_where_nothing_is_well_aligned() -> None:
    table = TableModel.random(4, seed=1)
    found = aligned(Policy(table), rule=Alignment(1.0, 9))
    assert set(found) == set(range(len(REPEATING) - 1))
    for place, own in found.items():
        assert {token for token, _ in own} == set(range(4)) - {REPEATING[place + 1]}


@pytest.mark.parametrize("below", [0.0, 1e-9])
def test_none_where_every_token_is_well_aligned(below) -> None:
    assert aligned(Policy(TableModel.random(4, seed=1)), rule=Alignment(below)) == {}


def test_a_token_without_rivals_has_no_alternatives() -> None:
    """Only its own token is possible, or nothing but an impossible own token and one other."""
    rule, one = Alignment(1.0, 3), TableModel(lambda _: [0.0, 1.0], 2, 0)
    assert aligned(Policy(one), (1, 1, 1), rule) == {}
    assert aligned(Policy(one), (1, 0, 0), rule) == {0: ((1, 1.0),), 1: ((1, 1.0),)}


# -- draws -----------------------------------------------------------------------------------------

CHANCES = np.array([0.4, 0.3, 0.2, 0.1])


def pairs(seeds):
    """The two alternatives to token 3, over seeds."""
    row, rule = Row.of_probabilities(CHANCES), Alignment(0.3, 2)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in seeds:
        found = rule.alternatives(row, 3, partial(Stream(seed).uniform, 0, 1, PURPOSE))
        counts[tuple(token for token, _ in found)] += 1
    return counts


def law_of_pairs():
    """Two draws without replacement from the law without token 3, the text's own."""
    rest = CHANCES[:3] / CHANCES[:3].sum()
    return {(a, b): rest[a] * rest[b] / (1 - rest[a]) for a, b in permutations(range(3), 2)}


def test_draws_are_without_replacement_and_without_the_own_token() -> None:
    require_law(pairs(range(20_000)), law_of_pairs(), 1e-6, "pairs of alternatives")


def test_a_place_has_the_noise_of_its_position() -> None:
    """What a run finds at a place is what its row gives with the numbers of that position."""
    table, rule = TableModel.random(5, seed=3), Alignment(0.9)
    for seed in range(20):
        for place, found in aligned(Policy(table), rule=rule, seed=seed).items():
            row = Row(table.scores(REPEATING[: place + 1]), 5)
            noise = partial(Stream(seed).uniform, 0, place + 1, PURPOSE)
            assert rule.alternatives(row, REPEATING[place + 1], noise) == found


def test_draws_are_those_of_the_request_and_of_no_sequence() -> None:
    policy = Policy(TableModel.random(5, seed=3))
    found = [aligned(policy, rule=Alignment(0.9), seed=seed) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len({repr(one) for one in found}) == 3


def test_places_have_noise_of_their_own() -> None:
    """With equal rows everywhere, places do not all draw the same."""
    policy = Policy(TableModel(lambda _: [0.3, 0.3, 0.3, 0.1], 4, 0))
    found = aligned(policy, (3,) * 30, Alignment(0.5, 1))
    assert {own[0].token for own in found.values()} == {0, 1, 2}


# -- whose law -------------------------------------------------------------------------------------


def test_samplers_do_not_change_it() -> None:
    table = TableModel.random(4, seed=2)
    shaped = Policy(table, chain(Heat(0.2), Shy(3.0)))
    assert aligned(shaped) == aligned(Policy(table))


def test_of_a_blend_it_is_the_first_model() -> None:
    first, second = (TableModel.random(4, seed=seed) for seed in (1, 2))
    assert aligned(Policy(MixtureBlend(first, second))) == aligned(Policy(first))


# -- cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, CHUNK, CHUNK + 1, CHUNK + 2, 3 * CHUNK + 7])
def test_each_token_but_the_last_is_evaluated_once_in_chunks(length) -> None:
    table = WatchedTable(TableModel.random(4, seed=4).law, 4, 2)
    prompt = random_prompt(length, 4, 2) + tuple(np.arange(length - 1) % 4)
    prompt = prompt[:length]
    decoder = Aligns(Alignment(1.0, 1))
    _, report = reported(decoder, task_of(Policy(table), prompt))
    assert report.tokens_evaluated == length - 1
    assert report.model_calls == (0 if length == 1 else 1 + -(-(length - 2) // CHUNK))
    assert set(decoder.found) == set(range(length - 1))
    assert table.peak == length - 1
    assert table.tokens_alive == 0


def test_no_more_rows_than_a_chunk_are_held() -> None:
    """Driven by hand: when a chunk is asked for, no earlier row but the root's is there."""
    table = TableModel.random(3, seed=5)
    task = task_of(Policy(table), tuple(np.arange(3 * CHUNK) % 3))
    asking = align(task, range(len(task.prompt)), Alignment())
    request, nodes, held = next(asking), [], []
    while True:
        if isinstance(request, Open):
            tree = Tree(request.policy, tuple(request.prompt), task.stream)
            new, answer = [tree.root], tree.root
        else:
            assert isinstance(request, Grow)
            assert request.keep_rows
            new = answer = list(request.nodes)
        held.append(sum(node.has_row for node in nodes))
        for node in new:
            node.receive(Row(table.scores(node.tokens), 3))
        nodes += new
        try:
            request = asking.send(answer)
        except StopIteration:
            break
    assert len(held) == 4
    assert max(held) <= 1
    assert not any(node.has_row for node in nodes)
    assert tree.root.dropped
    for one, other in pairwise(nodes):
        assert other.depth == one.depth + 1


def test_a_budget_that_ends_inside_the_pass() -> None:
    policy = Policy(TableModel.random(3, seed=5))
    runner, decoder = Runner(), Aligns(Alignment())
    task = task_of(policy, tuple(np.arange(3 * CHUNK) % 3))
    handle = runner.submit(decoder, task, Budget(max_calls=2))
    runner.run()
    assert handle.error is None
    assert handle.report.model_calls == 2
    assert decoder.found is None


# -- negative controls -----------------------------------------------------------------------------


def one_off(monkeypatch):
    """The row behind a token is taken for the row before it."""
    proper = Alignment.alternatives

    def alternatives(self, row, following, uniform, seen=[None]):  # noqa: B006
        before, seen[0] = seen[0], row
        return proper(self, row if before is None else before, following, uniform)

    monkeypatch.setattr(Alignment, "alternatives", alternatives)


def everywhere(monkeypatch):
    proper = Alignment.alternatives

    def alternatives(self, row, following, uniform):
        return proper(Alignment(2.0, self.count, self.pick), row, following, uniform)

    monkeypatch.setattr(Alignment, "alternatives", alternatives)


@pytest.mark.parametrize("mutant", [one_off, everywhere])
def test_wrong_places_are_found(monkeypatch, mutant) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_top()


def test_draws_with_replacement_are_found(monkeypatch) -> None:
    def drawn(self, left, uniform):
        return [left.draw(uniform(index)) for index in range(self.count)]

    monkeypatch.setattr(alignment_pool.Alignment, "_drawn", drawn)
    counts = pairs(range(3000))
    with pytest.raises(LawBroken):
        require_law(counts, law_of_pairs(), 1e-6, "mutant")
    assert chi_square(counts, law_of_pairs()).p_value < 1e-6


def test_draws_of_equal_noise_are_found(monkeypatch) -> None:
    """Both draws from one number: a law of pairs without replacement, and another one."""

    def drawn(self, left, uniform):
        tokens = []
        while left is not None and len(tokens) < self.count:
            tokens.append(left.draw(uniform(0)))
            left = left.without(tokens[-1])
        return tokens

    monkeypatch.setattr(alignment_pool.Alignment, "_drawn", drawn)
    assert chi_square(pairs(range(3000)), law_of_pairs()).p_value < 1e-6

"""Consensus drafts: graphs by hand, the index against a scan, and samples that stay what they are.

Exactness is proved token for token: every draw has the number that plain sampling draws it with. So
the joint law of two samples is checked once, by chi-square: alpha 1e-5 for each of three tests.
With 800 runs a sample at a total variation of 0.2 from its law is rejected with power above 0.99,
with 20,000, in the slow form, at 0.04.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Completion, Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.methods.autoregressive.sample import Sample as PlainSampling
from decodery.methods.speculative.candidates import Candidates
from decodery.methods.speculative.consensus import (
    PROMPT,
    Consensus,
    Continuation,
    Cuts,
    Graph,
    Samples,
    latest_in_turn,
)
from decodery.methods.speculative.speculation import Speculation
from decodery.methods.speculative.verifiers import Match, Recursive
from decodery.methods.speculative.walks import NodeWise, Place, Walk
from decodery.models.table import TableModel
from decodery.testing import LawBroken, enumerate_law, require_law
from decodery.testing.samplers import Shy, Surprised

A, B, C, D, E, X, Y = range(7)
NO_CUTS = Cuts(0.0, 0.0)


def graph(*items: tuple[list[int], float]) -> Graph:
    """Continuations, each with one weight for all its tokens."""
    return Graph(Continuation(tokens, [weight] * len(tokens)) for tokens, weight in items)


def tokens(path: list[tuple[int, float]]) -> list[int]:
    return [token for token, _ in path]


# -- graphs ----------------------------------------------------------------------------------------


def test_the_heavier_continuation_wins():
    """The definition's first: A B C at 0.9 and A B D at 0.1 give A B C."""
    both = graph(([A, B, C], 0.9), ([A, B, D], 0.1))
    assert both.greedy() == [(A, 1.0), (B, 1.0), (C, pytest.approx(0.9))]
    assert both.viterbi() == both.greedy()


def test_paths_that_meet_again_support_each_other():
    """The definition's second: A X C E and A Y C E merge in C, and E has confidence 1 there."""
    both = graph(([A, X, C, E], 0.5), ([A, Y, C, E], 0.5))
    assert both.shares((1, A)) == [(X, 0.5), (Y, 0.5)]
    assert both.shares((3, C)) == [(E, 1.0)]
    assert both.edges[2, X] == {C: 0.5}
    assert both.edges[3, C] == {E: 1.0}
    assert tokens(both.greedy()) == [A, X, C, E]
    assert Cuts(0.6, 0.0).apply(both.greedy()) == [A]
    assert Cuts(0.4, 0.0).apply(both.greedy()) == [A, X, C, E]
    assert Cuts(0.0, 0.6).apply(both.greedy()) == [A]


def test_ties_go_to_the_more_frequent_and_then_to_the_lower_token():
    assert graph(([B], 0.5), ([A], 0.5)).greedy() == [(A, 0.5)]
    assert graph(([A], 0.5), ([B], 0.25), ([B], 0.25)).greedy() == [(B, 0.5)]


def test_viterbi_looks_ahead():
    """The heavier first edge leads to a fork, the lighter one to a sure path."""
    forked = graph(
        ([A, B], 0.2), ([A, C], 0.2), ([A, D], 0.2), ([X, Y, B, C], 0.15), ([X, Y, B, C], 0.3)
    )
    assert forked.greedy()[0][0] == A
    assert tokens(forked.viterbi()) == [X, Y, B, C]


def every_path(item: Graph, path: tuple[int, ...] = (), chance: float = 1.0):
    """All paths from the root, with their products of shares."""
    above = (len(path), path[-1]) if path else (0, -1)
    for token, share in item.shares(above):
        yield (*path, token), chance * share
        yield from every_path(item, (*path, token), chance * share)


def random_graph(seed: int) -> Graph:
    generator = np.random.default_rng(seed)
    return Graph(
        Continuation(generator.integers(3, size=size).tolist(), generator.random(size).tolist())
        for size in generator.integers(1, 6, size=5)
    )


@pytest.mark.parametrize("seed", range(20))
def test_viterbi_accepts_most_by_enumeration(seed):
    """The sum of products along its path is the largest of all paths."""
    item = random_graph(seed)
    chances = dict(every_path(item))
    worth = {
        path: sum(chances[path[:count]] for count in range(1, len(path) + 1)) for path in chances
    }
    found = tuple(tokens(item.viterbi()))
    assert worth[found] == pytest.approx(max(worth.values()), abs=1e-12)
    product_of = np.prod([share for _, share in item.viterbi()])
    assert product_of == pytest.approx(chances[found], abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_trees_have_the_most_probable_nodes(seed):
    """Without a bound on branches: the largest products of all, parents before children."""
    item = random_graph(seed)
    chances = dict(every_path(item))
    for budget in (1, 3, 8, 100):
        found = item.tree(3, budget, NO_CUTS)
        assert len(found) == len(set(found)) == min(budget, len(chances))
        worst = min(chances[path] for path in found)
        rest = [chance for path, chance in chances.items() if path not in found]
        assert all(chance <= worst + 1e-12 for chance in rest)
        for place, path in enumerate(found):
            assert len(path) == 1 or path[:-1] in found[:place]
    cut = item.tree(3, 100, Cuts(0.3, 0.2))
    assert all(chances[path] >= 0.2 - 1e-12 for path in cut)
    above = Counter(path[:-1] for path in item.tree(2, 100, NO_CUTS))
    assert max(above.values()) <= 2


@pytest.mark.parametrize("seed", range(10))
def test_a_higher_cut_never_makes_a_draft_longer(seed):
    item = random_graph(seed)
    for path in (item.greedy(), item.viterbi()):
        for field in ("edge", "path"):
            lengths = [
                len(replace(NO_CUTS, **{field: least}).apply(path))
                for least in np.linspace(0.0, 1.0, 21)
            ]
            assert lengths == sorted(lengths, reverse=True)
    for field in ("edge", "path"):
        sizes = [
            len(item.tree(3, 50, replace(NO_CUTS, **{field: least})))
            for least in np.linspace(0.0, 1.0, 21)
        ]
        assert sizes == sorted(sizes, reverse=True)


# -- where the same tokens came before -------------------------------------------------------------


def scan(texts: dict[int, list[int]], sequence: int, drafter: Consensus) -> dict:
    """By brute force: places after each match, and the length of the longest match there."""
    own, found = texts[sequence], {}
    for size in range(min(drafter.longest, len(own)), drafter.shortest - 1, -1):
        for other, text in texts.items():
            if other == sequence and not drafter.own:
                continue
            for place in range(size, len(text)):
                if text[place - size : place] == own[-size:]:
                    found.setdefault((other, place), size)
        if found and drafter.decay == 0.0:
            break
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("prompt", [False, True])
def test_the_index_finds_what_a_scan_finds(prompt, own, decay):
    generator = np.random.default_rng(3)
    drafter = Consensus(shortest=1, longest=3, own=own, prompt=prompt, decay=decay, matches=10**6)
    for _ in range(10):
        given = generator.integers(3, size=8).tolist()
        samples = Samples(drafter, given)
        texts = {PROMPT: given} if prompt else {}
        texts |= {sequence: [] for sequence in range(3)}
        for _ in range(40):
            sequence, token = int(generator.integers(3)), int(generator.integers(3))
            samples.append(sequence, token, 0.5)
            texts[sequence].append(token)
            assert samples.found(sequence) == scan(texts, sequence, drafter)


def test_more_samples_never_match_less():
    """Replayed: whoever found something among few samples finds something among more."""
    generator = np.random.default_rng(4)
    texts = generator.integers(4, size=(8, 40)).tolist()
    matched = []
    for count in (2, 4, 8):
        samples = Samples(Consensus(weights="count", longest=3), ())
        hits = 0
        for place in range(40):
            hits += sum(bool(samples.found(sequence)) for sequence in range(2))
            for sequence in range(count):
                samples.append(sequence, texts[sequence][place], 1.0)
        matched.append(hits)
    assert matched == sorted(matched)
    assert matched[0] > 0


def test_the_latest_matches_of_each_sample_in_turn():
    places = [(0, 3), (0, 7), (1, 4), (0, 9), (2, 2), (1, 8)]
    assert latest_in_turn(places, 6) == places
    assert latest_in_turn(places, 3) == [(0, 9), (1, 8), (2, 2)]
    assert latest_in_turn(places, 5) == [(0, 9), (1, 8), (2, 2), (0, 7), (1, 4)]


def test_shorter_matches_count_less():
    """After 1 2 came 3 once, after 2 alone 4 twice: a whole decay has 4 first, a third has 3."""
    texts = [[1, 2, 3], [5, 2, 4], [6, 2, 4], [1, 2]]

    def first(decay: float) -> list:
        samples = Samples(Consensus(shortest=1, cuts=NO_CUTS, decay=decay, tokens=1), ())
        for sequence, text in enumerate(texts):
            for token in text:
                samples.append(sequence, token, 0.5)
        return samples.draft(3, 1, 8)

    assert first(1.0) == [(4,)]
    assert first(0.3) == first(0.0) == [(3,)]


def test_a_draft_is_no_longer_than_there_is_room():
    samples = Samples(Consensus(shortest=1, cuts=NO_CUTS), ())
    for sequence in (0, 1):
        for token in [1, 2, 3, 4, 5, 6][: 6 if sequence == 0 else 1]:
            samples.append(sequence, token, 1.0)
    assert samples.draft(1, 8, 8)[-1] == (2, 3, 4, 5, 6)
    assert samples.draft(1, 2, 8) == [(2,), (2, 3)]
    assert samples.draft(1, 8, 3)[-1] == (2, 3, 4)
    assert samples.draft(1, 0, 8) == samples.draft(1, 8, 0) == []
    assert samples.draft(0, 8, 8) == []


# -- whole runs ------------------------------------------------------------------------------------

DRAFTERS = {
    "paper": Consensus(),
    "short": Consensus(tokens=3, shortest=1, longest=2, cuts=NO_CUTS, weights="count"),
    "viterbi": Consensus(shape="viterbi", shortest=1, cuts=Cuts(0.1, 0.0), matches=5),
    "tree": Consensus(shape="tree", shortest=1, cuts=NO_CUTS, decay=0.3, own=True, prompt=True),
    "wide": Consensus(shape="tree", shortest=1, cuts=NO_CUTS, branches=3, budget=30, tokens=4),
}
REPEATING = TableModel.random(4, 2, seed=5, concentration=0.4, eos_ids=frozenset({3}))


def samples_of(decoder, source, seed=0, length=40, sampler=None, prompt=(0, 1, 0)):
    """The completions, and the forwards they took."""
    policy = Policy(source, sampler or chain())
    stopping = Stopping(length, source.eos_ids)
    runner = Runner()
    handle = runner.submit(decoder, Task(policy, prompt, stopping, Stream(seed)))
    runner.run()
    return handle.result(), handle.report.model_calls


def consensus(drafter: Consensus, n: int = 5) -> Speculation:
    return Speculation(drafter, NodeWise(Match()), n)


@pytest.mark.parametrize("stateful", [False, True], ids=["plain", "stateful"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_samples_are_those_of_plain_sampling(name, stateful):
    sampler = chain(Shy(0.5), Surprised()) if stateful else chain()
    for seed in range(4):
        found, calls = samples_of(consensus(DRAFTERS[name]), REPEATING, seed, sampler=sampler)
        plain, most = samples_of(PlainSampling(5), REPEATING, seed, sampler=sampler)
        assert [item.tokens for item in found] == [item.tokens for item in plain]
        assert calls <= most
        for item in found:
            tally = item.details["speculation"]
            assert tally["emitted"] == len(item.tokens)
            assert 1 <= tally["tokens_per_step"] <= DRAFTERS[name].tokens + 1
            assert tally["nodes"] <= DRAFTERS[name].nodes * tally["steps"]


FLAT = TableModel.random(3, 1, seed=2, concentration=5.0)
THRICE = (0, 1, 1, 0, 2, 2, 0)  # something comes after each token


def pairs(decoder, runs: int) -> Counter:
    """What two samples of three tokens were, in so many runs."""
    runner, policy = Runner(), Policy(FLAT)
    tasks = [Task(policy, THRICE, Stopping(3), Stream(seed)) for seed in range(runs)]
    handles = [runner.submit(decoder, task) for task in tasks]
    runner.run()
    return Counter(tuple(item.tokens for item in handle.result()) for handle in handles)


def are_plain_samples(decoder, runs: int) -> None:
    """Each sample has the policy's law, and both together the product of it with itself."""
    law = enumerate_law(Policy(FLAT), THRICE, 3)
    counts = pairs(decoder, runs)
    require_law(counts, {(x, y): law[x] * law[y] for x, y in product(law, law)}, 1e-5, "pairs")
    for place in (0, 1):
        alone: Counter = Counter()
        for pair, seen in counts.items():
            alone[pair[place]] += seen
        require_law(alone, law, 1e-5, f"sample {place}")


PAIR = consensus(Consensus(shortest=1, cuts=NO_CUTS, own=True, prompt=True), 2)


@pytest.mark.parametrize("runs", [800, pytest.param(20_000, marks=pytest.mark.slow)])
def test_samples_are_independent(runs):
    are_plain_samples(PAIR, runs)


class AcceptsAll(Walk):
    """Every draft is taken as it is."""

    drawn = Match.drawn

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        nodes, node = [], draft.tip
        while draft.children.get(node):
            node = draft.children[node][0]
            nodes.append(node)
            if place.is_over(node):
                return nodes
        return [*nodes, place.last(node, place.draw(node))]


class SharesNoise(NodeWise):
    """One generator for all samples."""

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        return [place.last(draft.tip, draft.tip.draw(0))]


class TakesDraftsForDraws(NodeWise):
    """Drafts are tried as if they had been drawn: refused with 1 - p, then the policy draws."""

    def path(self, draft: Candidates, place: Place) -> list[Node]:
        node, path = draft.tip, []
        while draft.children.get(node):
            child = draft.children[node][0]
            if place.uniform(node, "accept") >= place.law(node)[child.token]:
                break
            node = child
            path.append(node)
            if place.is_over(node):
                return path
        return [*path, place.last(node, place.draw(node))]


@pytest.mark.parametrize("walk", [AcceptsAll(), SharesNoise(Match()), TakesDraftsForDraws(Match())])
def test_wrong_walks_are_seen(walk):
    with pytest.raises(LawBroken):
        are_plain_samples(replace(PAIR, walk=walk), 800)


def test_drafts_that_were_not_drawn_cannot_be_verified_as_drawn():
    with pytest.raises(ParameterError, match="cannot verify fixed candidates"):
        Speculation(Consensus(), NodeWise(Recursive("distinct")))


def apart() -> TableModel:
    """After the first token the text stays in the third of the vocabulary that it began in."""

    def law(context: tuple[int, ...]) -> np.ndarray:
        mass = np.zeros(30)
        mass[[0, 10, 20]] = 1.0
        if len(context) > 1:
            mass[:] = 0.0
            start = context[1] // 10 * 10
            mass[start : start + 10] = 1.0
        return mass / mass.sum()

    return TableModel(law, 30, 100)


def test_samples_without_a_token_in_common_cost_what_plain_sampling_costs():
    found = 0
    for seed in range(40):
        plain, calls = samples_of(PlainSampling(2), apart(), seed, 12, prompt=(29,))
        if plain[0].tokens[0] // 10 == plain[1].tokens[0] // 10:
            continue
        found += 1
        short = consensus(Consensus(shortest=1), 2)
        drafted, same = samples_of(short, apart(), seed, 12, prompt=(29,))
        assert same == calls
        assert [item.tokens for item in drafted] == [item.tokens for item in plain]
        assert all(item.details["speculation"]["nodes"] == 0 for item in drafted)
    assert found > 10


def test_a_sample_that_follows_another_accepts_everything():
    """Token numbers never repeat: whoever is behind a sample that has gone the same way takes
    whole drafts, `tokens` + 1 a step."""
    samples = Samples(Consensus(tokens=4), ())
    leader = list(range(30))
    for token in leader:
        samples.append(0, token, 1.0)
    for token in leader[:2]:
        samples.append(1, token, 1.0)
    place, steps = 2, []
    while place < 25:
        draft = samples.draft(1, 4, 4)[-1]
        taken = leader[place : place + 5]
        assert list(draft) == taken[:4]
        for token in taken:
            samples.append(1, token, 1.0)
        place += len(taken)
        steps.append(len(taken))
    assert set(steps) == {5}


def test_certain_texts_are_found_in_the_prompt():
    """A text that counts round and round: with the prompt and itself it needs few forwards."""
    turning = TableModel(lambda context: np.eye(5)[(context[-1] + 1) % 5], 5, 1)
    prompt = (0, 1, 2, 3, 4, 0, 1)
    both = Consensus(tokens=4, own=True, prompt=True)
    alone, calls = samples_of(consensus(Consensus(tokens=4), 1), turning, length=30, prompt=prompt)
    found, fewer = samples_of(consensus(both, 1), turning, length=30, prompt=prompt)
    assert found[0].tokens == alone[0].tokens
    assert (calls, fewer) == (30, 8)


# -- the method ------------------------------------------------------------------------------------


def test_parameters_that_would_be_ignored_are_refused():
    method = registry.get("multi_sample")
    with pytest.raises(ParameterError, match="consensus_shortest is 5; allowed is at most"):
        method(consensus_shortest=5)
    for name in ("consensus_branches", "consensus_budget"):
        with pytest.raises(ParameterError, match=f"{name} has no effect on consensus_shape=greedy"):
            method(consensus_shape="greedy", **{name: 3})


def test_the_default_is_a_tree_of_sixteen():
    decoder = registry.get("multi_sample")()
    assert (decoder.n, decoder.drafter.shape, decoder.drafter.nodes) == (8, "tree", 16)
    wide = registry.get("multi_sample")(consensus_budget=3, consensus_branches=2).drafter
    assert (wide.nodes, wide.width) == (3, 2)
    path = registry.get("multi_sample")(consensus_shape="viterbi", consensus_tokens=5).drafter
    assert (path.nodes, path.width) == (5, 1)


def texts(generation) -> list[str]:
    return [item.text for item in generation.samples]


def test_on_the_embedded_model(lm):
    """The samples of `sample`, in fewer steps."""
    prompt = "Repeat three times: one two three four. Begin: one two three four, one two"
    options = {"max_tokens": 14, "n": 3, "seed": 1, "temperature": 0.7}
    plain = lm.generate(prompt, method="sample", **options)
    found = lm.generate(prompt, method="multi_sample", **options)
    assert texts(found) == texts(plain)
    steps = sum(item.details["speculation"]["steps"] for item in found.samples)
    assert steps < sum(len(item.tokens) for item in plain.samples)


def test_completions_are_what_they_say():
    found, _ = samples_of(consensus(DRAFTERS["tree"]), REPEATING)
    assert all(isinstance(item, Completion) for item in found)
    assert [item.sequence for item in found] == list(range(5))
    assert run_alone(consensus(DRAFTERS["tree"], 1), Task(Policy(REPEATING), (0,), Stopping(1)))

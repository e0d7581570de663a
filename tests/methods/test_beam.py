"""Beam search: brute force where the beam is wide, hand-computed steps where it is narrow."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.errors import ParameterError
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import TableModel, enumerate_law, random_policy

BEAM = registry.get("beam")
END = frozenset({2})


def search(policy, length, *, prompt=(0,), **given):
    stopping = Stopping(length, policy.source.eos_ids)
    return run_alone(BEAM(**given), Task(policy, prompt, stopping, Stream(3)))


def ranked(policy, length, length_penalty):
    """Every sequence with its worth, best first, from the enumerated law."""
    law = enumerate_law(policy, (0,), Stopping(length, policy.source.eos_ids))
    worth = {path: math.log(p) / len(path) ** length_penalty for path, p in law.items()}
    return sorted(worth.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_beam_as_wide_as_all_prefixes_is_brute_force(seed, length_penalty):
    policy = Policy(TableModel.random(3, seed=seed, eos_ids=END))
    found = search(policy, 4, beams=81, n=5, length_penalty=length_penalty)
    wanted = ranked(policy, 4, length_penalty)[:5]
    assert [item.tokens for item in found] == [path for path, _ in wanted]
    for item, (_, worth) in zip(found, wanted, strict=True):
        assert item.score == pytest.approx(worth, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_brute_force_under_samplers(seed):
    """The policy's law is searched: temperature, state and seen rows included."""
    policy = random_policy(seed, 3, eos_ids=END)
    if policy.sampler.needs_noise:
        stopping = Stopping(3, END)
        law = enumerate_law(policy, (0,), stopping, stream=Stream(3))
    else:
        law = enumerate_law(policy, (0,), Stopping(3, END))
    best = max(law, key=lambda path: law[path])
    (item,) = search(policy, 3, beams=27, length_penalty=0.0)
    assert item.tokens == best
    assert item.log_probability == pytest.approx(math.log(law[best]), abs=1e-12)


def garden_path(context):
    """The best first token leads to poor seconds: greedy is wrong, two beams are right."""
    return {(0,): [0.0, 0.6, 0.4], (0, 1): [0.4, 0.3, 0.3], (0, 2): [0.05, 0.05, 0.9]}[context]


def test_two_beams_see_past_the_greedy_choice():
    policy = Policy(TableModel(garden_path, 3, 2))
    assert search(policy, 2, beams=1)[0].tokens == (1, 0)
    (item,) = search(policy, 2, beams=2)
    assert item.tokens == (2, 2)
    assert item.log_probability == pytest.approx(math.log(0.36), abs=1e-12)
    assert item.score == pytest.approx(math.log(0.36) / 2, abs=1e-12)


def test_results_are_sorted_and_numbered():
    policy = Policy(TableModel(garden_path, 3, 2))
    found = search(policy, 2, beams=3, n=3)
    assert [item.tokens for item in found] == [(2, 2), (1, 0), (1, 1)]
    assert [item.sequence for item in found] == [0, 1, 2]
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)


def early_or_late(context):
    """End at once with 0.5, or go on with 0.4 and then surely: 0.4 for four tokens."""
    return [0.4, 0.1, 0.5] if len(context) == 1 else [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("length_penalty", "tokens"),
    [(0.0, (2,)), (0.3, (0, 0, 0, 0)), (1.0, (0, 0, 0, 0)), (-2.0, (2,))],
)
def test_length_penalty_by_hand(length_penalty, tokens):
    """ln 0.5 = -0.693 against ln 0.4 / 4 ** a = -0.916 / 4 ** a: equal at a = 0.2."""
    policy = Policy(TableModel(early_or_late, 3, 2, eos_ids=END))
    (item,) = search(policy, 4, beams=2, length_penalty=length_penalty)
    assert item.tokens == tokens
    assert item.finish_reason == ("eos" if tokens == (2,) else "max_tokens")


def test_an_end_does_not_take_the_place_of_a_live_beam():
    """The search looks at 2 * beams continuations, so one beam lives on beside the end token."""
    policy = Policy(TableModel(early_or_late, 3, 2, eos_ids=END))
    assert search(policy, 4, beams=1)[0].tokens == (0, 0, 0, 0)


def test_early_stopping_takes_the_first_hypotheses():
    policy = Policy(TableModel(early_or_late, 3, 2, eos_ids=END))
    (item,) = search(policy, 4, beams=1, length_penalty=1.0, early_stopping=True)
    assert item.tokens == (2,)


def test_the_end_token_counts_and_closes_its_beam():
    policy = Policy(TableModel(lambda _: [0.1, 0.2, 0.7], 3, 0, eos_ids=END))
    found = search(policy, 3, beams=4, n=4, length_penalty=0.0)
    assert [item.tokens for item in found] == [(2,), (1, 2), (0, 2), (1, 1, 2)]
    for item in found:
        assert 2 not in item.tokens[:-1]


def test_impossible_tokens_are_never_extended():
    policy = Policy(TableModel(lambda _: [0.5, 0.0, 0.5], 3, 0))
    found = search(policy, 3, beams=16, n=16)
    assert len(found) == 8
    assert {item.tokens for item in found} == set(itertools.product((0, 2), repeat=3))


def test_ties_keep_the_lowest_ids():
    policy = Policy(TableModel(lambda _: [0.25] * 4, 4, 0))
    found = search(policy, 2, beams=2, n=2)
    assert [item.tokens for item in found] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_wider_beam_that_is_exhaustive_is_never_worse(seed):
    policy = Policy(TableModel.random(3, seed=seed, eos_ids=END))
    best = search(policy, 4, beams=81)[0].score
    for beams in (1, 2, 4, 9):
        assert search(policy, 4, beams=beams)[0].score <= best + 1e-12


def test_more_sequences_than_beams_are_refused():
    with pytest.raises(ParameterError, match="n is 5; allowed is at most beams = 4"):
        BEAM(beams=4, n=5)


def test_side_by_side_searches_share_forwards():
    table = TableModel.random(3, seed=1)
    runner = Runner()
    for seed in range(5):
        runner.submit(BEAM(), Task(Policy(table), (seed % 3,), Stopping(4), Stream(seed)))
    runner.run()
    assert table.calls == 4


# -- negative controls: wrong searches that the brute-force comparison tells apart -----------------


def simple(policy, length, beams, *, normalise=True, forget_end=False, worst=False):
    """A plain beam search over a table, with faults to switch on."""
    table, live, done = policy.source, [((), 0.0)], []
    for _ in range(length):
        longer = []
        for path, worth in live:
            for token, score in enumerate(table.scores([0, *path])):
                item = ((*path, token), worth + score)
                ended = (token in END and not forget_end) or len(item[0]) == length
                (done if ended else longer).append(item)
        longer.sort(key=lambda item: item[1] if worst else -item[1])
        live = longer[:beams]
    return max(done, key=lambda item: item[1] / (len(item[0]) if normalise else 1))[0]


def agreement(beams=81, **fault):
    policies = [Policy(TableModel.random(3, seed=seed, eos_ids=END)) for seed in range(12)]
    return np.mean([simple(p, 4, beams, **fault) == ranked(p, 4, 1.0)[0][0] for p in policies])


def test_the_control_without_a_fault_agrees():
    assert agreement() == 1.0


@pytest.mark.parametrize(
    "fault",
    [{"normalise": False}, {"forget_end": True}, {"worst": True, "beams": 1}],
    ids=["no length penalty", "end ignored", "keeps the worst"],
)
def test_wrong_variants_disagree(fault):
    assert agreement(**fault) < 1.0

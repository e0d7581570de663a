"""Plain sampling: exact by enumeration of its noise, then by chi-square of joint sequences.

Statistics: seeds fixed, alpha 1e-4 each, no reruns. At N = 20,000 over the 64 sequences of three
tokens a law at a total variation of 0.05 (non-centrality at least 200) is rejected with power
above 0.999; the slow test at N = 200,000 does the same at 0.016.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Tree
from decodery.testing import (
    LawBroken,
    TableModel,
    chi_square,
    decoder_law,
    enumerate_law,
    random_policy,
    require_law,
)

SAMPLE = registry.get("sample")
ALPHA = 1e-4
LENGTH = 3
POLICY = Policy(TableModel.random(4, order=2, seed=5))
LAW = enumerate_law(POLICY, (0,), LENGTH)


def drawn(runs, policy=POLICY, seeds=lambda i: i, batch=2000):
    """Sequences of many requests, a batch of them at a time on one runner."""
    sequences = []
    for start in range(0, runs, batch):
        runner = Runner()
        handles = [
            runner.submit(SAMPLE(), Task(policy, (0,), Stopping(LENGTH), Stream(seeds(i))))
            for i in range(start, min(start + batch, runs))
        ]
        runner.run()
        sequences += [handle.result()[0].tokens for handle in handles]
    return sequences


# -- exact -----------------------------------------------------------------------------------------


def quarters(context):
    return [[2, 1, 1], [1, 0, 3], [0, 4, 0], [1, 2, 1]][(3 * sum(context) + len(context)) % 4]


@pytest.mark.parametrize("eos_ids", [frozenset(), frozenset({2})], ids=["no end", "an end"])
def test_the_exact_law_by_enumeration_of_the_noise(eos_ids):
    policy = Policy(TableModel(quarters, 3, 2, eos_ids=eos_ids))
    stopping = Stopping(LENGTH, eos_ids)
    found = decoder_law(SAMPLE(), policy, (0,), stopping, grid=4)
    wanted = enumerate_law(policy, (0,), stopping)
    assert found.keys() == wanted.keys()
    assert all(abs(found[path] - wanted[path]) < 1e-12 for path in wanted)


def test_every_token_is_the_inverse_cdf_of_its_keyed_noise():
    for seed in range(50):
        policy, stream = random_policy(seed), Stream(seed)
        (item,) = run_alone(SAMPLE(), Task(policy, (1,), Stopping(6), stream))
        tree = Tree(policy, (1,), stream)
        node = tree.root
        for token in item.tokens:
            node.receive(_row(policy, node))
            wanted = node.policy_row(0).draw(stream.uniform(0, node.depth, "token"))
            assert token == wanted
            node = node.child(token)


def _row(policy, node):
    return Row.dense(policy.source.scores(node.tokens))


def test_sequence_i_is_the_same_whatever_n_is():
    def task(seed):
        return Task(POLICY, (0,), Stopping(5), Stream(seed))

    for seed in range(20):
        many = run_alone(SAMPLE(n=7), task(seed))
        for n in (1, 3):
            assert run_alone(SAMPLE(n=n), task(seed)) == many[:n]
        assert [item.sequence for item in many] == list(range(7))


def test_a_continuation_in_two_requests_draws_what_one_would():
    for seed in range(20):
        (whole,) = run_alone(SAMPLE(), Task(POLICY, (0,), Stopping(8), Stream(seed)))
        longer = (0, *whole.tokens[:3])
        (rest,) = run_alone(SAMPLE(), Task(POLICY, longer, Stopping(5), Stream(seed)))
        assert whole.tokens[3:] == rest.tokens


# -- statistics ------------------------------------------------------------------------------------


def test_joint_law_of_three_tokens():
    require_law(Counter(drawn(20_000)), LAW, ALPHA, "sample")


@pytest.mark.slow
def test_joint_law_of_three_tokens_at_length():
    require_law(Counter(drawn(200_000)), LAW, ALPHA, "sample")


def test_two_sequences_of_a_request_are_independent():
    runner = Runner()
    handles = [
        runner.submit(SAMPLE(n=2), Task(POLICY, (0,), Stopping(1), Stream(seed)))
        for seed in range(8000)
    ]
    runner.run()
    pairs = Counter(tuple(item.tokens[0] for item in handle.result()) for handle in handles)
    one = enumerate_law(POLICY, (0,), 1)
    law = {(a, b): one[a,] * one[b,] for a in range(4) for b in range(4)}
    require_law(pairs, law, ALPHA, "pairs of sequences")


# -- negative controls -----------------------------------------------------------------------------


def wrong(change):
    """Three tokens drawn from the table with a fault, 20,000 times."""
    sequences = []
    for seed in range(20_000):
        stream, path = Stream(seed), []
        for depth in range(LENGTH):
            weights, uniform = change(np.exp(POLICY.source.scores([0, *path])), stream, depth)
            path.append(int(np.searchsorted(np.cumsum(weights / weights.sum()), uniform)))
        sequences.append(tuple(path))
    return sequences


CONTROLS = {
    "one number for all positions": lambda p, s, _: (p, s.uniform(0, 0, "token")),
    "temperature 0.9": lambda p, s, d: (p ** (1 / 0.9), s.uniform(0, d, "token")),
    "the rarest token dropped": lambda p, s, d: (
        np.where(p == p.min(), 0, p),
        s.uniform(0, d, "token"),
    ),
    "off by one": lambda p, s, d: (np.roll(p, 1), s.uniform(0, d, "token")),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_wrong_variants_are_rejected(name):
    with pytest.raises(LawBroken):
        require_law(Counter(wrong(CONTROLS[name])), LAW, ALPHA, name)


def test_the_control_without_a_fault_is_accepted():
    right = wrong(lambda p, s, d: (p, s.uniform(0, d, "control")))
    assert chi_square(Counter(right), LAW).p_value > ALPHA

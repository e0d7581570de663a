"""Toys of mpg: random tables, laws of chunks and answers by hand, completions of many seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from decodery.core.decoder import Decoder, Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.blending.mpg import Mpg
from decodery.testing import TableModel, WatchedTable

PROMPT = (0,)
WEIGHTS = (0.7, 0.3)
RUNS = 300
Law = dict[tuple[int, ...], float]


def table(seed: int, vocab_size: int = 3, **options) -> WatchedTable:
    """A random table of full support that counts its calls."""
    law = TableModel.random(vocab_size, seed=seed, concentration=2.0).law
    return WatchedTable(law, vocab_size, 2, name=f"table {seed}", **options)


def of_rows(rows, vocab_size: int = 2, name: str = "rows", **options) -> WatchedTable:
    """A table from a function of the last token."""
    return WatchedTable(lambda context: rows(context[-1]), vocab_size, 1, name=name, **options)


def given(model: TableModel, path: Sequence[int], token: int) -> float:
    """p(token | prompt, path)."""
    return float(np.exp(model.scores([*PROMPT, *path])[token]))


def of_path(model: TableModel, path: Sequence[int], start: int = 0) -> float:
    """p(path[start:] | prompt, path[:start])."""
    return float(np.prod([given(model, path[:i], path[i]) for i in range(start, len(path))]))


def paths(vocab_size: int, length: int) -> list[tuple[int, ...]]:
    return list(product(range(vocab_size), repeat=length))


def mixture_law(attributes, weights, length: int, chunk: int) -> Law:
    """prod over chunks of sum_i w_i pi_i(chunk | before), by hand, without end tokens."""
    law: Law = {}
    for path in paths(attributes[0].vocab_size, length):
        worth = 1.0
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            worth *= sum(
                weight * of_path(model, path[:end], start)
                for weight, model in zip(weights, attributes, strict=True)
            )
        law[path] = worth
    return law


def distance(one: Law, other: Law) -> float:
    """Total variation."""
    return 0.5 * sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other})


def drawn(decoder: Decoder, policy: Policy, length: int, runs: int, first: int = 0):
    """The completions of many seeds, all in one runner."""
    runner = Runner()
    ends = Stopping(length, policy.source.eos_ids)
    handles = [
        runner.submit(decoder, Task(policy, PROMPT, ends, Stream(first + seed)))
        for seed in range(runs)
    ]
    runner.run()
    return [handle.result()[0] for handle in handles]


def same(one: Law, other: Law) -> bool:
    return max(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other}) < 1e-12


def law_of(pairs) -> Law:
    law: Law = {}
    for item, share in pairs:
        law[item.tokens] = law.get(item.tokens, 0.0) + share
    return law


def blend(vocab_size=3, eos_ids=frozenset(), **options):
    """Two random attributes under a random reference."""
    one, two, three = (table(seed, vocab_size, eos_ids=eos_ids) for seed in (1, 2, 3))
    return Mpg(one, [two, three], WEIGHTS, **options)


def counted(decoder, source, length=3, samplers=None, runs=RUNS):
    policy = Policy(source, chain(*(samplers or ())))
    return Counter(item.tokens for item in drawn(decoder, policy, length, runs))

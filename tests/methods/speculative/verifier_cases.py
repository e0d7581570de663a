"""Pairs of laws, and the exact law of every way to draw candidates: written apart from the code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law
from decodery.methods.speculative.verifiers import Rule, outcome

Masses = npt.NDArray[np.float64]
Lists = list[tuple[tuple[int, ...], float]]

MOST_LISTS = 130  # of one node: more are not enumerated


def pairs(count: int = 240, seed: int = 0) -> list[tuple[Masses, Masses]]:
    """Targets and drafts on 1 to 6 tokens: flat and peaked, with zeros, ties, equal and disjoint,
    or with all mass on one token."""
    generator = np.random.default_rng(seed)
    found = [_pair(generator, number % 8) for number in range(count)]
    assert {p.size for p, _ in found} == set(range(1, 7))
    return found


def _pair(generator: np.random.Generator, kind: int) -> tuple[Masses, Masses]:
    size = int(generator.integers(1, 7))
    p, q = (generator.dirichlet(np.full(size, generator.choice([0.3, 1, 3]))) for _ in "pq")
    if kind == 1:
        q = p.copy()
    elif kind == 2:  # zeros on both sides
        p, q = (_thinned(generator, masses) for masses in (p, q))
    elif kind == 3:  # ties, of tokens and of ratios
        p, q = (np.round(masses * 4 + 0.2) / 4 + 1e-3 for masses in (p, q))
    elif kind == 4 and size > 1:  # disjoint supports
        first = np.arange(size) < generator.integers(1, size)
        p, q = (p + 1e-3) * first, (q + 1e-3) * ~first
    elif kind == 5:
        p = np.eye(size)[generator.integers(size)]
    elif kind == 6:
        q = np.eye(size)[generator.integers(size)]
    elif kind == 7:  # a draft that is nearly sure
        q = np.exp(-generator.uniform(0, 25, size))
    return p / p.sum(), q / q.sum()


def _thinned(generator: np.random.Generator, masses: Masses) -> Masses:
    kept = generator.random(masses.size) < 0.6
    kept[generator.integers(masses.size)] = True
    return masses * kept


def lists(q: Masses, count: int, drawn: Drawn) -> Lists:
    """Every list of candidates in the order they are drawn, and its probability."""
    return [(tokens, chance) for tokens, chance in _lists(q, count, drawn) if chance > 0.0]


def _lists(q: Masses, count: int, drawn: Drawn) -> Iterator[tuple[tuple[int, ...], float]]:
    order = sorted(range(q.size), key=lambda token: (-q[token], token))
    possible = [token for token in order if q[token] > 0.0]
    if drawn == "iid":
        for tokens in itertools.product(range(q.size), repeat=count):
            yield tokens, float(np.prod(q[list(tokens)]))
    elif drawn == "distinct":
        for tokens in itertools.permutations(possible, min(count, len(possible))):
            yield tokens, _in_turn(q, tokens)
    elif drawn == "greedy":
        top, rest = tuple(possible[: count - 1]), possible[count - 1 :]
        mass = sum(q[token] for token in rest)
        yield from [((*top, token), q[token] / mass) for token in rest] or [(top, 1.0)]
    elif drawn == "hub":
        hub, rest = possible[0], possible[1:]
        mass = sum(q[token] for token in rest)
        yield from [((hub,), 1.0)] if not rest else []
        yield from (((token, hub), q[token]) for token in rest)
        yield from (((hub, token), q[hub] * q[token] / mass) for token in rest)


def _in_turn(q: Masses, tokens: tuple[int, ...]) -> float:
    chance, left = 1.0, q.copy()
    for token in tokens:
        chance *= left[token] / left.sum()
        left[token] = 0.0
    return chance


def counts(q: Masses, drawn: Drawn) -> list[int]:
    """How many candidates a node may have for its lists to be few enough."""
    if drawn == "hub":
        return [2]
    return [count for count in range(1, 5) if drawn == "greedy" or q.size**count <= MOST_LISTS]


def averaged(rule: Rule, drawn: Drawn, p: Masses, q: Masses, count: int) -> tuple[Masses, float]:
    """The law of the token and the acceptance, over all that the drafter may draw."""
    law, accepted = np.zeros(p.size), 0.0
    target, draft = Law.dense(p), Law.dense(q)
    for tokens, chance in lists(q, count, drawn):
        given, share = outcome(rule, target, draft, tokens)
        law += chance * given
        accepted += chance * share
    return law, accepted


def deviation(rule: Rule, drawn: Drawn, p: Masses, q: Masses, count: int) -> float:
    """How far the law of the token is from the target's."""
    return float(np.abs(averaged(rule, drawn, p, q, count)[0] - p).max())


def worst(rule: Rule, drawn: Drawn, cases: list[tuple[Masses, Masses]]) -> float:
    """The largest deviation over pairs and numbers of candidates."""
    return max(deviation(rule, drawn, p, q, count) for p, q in cases for count in counts(q, drawn))


def is_seen(rule: Rule, drawn: Drawn, cases: list[tuple[Masses, Masses]], least: float) -> bool:
    """Whether some pair shows a deviation of at least so much."""
    return any(
        deviation(rule, drawn, p, q, count) >= least
        for p, q in cases
        for count in counts(q, drawn)[::-1]
    )

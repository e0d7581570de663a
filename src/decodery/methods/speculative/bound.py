"""The best acceptance that any lossless verifier can reach: how far a rule is from the optimum.

With n candidates drawn in some way, the acceptance of the best coupling is a linear program; its
dual is a choice of a set of tokens,

    alpha* = 1 + min over H of [ p(H) - Q(H) ],    Q(H) = P(all n candidates lie in H),

and for draws from q with or without replacement the best H is a prefix of the tokens in the order
of rising p / q. So the bound costs one sort. With the n - 1 most probable tokens A and one draw
from q' = q without them it is p(A) + sum over the others of min(p, q').

Hu, Zheng, Viswanathan, Chen, Rossi, Wu, Manocha, Huang: Towards Optimal Multi-draft Speculative
Decoding (2025), arXiv:2502.18779. The integral for draws without replacement is our own; it has the
value of theirs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from decodery.core.errors import ParameterError
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law, Masses

_NODES = 64  # of the quadrature
_POWER = 8


def bound(target: Law, draft: Law, count: int, drawn: Drawn) -> float:
    """alpha*: the most often that one of `count` candidates drawn like this can be accepted."""
    if count < 1:
        raise ParameterError(f"count is {count}; the bound is of one candidate or more")
    if drawn in ("greedy", "hub"):
        if drawn == "hub" and count != 2:
            raise ParameterError(f"count is {count}; a hub draft has two candidates")
        return _greedy(target, draft, count)
    if drawn == "fixed":
        raise ParameterError(
            "fixed candidates have no law; their bound is the target's mass of them"
        )
    p, q = target.whole(), draft.whole()
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(np.where(q > 0, p / q, np.inf), kind="stable")
    inside = _all_inside(q[order], count, drawn)
    lower = np.concatenate(([0.0], np.cumsum(p[order])))
    return float(min(1.0, 1.0 + np.min(lower - inside)))


def _greedy(target: Law, draft: Law, count: int) -> float:
    top = draft.top(count - 1)
    rest = draft.without(*top) if top else draft
    if rest is None:  # the draft's support is the candidates
        return float(sum(target[token] for token in top))
    p, others = target.whole().copy(), rest.whole()
    mass = float(p[top].sum())
    p[top] = 0.0
    return mass + float(np.minimum(p, others).sum())


def _all_inside(q: Masses, count: int, drawn: Drawn) -> Masses:
    """Q of every prefix [n + 1] of tokens with these draft probabilities [n]."""
    sums = np.minimum(np.concatenate(([0.0], np.cumsum(q))), 1.0)
    if count == 1 or drawn == "iid":
        return sums**count
    support = np.flatnonzero(q)
    known = np.concatenate(([0], np.cumsum(q > 0)))  # tokens of the support in each prefix
    if support.size <= count:  # all of them are drawn
        return (known == support.size).astype(np.float64)
    q = q[support]
    inside = 1.0 - _outside(q) * _arrivals(q, count)
    return np.clip(inside, 0.0, 1.0)[known]


def _outside(q: Masses) -> Masses:
    """What the tokens behind each prefix [n + 1] weigh; summed from the end, so it keeps its digits
    where the prefix has nearly all."""
    return np.concatenate((np.cumsum(q[::-1])[::-1], [0.0]))


def _arrivals(q: Masses, count: int) -> Masses:
    """Int_0^1 sum_{m < count} e_m(u^-q_i - 1 : i in the prefix) du, for every prefix [n + 1].

    A token that comes at a rate of q_i has come by the time t with probability 1 - u^q_i, u = e^-t;
    e_m (the elementary symmetric polynomial) is about the m tokens of the prefix that came before
    the first one outside. Heavy tokens make the integrand steep, so they are multiplied out:
    those that came form a set A, their product is a sum over B in A of +-u^-q(B), and in
    v = u^(1 - q(B)) what is left is about light tokens only, in a law of its own without B.
    """
    heavy = _heavy(q, count)
    places = np.arange(q.size + 1)
    passed = np.sum([places > place for place in heavy], axis=0) if heavy else np.zeros(1, np.intp)
    light = q.copy()
    light[heavy] = 0.0
    total = np.zeros(q.size + 1)
    for size in range(min(len(heavy), count - 1) + 1):
        for group in itertools.combinations(heavy, size):
            others = q.copy()
            others[list(group)] = 0.0
            rest = float(others.sum())
            start = max(group, default=-1) + 1  # the first prefix with all of the group
            moments = _moments(light / rest, count - 1 - size)
            for order, moment in enumerate(moments):
                share = _signs(size, count - 1 - order, len(heavy))[passed] / rest
                total[start:] += (share * moment)[start:]
    return total


def _heavy(q: Masses, count: int) -> list[int]:
    """The fewest top tokens without which any few of the light ones have at most half the mass.

    With the top count - 1 that is always so: each of them outweighs one of the light ones.
    """
    order = np.argsort(-q, kind="stable")
    top, behind = q[order], _outside(q[order])
    for size in range(count - 1):
        shares = [
            top[size : size + count - 1 - taken].sum() / behind[taken] for taken in range(size + 1)
        ]
        if max(shares) <= 0.5:
            return order[:size].tolist()
    return order[: count - 1].tolist()


def _signs(size: int, most: int, heavy: int) -> Masses:
    """What a set B of `size` counts for, by how many heavy tokens the prefix has [heavy + 1].

    The sum over sets A of at most `most` heavy tokens around B of (-1)^|A - B|.
    """
    return np.array(
        [
            sum(
                (-1) ** (taken - size) * math.comb(known - size, taken - size)
                for taken in range(size, min(known, most) + 1)
            )
            for known in range(heavy + 1)
        ],
        dtype=np.float64,
    )


def _moments(q: Masses, most: int) -> list[Masses]:
    """Int_0^1 e_m(v^-q_i - 1 : i in the prefix) dv for m = 0..most, each for every prefix [n + 1].

    v = w^8 flattens the end at 0, where the integrand grows like v^-1/2 at worst; then
    e_m[k] = e_m[k-1] + x_k e_(m-1)[k-1] is a cumulative sum.
    """
    sums = [np.zeros(q.size) for _ in range(most)]
    for point, weight in zip(*_quadrature(), strict=True) if most else ():
        grown = np.expm1(q * (-_POWER * math.log(point)))
        below = np.full(q.size, weight * _POWER * point ** (_POWER - 1))
        for order, total in enumerate(sums, 1):
            terms = grown * below
            total += terms
            if order < most:
                below = np.concatenate(([0.0], np.cumsum(terms)[:-1]))
    return [np.ones(q.size + 1), *(np.concatenate(([0.0], np.cumsum(item))) for item in sums)]


@functools.cache
def _quadrature() -> tuple[list[float], list[float]]:
    """Points and weights of Gauss and Legendre on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    return (0.5 * (points + 1.0)).tolist(), (0.5 * weights).tolist()


# -- the oracle for small vocabularies -------------------------------------------------------------


def subsets(size: int) -> Iterator[tuple[int, ...]]:
    """Every set of tokens."""
    for count in range(size + 1):
        yield from itertools.combinations(range(size), count)


def bound_by_search(target: Masses, drafts: Sequence[tuple[tuple[int, ...], float]]) -> float:
    """alpha* of candidates with any law, given as (candidates, probability), by all 2^V sets."""
    worst = 0.0
    for chosen in subsets(target.size):
        inside = set(chosen)
        whole = sum(chance for tokens, chance in drafts if inside.issuperset(tokens))
        worst = min(worst, float(target[list(chosen)].sum()) - whole)
    return 1.0 + worst

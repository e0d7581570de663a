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

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from decodery.core.errors import ParameterError
from decodery.methods.speculative.candidates import Drawn
from decodery.methods.speculative.law import Law, Masses

_NODES = 64  # of the quadrature, at least


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
    sums = np.minimum(np.concatenate(([0.0], np.cumsum(q))), 1.0)
    if count == 2:
        before = np.concatenate(([0.0], np.cumsum(q / (1.0 - q))))
        inside = sums - (1.0 - sums) * before
    else:
        inside = 1.0 - (1.0 - sums) * _integral(q, count)
    inside[-1] = 1.0
    return np.clip(inside, 0.0, 1.0)[known]


def _integral(q: Masses, count: int) -> Masses:
    """Int_0^1 sum_{m < count} e_m(u^-q_i - 1 : i in the prefix) du, for every prefix [n + 1].

    A token that comes at a rate of q_i has come by the time t with probability 1 - u^q_i, u = e^-t;
    e_m counts the prefix's tokens that came before the first one outside. Substituting u = w^r
    flattens the end at 0, and e_m[k] = e_m[k-1] + x_k e_(m-1)[k-1] is a cumulative sum of logs.
    """
    heavy = float(np.sort(q)[-(count - 1) :].sum())
    power = max(2.0, 4.0 / max(1.0 - heavy, 1e-9))
    points, weights = np.polynomial.legendre.leggauss(max(_NODES, math.ceil(4 * math.sqrt(power))))
    total = np.zeros(q.size + 1)
    for point, weight in zip(0.5 * (points + 1.0), 0.5 * weights, strict=True):
        rates = -q * power * math.log(point)
        log_x = rates + np.log(-np.expm1(-rates))  # ln(u^-q - 1), also where that overflows
        log_terms = np.zeros(q.size + 1)  # ln e_0
        share = math.log(weight * power) + (power - 1.0) * math.log(point)
        total += np.exp(share + log_terms)
        for _ in range(1, count):
            sums = np.logaddexp.accumulate(log_x + log_terms[:-1])
            log_terms = np.concatenate(([-np.inf], sums))
            total += np.exp(share + log_terms)
    return total


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

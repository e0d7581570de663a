"""Exact mathematics on probability vectors: pure functions, float64 inside.

`target` is written p and `draft` q in the speculative literature; both are vectors over the same
vocabulary that sum to one. Nothing here changes its inputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

# A residual lighter than this is rounding: target and draft are equal there (float64).
RESIDUAL_FLOOR = 1e-12

_BLOCK = 512


def log_sum_exp(scores: Array) -> float:
    """ln sum exp(scores), stable; -inf for an empty or all -inf vector."""
    if scores.size == 0:
        return -np.inf
    top = float(scores.max())
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.exp(scores - scores.dtype.type(top)).sum(dtype=np.float64)))


def softmax(scores: Array) -> npt.NDArray[np.float64]:
    """Probabilities of unnormalised log-probabilities, float64, same shape [n]."""
    shifted = np.exp(scores.astype(np.float64) - float(scores.max()))
    return shifted / shifted.sum()


def entropy(probabilities: Array) -> float:
    """Shannon entropy in nats; 0 ln 0 is 0.

    >>> round(entropy(np.array([0.5, 0.5, 0.0])), 6)
    0.693147
    """
    positive = probabilities[probabilities > 0].astype(np.float64)
    return float(-(positive * np.log(positive)).sum())


def kl_divergence(target: Array, draft: Array) -> float:
    """KL(target || draft) in nats; infinite where draft lacks mass that target has."""
    support = target > 0
    if bool((draft[support] <= 0).any()):
        return float("inf")
    p = target[support].astype(np.float64)
    return float((p * (np.log(p) - np.log(draft[support].astype(np.float64)))).sum())


def total_variation(target: Array, draft: Array) -> float:
    """Half the L1 distance: 1 minus the acceptance of the best single draft.

    >>> round(total_variation(np.array([.3, .4, .3]), np.array([.6, .3, .1])), 12)
    0.3
    """
    return 0.5 * float(np.abs(target.astype(np.float64) - draft.astype(np.float64)).sum())


def residual(target: Array, draft: Array) -> npt.NDArray[np.float64]:
    """norm((target - draft)_+), the law of the token after a rejection (arXiv:2211.17192, eq. 3).

    Where the difference is rounding only, a rejection has probability zero and target itself is
    returned, so that 0/0 never reaches a draw.
    """
    difference = np.maximum(target.astype(np.float64) - draft.astype(np.float64), 0.0)
    mass = float(difference.sum())
    if mass <= RESIDUAL_FLOOR:
        return target.astype(np.float64)
    return difference / mass


def inverse_cdf(weights: Array, uniform: float) -> int:
    """The index drawn by `uniform` in [0, 1) from non-negative `weights` [n], not all zero.

    An index of weight zero is never returned. Sums are float64. Of a long vector only block sums
    and one block are accumulated: a running sum over 150,000 tokens costs more than all the rest.
    """
    if weights.size <= 4 * _BLOCK:
        cumulative = np.cumsum(weights, dtype=np.float64)
        return _first_above(weights, cumulative, uniform * float(cumulative[-1]))
    whole = weights.size - weights.size % _BLOCK
    blocks = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    sums = np.append(blocks, weights[whole:].sum(dtype=np.float64))
    ends = np.cumsum(sums)
    target = uniform * float(ends[-1])
    block = _first_above(sums, ends, target)
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK]
    before = float(ends[block - 1]) if block else 0.0
    return start + _first_above(inside, before + np.cumsum(inside, dtype=np.float64), target)


def _first_above(weights: Array, cumulative: Array, target: float) -> int:
    """The first index whose cumulative weight exceeds `target`; rounding falls on the last one."""
    index = int(np.searchsorted(cumulative, target, side="right"))
    if index < weights.size:
        return index
    return int(weights.nonzero()[0][-1])

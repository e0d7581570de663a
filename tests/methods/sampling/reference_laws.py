"""The samplers from their definitions: plain Python, float64, one token at a time, full sorts.

Each function takes scores (a list over the vocabulary, -inf impossible) and returns the law as a
list of probabilities. Nothing here is shared with the package.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

Scores = Sequence[float]


def softmax(scores: Scores) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def restricted(scores: Scores, kept: Collection[int]) -> list[float]:
    return softmax([score if v in kept else -math.inf for v, score in enumerate(scores)])


def temperature(scores: Scores, heat: float) -> list[float]:
    if heat == 0:
        return restricted(scores, {list(scores).index(max(scores))})
    return softmax([(score - max(scores)) / heat for score in scores])


def top_k(scores: Scores, k: int) -> list[float]:
    if k == 0 or k >= len(scores):
        return softmax(scores)
    cut = sorted(scores, reverse=True)[k - 1]
    return restricted(scores, {v for v, score in enumerate(scores) if score >= cut})


def top_p(scores: Scores, p: float) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    kept: list[int] = []
    for v in sorted(range(len(scores)), key=lambda v: (-scores[v], v)):
        if math.fsum(weights[u] for u in kept) >= p * total:
            break
        kept.append(v)
    return restricted(scores, kept)


def min_p(scores: Scores, base: float, keep: int = 1) -> list[float]:
    order = sorted(range(len(scores)), key=lambda v: (-scores[v], v))
    floor = max(scores) + math.log(base) if base else -math.inf
    return restricted(scores, {v for v in order if scores[v] >= floor} | set(order[:keep]))


def typical(scores: Scores, mass: float) -> list[float]:
    law = softmax(scores)
    if mass == 1:
        return law
    surprise = [-math.log(p) if p else math.inf for p in law]
    entropy = math.fsum(p * s for p, s in zip(law, surprise, strict=True) if p)
    deviation = [abs(s - entropy) for s in surprise]
    held, cut = 0.0, 0.0
    for v in sorted(range(len(law)), key=lambda v: deviation[v]):
        held += law[v]
        cut = deviation[v]
        if held >= mass:
            break
    return restricted(scores, {v for v in range(len(law)) if deviation[v] <= cut + 1e-12})


def repetition(scores: Scores, seen: Collection[int], penalty: float) -> list[float]:
    return softmax(
        [
            score if v not in seen else score * penalty if score < 0 else score / penalty
            for v, score in enumerate(scores)
        ]
    )


def presence(scores: Scores, output: Sequence[int], penalty: float) -> list[float]:
    return softmax([s - penalty if v in output else s for v, s in enumerate(scores)])


def frequency(scores: Scores, output: Sequence[int], penalty: float) -> list[float]:
    return softmax([s - penalty * list(output).count(v) for v, s in enumerate(scores)])


def repeats_ngram(path: Sequence[int], token: int, n: int) -> bool:
    """Whether `token` would complete an n-gram that the path already holds."""
    grams = {tuple(path[i : i + n]) for i in range(len(path) - n + 1)}
    longer = [*path, token]
    return len(longer) >= n and tuple(longer[len(longer) - n :]) in grams

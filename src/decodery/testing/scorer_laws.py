"""The laws of scorers: pure, one finite number a candidate, and blind to batch mates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.scorer import Candidate, Scorer
from decodery.testing.observe import LawBroken, fingerprint, require, without_global_randomness

CANDIDATES = (
    Candidate("why", "because", (1, 2, 3), -2.5),
    Candidate("why", "because it is so", (1, 2, 3, 4, 5), -7.25),
    Candidate("", "x", (0,), -0.125),
    Candidate("why", "two words", (5, 5), 0.0),
    Candidate("how?", "it is. It is 42.", (4, 2, 4, 2, 1, 0, 1), -30.0),
)


def behaviour(name: str, scorer: Scorer, candidates: tuple[Candidate, ...] = CANDIDATES) -> Any:
    try:
        return scorer.score(candidates)
    except Exception as error:
        raise LawBroken(f"{name} fails on {len(candidates)} candidates: {error!r}") from error


def is_pure(name: str, scorer: Scorer) -> None:
    """The same candidates get the same numbers, whatever global random state says."""
    before = fingerprint(CANDIDATES)
    without_global_randomness(name, lambda: behaviour(name, scorer))
    require(fingerprint(CANDIDATES) == before, f"{name} changes the candidates")


def gives_one_number_each(name: str, scorer: Scorer) -> None:
    """float64 [n] for n candidates, also for none."""
    for count in (0, 1, len(CANDIDATES)):
        scores: npt.NDArray[np.float64] = behaviour(name, scorer, CANDIDATES[:count])
        fits = isinstance(scores, np.ndarray) and scores.shape == (count,)
        require(fits and scores.dtype == np.float64, f"{name} gives no float64 [{count}]")


def ignores_batch_mates(name: str, scorer: Scorer) -> None:
    """A candidate's number does not depend on who is scored with it, nor on the order."""
    together = behaviour(name, scorer)
    alone = np.concatenate([behaviour(name, scorer, (item,)) for item in CANDIDATES])
    backwards = behaviour(name, scorer, CANDIDATES[::-1])[::-1]
    for other in (alone, backwards):
        same = np.allclose(together, other, rtol=1e-9, atol=1e-12, equal_nan=True)
        require(same, f"{name}: a score depends on the candidates beside it")


ScorerLaw = Callable[[str, Scorer], None]

SCORER_LAWS: tuple[ScorerLaw, ...] = (is_pure, gives_one_number_each, ignores_batch_mates)


def equals_scorer(name: str, scorer: Scorer, other: Scorer, claim: str) -> None:
    """A declared reduction: the same numbers as `other`."""
    same = np.allclose(behaviour(name, scorer), behaviour(claim, other), rtol=1e-12, atol=0)
    require(same, f"{name}: {claim} does not hold")

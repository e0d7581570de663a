"""Scorers: text or tokens to a number (reward, utility, verifier, quality estimate, unit tests)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Candidate:
    """A whole or partial answer to be scored.

    `log_probability` is the sum over `tokens` of ln p under the source at temperature 1 (nats).
    """

    prompt: str
    text: str
    tokens: Sequence[int]
    log_probability: float


class Scorer(ABC):
    """Gives each candidate a number; higher is better. `name` stands in reports."""

    name: str

    @abstractmethod
    def score(self, candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
        """Scores [len(candidates)]; a NaN counts as the worst."""

"""Who writes the next word, base or aligned model: the routers of base-aligned collaboration.

A router looks at the two rows and gives the base model's share of the next token: 1 or 0, and for
the coin of `rand` its chance. `gamma` is the threshold as the paper writes it; `diversity` in
[0, 1] is one scale for all: at 0 the aligned model writes, at 1 the base model wherever the content
router lets it, and between them the base model's share only grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.methods.blending.words import Words

RouterName = Literal["rand", "p", "h", "punc", "fc", "p_punc", "h_punc", "p_fc", "h_fc"]
ContentFrom = Literal["base", "aligned", "either"]

DIVERSITY = 0.5


@dataclass(frozen=True)
class Router:
    """`signal` rand, p or h with a threshold, and `content` punc or fc; either may be missing."""

    signal: str | None
    content: str | None
    threshold: float
    content_from: ContentFrom = "base"

    def base_share(self, aligned: Row, base: Row, words: Words | None, going_on: bool) -> float:
        """The share of the next token that the base model gets; `going_on`: inside a word."""
        if self.signal == "rand":
            return self.threshold
        if self.signal == "p" and not _confidence(base) < self.threshold:
            return 0.0
        if self.signal == "h" and not base.entropy() > self.threshold:
            return 0.0
        if self.content is None:
            return 1.0
        assert words is not None
        seen = {"base": (base,), "aligned": (aligned,), "either": (base, aligned)}
        free = all(
            self._is_content(row.argmax(), words, going_on) for row in seen[self.content_from]
        )
        return float(free)

    def _is_content(self, token: int, words: Words, going_on: bool) -> bool:
        """Not a sign; for `fc` not a function word either, which is one only as a whole word."""
        if words.sign[token]:
            return False
        if self.content == "punc":
            return True
        continues = going_on and words.begins[token]
        return bool(continues or not words.function[token])


def _confidence(row: Row) -> float:
    """max_v p(v)."""
    return math.exp(row.maximum - row.log_normaliser)


def make_router(
    name: RouterName,
    gamma: float | None = None,
    diversity: float | None = None,
    content_from: ContentFrom = "base",
) -> Router:
    """The router of a name; without gamma and diversity, at diversity 0.5.

    >>> make_router("p_punc", gamma=0.3)
    Router(signal='p', content='punc', threshold=0.3, content_from='base')
    """
    parts = name.split("_")
    signal = parts[0] if parts[0] in ("rand", "p", "h") else None
    content = parts[-1] if parts[-1] in ("punc", "fc") else None
    if content is None and content_from != "base":
        raise ParameterError(
            f"baco: router {name} does not look at content; leave out content_from"
        )
    if signal is None:
        for what, value in (("gamma", gamma), ("diversity", diversity)):
            if value is not None:
                raise ParameterError(f"baco: router {name} has no threshold; leave out {what}")
        return Router(None, content, math.nan, content_from)
    if gamma is not None and diversity is not None:
        raise ParameterError("baco: gamma and diversity are both given; each sets the threshold")
    if gamma is None:
        gamma = threshold(signal, DIVERSITY if diversity is None else diversity)
    elif signal == "rand" and not 0 <= gamma <= 1:
        raise ParameterError(
            f"baco: gamma is {gamma}; for router rand allowed is a number with 0 <= x <= 1"
        )
    return Router(signal, content, gamma, content_from)


def threshold(signal: str, diversity: float) -> float:
    """The gamma of a diversity: the share of `rand`, the largest probability of `p`; for `h` the
    entropy whose inverse perplexity exp(-H) is the diversity. At 0 and 1 nothing can pass or fail.

    >>> threshold("p", 0.3), round(threshold("h", 0.3), 3), threshold("p", 1.0)
    (0.3, 1.204, inf)
    """
    if not 0 <= diversity <= 1:
        raise ParameterError(
            f"baco: diversity is {diversity}; allowed is a number with 0 <= x <= 1"
        )
    if signal == "rand":
        return diversity
    if signal == "p":
        return diversity if diversity < 1 else math.inf
    if diversity == 0:
        return math.inf
    return -math.log(diversity) if diversity < 1 else -math.inf

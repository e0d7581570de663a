"""Mirostat: hold the surprise of a text at a target, in bits a token, by feedback.

The state mu is the most surprise, -log2 p, that a token may have at this step. Less probable tokens
are cut; the surprise S of the token that was drawn then moves mu towards the target tau:
mu <- mu - eta (S - tau), from mu = 2 tau. Summed over T tokens, on any model,

    mean S - tau = (mu_1 - mu_T+1) / (eta T),

so as long as mu stays bounded the mean settles at tau, and 2^tau is the perplexity of the text.

Version 2, of llama.cpp, cuts at the surprise itself. Version 1, the paper's, fits Zipf's law
p(rank i) ~ i^-s to the m most probable tokens and keeps the k of them that this law gives a
surprise of at most mu; it needs a fit and the number N of tokens, and aims at the same set.

Basu, Ramachandran, Keskar, Varshney: Mirostat: A Neural Text Decoding Algorithm that Directly
Controls Perplexity (2020), arXiv:2007.14966.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row, Scores
from decodery.core.sampler import Context, Sampler, State
from decodery.core.source import Source
from decodery.methods.sampling.heads import head, kth_highest

Surprise = Literal["model", "truncated"]
Support = Literal["possible", "vocabulary"]

LN2 = math.log(2.0)
RANKS = 100  # m of the paper
FLAT = 1e-4  # an exponent below this is a flat head, whose ranks all have one surprise
NEAR_ONE = 1e-6  # an exponent this near to 1 has Zipf's normaliser by its series
MOST_BITS = 1100.0  # a probability of 2^-1100 is 0 in float64: cutting there cuts nothing

CARD = Card(
    name="mirostat",
    kind="sampler",
    family="sampling",
    summary="Cut by a bound on surprise that feedback moves, so that the text's mean is tau bits.",
    guarantee="law",
    law="the row restricted to {v: -log2 p_v <= mu} (version 1: to its k most probable tokens) and"
    " renormalised; mu follows from the tokens before by mu <- mu - eta (S - tau)",
    title="Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity",
    authors="Basu, Ramachandran, Keskar, Varshney",
    year=2020,
    arxiv="2007.14966",
    place=50,
    reductions=(
        Reduction({"mirostat_eta": 0.0, "mirostat_mu_init": MOST_BITS}, "identity"),
        Reduction({"mirostat_tau": 0.0}, "temperature", {"temperature": 0.0}),
    ),
    deviations=(
        "version 2 is llama.cpp's and the default; tau 3 and eta 1 are the paper's, llama.cpp has 5"
        " and 0.1, and measures surprise after the cut (mirostat_surprise=truncated)",
        "the fit of version 1 takes differences of scores, so a probability that underflows is no"
        " gap in it; N counts possible tokens, llama.cpp's the whole vocabulary"
        " (mirostat_support=vocabulary)",
        "a target above log2 of the number of tokens that can remain is refused",
    ),
    notes=(
        "Surprise is that of the row mirostat is given: after the temperature, before truncation in"
        " the default order. A truncation that comes after it narrows what it left, and the mean"
        " stays below tau where that leaves too little surprise. Behind a truncation"
        " (`sampler_order`) tau is the surprise under the truncated law. Where the model itself has"
        " less surprise than tau, mu grows and nothing is cut; where even its most probable tokens"
        " have more, mu falls and the text is greedy. `mirostat_mu_max` and `mirostat_mu_min` bound"
        " how long it takes to come back; while they are active the mean is not held. tau depends"
        " on the tokenizer, since it counts bits a token."
    ),
)


class Params(Parameters):
    mirostat_tau: float = parameter(
        3.0, ge=0.0, le=64.0, unit="bits a token", help="The target: mean surprise of the text."
    )
    mirostat_version: int = parameter(
        2,
        ge=1,
        le=2,
        help="2 cuts by surprise; 1, the paper's, by a rank from a fit to Zipf's law.",
    )
    mirostat_eta: float = parameter(
        1.0, ge=0.0, le=10.0, help="How far an error of one bit moves the bound; 0 fixes it."
    )
    mirostat_mu_init: float | None = parameter(
        None, ge=0.0, le=MOST_BITS, unit="bits", help="The first bound on surprise; default 2 tau."
    )
    mirostat_surprise: Surprise = parameter(
        "model", help="Measure the drawn token under the row, or under what the cut left of it."
    )
    mirostat_m: int | None = parameter(
        None,
        ge=2,
        le=1_000_000,
        unit="ranks",
        help=f"Version 1: ranks of the fit; default {RANKS}.",
    )
    mirostat_support: Support | None = parameter(
        None, help="Version 1: tokens that N counts; default possible, those not ruled out before."
    )
    mirostat_mu_min: float | None = parameter(
        None, ge=-MOST_BITS, le=MOST_BITS, unit="bits", help="The bound never falls below this."
    )
    mirostat_mu_max: float | None = parameter(
        None, ge=0.0, le=MOST_BITS, unit="bits", help="The bound never rises above this."
    )


@dataclass(frozen=True)
class Mirostat(Sampler):
    """Keeps tokens of a surprise up to the state mu [bits], and moves mu by what was drawn.

    >>> row, here = Row.of_probabilities([0.6, 0.3, 0.1]), Context((0,), 1)
    >>> mirostat = Mirostat(tau=1.0)
    >>> mirostat.apply(row, 2.0, here).token_ids()  # surprises 0.74, 1.74, 3.32
    array([0, 1])
    >>> round(mirostat.advance(2.0, 1, row, here), 2)
    1.26
    """

    keeps_argmax: ClassVar[bool] = True
    observes_rows: ClassVar[bool] = True
    truncates: ClassVar[bool] = True
    tau: float = 3.0
    eta: float = 1.0
    mu_init: float | None = None
    version: int = 2
    surprise: Surprise = "model"
    ranks: int = RANKS
    support: Support = "possible"
    mu_min: float = -math.inf
    mu_max: float = math.inf

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in before:
            if stage.most_tokens is not None:
                self._require_reachable(stage.most_tokens, repr(stage))

    def bind(self, source: Source) -> Sampler:
        self._require_reachable(source.vocab_size, source.name)
        return self

    def _require_reachable(self, tokens: int, owner: str) -> None:
        """No law over so many tokens has a mean surprise above log2 of their number."""
        most = math.log2(tokens)
        if self.tau > most:
            raise ParameterError(
                f"mirostat_tau is {self.tau:g} bits and could never be reached: {owner} leaves"
                f" {tokens} tokens, whose mean surprise is at most {most:.4g}"
            )

    def start(self, context: Context) -> float:
        return 2.0 * self.tau if self.mu_init is None else self.mu_init

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.version == 1:
            return self._most_probable(row, state)
        kept = _surprises(row) <= state
        return row.keep(kept) if kept.any() else row.keep_at(np.array([row.scores.argmax()]))

    def _most_probable(self, row: Row, mu: float) -> Row:
        possible = row.possible()
        support = possible if self.support == "possible" else row.vocab_size
        k = zipf_rank(mu, zipf_exponent(row.scores, self.ranks), support)
        if k >= possible:
            return row
        return row.keep_at(head(row.scores, kth_highest(row.scores, k), k))

    def advance(self, state: State, token: int, row: Row | None, context: Context) -> float:
        if self.eta == 0:
            return state
        assert row is not None
        seen = row if self.surprise == "model" else self.apply(row, state, context)
        error = -seen.log_probability(token) / LN2 - self.tau
        return min(max(state - self.eta * error, self.mu_min), self.mu_max)


def _surprises(row: Row) -> Scores:
    """-log2 p [n] of the row's entries, in float64 as `Row.log_probability` gives them."""
    return (row.log_normaliser - row.scores.astype(np.float64)) / LN2


def zipf_exponent(scores: Scores, ranks: int) -> float:
    """The exponent s of p(rank i) ~ i^-s that fits the `ranks` highest of `scores` [n].

    Least squares through the origin of ln p(i)/p(i+1) on ln (i+1)/i (section 4 of the paper).
    Infinite where fewer than two tokens are possible.

    >>> round(zipf_exponent(-1.5 * np.log(np.arange(1.0, 9.0)), 8), 12)
    1.5
    """
    if ranks < scores.size:
        scores = scores[scores >= kth_highest(scores, ranks)]
    top = np.sort(scores.astype(np.float64))[::-1][:ranks]
    top = top[top > -np.inf]
    if top.size < 2:
        return math.inf
    falls = top[:-1] - top[1:]
    steps = np.log1p(1.0 / np.arange(1, top.size))
    return float(steps @ falls / (steps @ steps))


def zipf_rank(mu: float, exponent: float, support: int) -> int:
    """The rank, of `support` ranks under Zipf's law of this exponent, whose surprise is mu bits.

    Rounded to the nearest, at least 1 and at most `support`.
    """
    if support == 1 or exponent == math.inf:
        return 1
    log_normaliser = math.log2(zipf_normaliser(exponent, support))
    if exponent <= FLAT:
        return support if mu >= log_normaliser else 1
    log_rank = (mu - log_normaliser) / exponent
    if log_rank >= math.log2(support):
        return support
    return max(1, math.floor(2.0**log_rank + 0.5))


def zipf_normaliser(exponent: float, support: int) -> float:
    """The integral of x^-s from 1 to N, which stands for the sum of i^-s over N ranks."""
    excess, log_support = exponent - 1.0, math.log(support)
    if abs(excess) < NEAR_ONE:
        return log_support * (1.0 - excess * log_support / 2.0)
    return -math.expm1(-excess * log_support) / excess


def build(params: Params) -> Mirostat:
    _refuse_unused(params)
    mirostat = Mirostat(
        tau=params.mirostat_tau,
        eta=params.mirostat_eta,
        mu_init=params.mirostat_mu_init,
        version=params.mirostat_version,
        surprise=params.mirostat_surprise,
        ranks=RANKS if params.mirostat_m is None else params.mirostat_m,
        support=params.mirostat_support or "possible",
        mu_min=-math.inf if params.mirostat_mu_min is None else params.mirostat_mu_min,
        mu_max=math.inf if params.mirostat_mu_max is None else params.mirostat_mu_max,
    )
    _refuse_bounds(mirostat)
    return mirostat


def _refuse_unused(params: Params) -> None:
    """What only version 1 reads has no effect on version 2."""
    if params.mirostat_version == 1:
        return
    for name in ("mirostat_m", "mirostat_support"):
        value = getattr(params, name)
        if value is not None:
            raise ParameterError(
                f"mirostat: {name} is {value!r}, which version 2 does not read; leave it out, or"
                " set mirostat_version to 1"
            )


def _refuse_bounds(mirostat: Mirostat) -> None:
    low, high, first = mirostat.mu_min, mirostat.mu_max, mirostat.start(Context((), 0))
    if not low <= first <= high:
        raise ParameterError(
            f"mirostat: the first bound (mirostat_mu_init, by default 2 mirostat_tau) is {first:g};"
            f" allowed is from mirostat_mu_min to mirostat_mu_max, {low:g} to {high:g}"
        )
    if high < mirostat.tau:
        raise ParameterError(
            f"mirostat: mirostat_mu_max is {high:g}; it must be at least mirostat_tau,"
            f" {mirostat.tau:g}, or the mean could never reach the target"
        )


METHOD = Method(CARD, Params, build)

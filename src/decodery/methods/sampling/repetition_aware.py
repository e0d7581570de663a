"""Repetition-aware sampling: draw from the nucleus; redraw what was seen too often from all.

A code c is drawn from the nucleus q of the row p. If its share r(c) of the last K codes exceeds t,
it is replaced by a draw from p itself, whatever that gives. With R the codes of too large a share
the two draws have the law

    P(c) = q(c) 1[c not in R] + q(R) p(c),

so the sampler makes that row, and the decoder's one draw from it is the two draws: no noise of its
own, exact inside drafts and beams. The history is the path, prompt and output. At v = 0 the nucleus
is the argmax, and a model stuck at p(c) = 1 - eps leaves its loop with probability eps a step,
which greedy decoding never does. Nothing here knows what a token stands for.

Chen, Liu, Zhou, et al.: VALL-E 2: Neural Codec Language Models are Human Parity Zero-Shot Text to
Speech Synthesizers (2024), arXiv:2406.05370, algorithm 1. `exclude` and `top_k` as in CosyVoice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method, Reduction
from decodery.core.distribution import log_sum_exp
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Ids, Mask, Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.heads import head, kth_highest
from decodery.methods.sampling.history import history
from decodery.methods.sampling.top_p import TopP

Logs = npt.NDArray[np.float64]

CARD = Card(
    name="repetition_aware",
    kind="sampler",
    family="sampling",
    summary="Draw from the nucleus; redraw from the whole row what occurred too often lately.",
    guarantee="law",
    law="P(c) = q(c) 1[c not in R] + q(R) p(c), q the nucleus of p, R the codes whose share of the"
    " last K exceeds t; with ras_exclude_repeated each redraw is from p without the code drawn",
    title="VALL-E 2: Neural Codec Language Models are Human Parity Zero-Shot Text to Speech"
    " Synthesizers",
    authors="Chen, Liu, Zhou, Liu, Tan, Li, Zhao, Qian, Wei",
    year=2024,
    arxiv="2406.05370",
    place=97,
    reductions=(
        Reduction({"ras_threshold": -1.0}, "identity"),
        Reduction({"ras_threshold": 2.0, "ras_top_p": 0.7}, "top_p", {"top_p": 0.7}),
        Reduction({"ras_threshold": 2.0, "ras_top_p": 0.0}, "temperature", {"temperature": 0.0}),
    ),
    deviations=(
        "the paper's sum begins at the code itself, so the share is (1 + count) / K; with"
        " ras_count_self off it is count / K",
        "the two draws are one draw from their joint law",
    ),
    notes=(
        "p is the row as it comes, so the whole chain before it acts on both draws: temperature,"
        " masks, and any truncation, which then narrows the redraw too. The ratio is looked at"
        " once: the redraw may give the same code. Where no other token is possible, exclusion"
        " keeps it. CosyVoice's rule, count >= K t, is the default for K t = 1."
    ),
)


class Params(Parameters):
    ras_top_p: float = parameter(
        0.8, ge=0.0, le=1.0, unit="probability", help="Mass v of the nucleus; 0 is the argmax."
    )
    ras_top_k: int = parameter(
        0, ge=0, unit="tokens", help="At most so many tokens in the nucleus; 0 is no limit."
    )
    ras_window: int = parameter(10, ge=1, unit="tokens", help="How many last tokens K are counted.")
    ras_threshold: float = parameter(
        0.1, ge=-1.0, le=2.0, help="Share of the window above which a token is redrawn."
    )
    ras_count_self: bool = parameter(
        True, help="Whether the drawn token counts in its own share, as the paper writes it."
    )
    ras_exclude_repeated: bool = parameter(
        False, help="Whether the redraw is without the token that was drawn."
    )
    ras_prompt: bool = parameter(True, help="Whether tokens of the prompt count.")


@dataclass(frozen=True)
class RepetitionAware(Sampler):
    """P(c) = q(c) 1[c not in R] + q(R) p(c).

    >>> row = Row.of_probabilities([0.5, 0.3, 0.2])
    >>> sampler = RepetitionAware(top_p=0.5, window=2, threshold=0.5)
    >>> sampler.apply(row, None, Context((1, 2), 1)).probabilities()  # 0 did not occur
    array([1.])
    >>> sampler.apply(row, None, Context((1, 0), 1)).probabilities().round(2)
    array([0.5, 0.3, 0.2])
    """

    top_p: float = 0.8
    top_k: int = 0
    window: int = 10
    threshold: float = 0.1
    count_self: bool = True
    exclude_repeated: bool = False
    prompt: bool = True

    @property
    def truncates(self) -> bool:  # type: ignore[override]
        return self.threshold >= 0 and (self.top_p < 1 or self.top_k > 0)

    def check_chain(self, before: Sequence[Sampler], after: Sequence[Sampler]) -> None:
        for stage in after:
            if stage.tempers or stage.truncates:
                raise ParameterError(
                    f"repetition_aware makes the law that tokens are drawn from, and {stage!r}"
                    " after it would change it; put repetition_aware after it (sampler_order)"
                )
        for stage in before:
            if stage.most_tokens == 1:
                raise ParameterError(
                    f"repetition_aware has no effect: {stage!r} before it leaves one token, the"
                    " nucleus and all there is to redraw from; for greedy draws that are redrawn"
                    " give ras_top_p 0 in its place"
                )

    def apply(self, row: Row, state: State, context: Context) -> Row:
        nucleus = self._nucleus(row)
        repeated = self._repeated(nucleus.token_ids(), context) & (nucleus.scores > -np.inf)
        if not repeated.any():
            return nucleus
        if self.exclude_repeated:
            return _redrawn_without_itself(row, nucleus, repeated)
        if repeated.all():
            return row
        return _redrawn(row, nucleus, repeated)

    def _nucleus(self, row: Row) -> Row:
        nucleus = TopP(self.top_p).apply(row, None, Context((), 0))
        if not 0 < self.top_k < len(nucleus):
            return nucleus
        cut = kth_highest(nucleus.scores, self.top_k)
        return nucleus.keep_at(head(nucleus.scores, cut, self.top_k))

    def _repeated(self, tokens: Ids, context: Context) -> Mask:
        """Which of `tokens` have too large a share of the window."""
        seen = history(context, prompt=self.prompt, window=self.window)
        values, occurred = np.unique(np.asarray(seen, dtype=np.intp), return_counts=True)
        counts = np.full(tokens.size, int(self.count_self))
        _, place, found = np.intersect1d(tokens, values, assume_unique=True, return_indices=True)
        counts[place] += occurred[found]
        # A division: 3 / 30 is the float 0.1, and 0.1 * 30 is not the float 3.
        return counts / self.window > self.threshold


# The laws are made in logarithms: what is possible stays possible, however improbable.


def _redrawn(row: Row, nucleus: Row, repeated: Mask) -> Row:
    """P(c) = q(c) 1[c not in R] + q(R) p(c)."""
    drawn = _log_law(nucleus)
    scores = _log_law(row) + log_sum_exp(drawn[repeated])
    return _with(row, scores, nucleus.token_ids()[~repeated], drawn[~repeated])


def _redrawn_without_itself(row: Row, nucleus: Row, repeated: Mask) -> Row:
    """P(c) = q(c) 1[c not in R] + sum over d in R, d != c, of q(d) p(c) / (1 - p(d)).

    Where 1 - p(d) is 0 nothing can replace d, and d stays.
    """
    drawn = _log_law(nucleus)
    positions, _ = row.positions(nucleus.token_ids()[repeated])
    others = _sums_without(_log_law(row), positions)
    stuck = others == -np.inf
    shares = np.where(stuck, -np.inf, drawn[repeated] - np.where(stuck, 0.0, others))
    weights = np.full(len(row), log_sum_exp(shares))
    weights[positions] = _sums_without(shares, np.arange(shares.size))
    stays = ~repeated
    stays[np.flatnonzero(repeated)[stuck]] = True
    return _with(row, _log_law(row) + weights, nucleus.token_ids()[stays], drawn[stays])


def _log_law(row: Row) -> Logs:
    return row.scores.astype(np.float64) - row.log_normaliser


def _sums_without(logs: Logs, positions: Ids) -> Logs:
    """For each of `positions`, ln of the sum of exp of all other entries."""
    total = log_sum_exp(logs)
    if total == -np.inf:
        return np.full(positions.size, total)
    parts = np.exp(logs[positions] - total)
    without = total + np.log1p(-np.minimum(parts, 0.5))
    for place in np.flatnonzero(parts > 0.5):  # 1 - part would be rounding
        without[place] = log_sum_exp(np.delete(logs, positions[place]))
    return without


def _with(row: Row, scores: Logs, tokens: Ids, law: Logs) -> Row:
    """The row of exp(scores) with exp(law) added at `tokens`."""
    positions, _ = row.positions(tokens)
    scores[positions] = np.logaddexp(scores[positions], law)
    return row.with_scores(scores.astype(row.scores.dtype))


def build(params: Params) -> RepetitionAware:
    least = 1 / params.ras_window
    if params.ras_count_self and 0 <= params.ras_threshold < least:
        raise ParameterError(
            f"repetition_aware: ras_threshold is {params.ras_threshold:g} and ras_window"
            f" {params.ras_window}, where every token that counts itself has a share of at least"
            f" {least:g}, so all would be redrawn; give ras_threshold {least:g} or more,"
            " ras_count_self false, or a negative ras_threshold if that is meant"
        )
    return RepetitionAware(
        params.ras_top_p,
        params.ras_top_k,
        params.ras_window,
        params.ras_threshold,
        params.ras_count_self,
        params.ras_exclude_repeated,
        params.ras_prompt,
    )


METHOD = Method(CARD, Params, build)

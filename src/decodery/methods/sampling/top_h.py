"""Top-h: keep the head of the law whose share of the entropy stays within h.

Of the 100 most probable tokens, renormalised, H is the entropy. They are taken in the order of
probability while the running sum of -p ln p is at most h * H; the most probable token always stays.
Where the model is sure H is small and so is the head. Of tokens that tie at the cut, those with the
lowest ids stay, and only as many as fit.

Baghaei Potraghloo, Azizi, Kundu, Pedram: Top-H Decoding: Adapting the Creativity and Coherence with
Bounded Entropy in Text Generation (2025), arXiv:2509.02510; `top_h` in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from decodery.core.card import Card, Method
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row, Scores
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.heads import head, kth_highest

CARD = Card(
    name="top_h",
    kind="sampler",
    family="sampling",
    summary="Keep the most probable tokens that hold a share of the entropy.",
    guarantee="law",
    law="the row restricted to the longest head of its 100 most probable tokens whose sum of"
    " -p ln p is at most h times theirs, and renormalised",
    title="Top-H Decoding: Adapting the Creativity and Coherence with Bounded Entropy in Text"
    " Generation",
    authors="Baghaei Potraghloo, Azizi, Kundu, Pedram",
    year=2025,
    arxiv="2509.02510",
    place=58,
    deviations=(
        "as in transformers: what is bounded is the partial sum of -p ln p, where algorithm 1"
        " bounds the entropy of the head renormalised; and only the 100 most probable tokens"
        " take part",
    ),
    notes="At most 100 tokens stay, whatever h.",
)

MOST = 100  # transformers' bound on how many tokens take part
ROUNDING = 1e-12  # a sum that meets the bound may pass it by this share
# exp of it is 0 in float64, so 0 * WEIGHTLESS stands for p ln p at p = 0.
WEIGHTLESS = -1000.0


class Params(Parameters):
    top_h: float = parameter(
        0.4, gt=0.0, le=1.0, unit="of the entropy", help="Share of the entropy the head may hold."
    )


@dataclass(frozen=True)
class TopH(Sampler):
    """The longest head that holds at most a share `top_h` of the entropy.

    >>> row = Row.of_probabilities([0.4, 0.3, 0.2, 0.1])  # terms 0.367, 0.361, 0.322, 0.230
    >>> TopH(0.6).apply(row, None, Context((0,), 1)).token_ids()
    array([0, 1])
    """

    keeps_argmax: ClassVar[bool] = True
    truncates: ClassVar[bool] = True
    most_tokens: ClassVar[int | None] = MOST
    top_h: float = 0.4

    def apply(self, row: Row, state: State, context: Context) -> Row:
        shifted = row.scores - row.scores.dtype.type(row.maximum)
        if len(row) > MOST:
            shifted = shifted[shifted >= kth_highest(shifted, MOST)]
        descending = np.sort(shifted.astype(np.float64))[::-1][:MOST]
        np.maximum(descending, WEIGHTLESS, out=descending)
        law = np.exp(descending)
        total = float(law.sum())
        law /= total
        spent: Scores = np.cumsum(law * (np.log(total) - descending))
        bound = self.top_h * float(spent[-1]) * (1.0 + ROUNDING)
        count = max(1, int(np.searchsorted(spent, bound, side="right")))
        cut = kth_highest(row.scores, count)
        return row.keep_at(head(row.scores, cut, count))


def build(params: Params) -> TopH:
    return TopH(params.top_h)


METHOD = Method(CARD, Params, build)

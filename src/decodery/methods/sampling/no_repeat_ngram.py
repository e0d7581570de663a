"""No repeated n-grams: forbid every token that would complete an n-gram already in the text.

A token w is impossible when the last n-1 tokens followed by w occurred before, in the prompt or in
the output. With n = 1 no token occurs twice.

Paulus, Xiong, Socher: A Deep Reinforced Model for Abstractive Summarization (2017),
arXiv:1705.04304, section 2.5, for n = 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.exclusion import without

CARD = Card(
    name="no_repeat_ngram",
    kind="sampler",
    family="sampling",
    summary="Forbid tokens that would complete an n-gram already in the text.",
    guarantee="law",
    law="the row restricted to tokens that complete no n-gram of the path, and renormalised",
    title="A Deep Reinforced Model for Abstractive Summarization",
    authors="Paulus, Xiong, Socher",
    year=2017,
    arxiv="1705.04304",
    place=30,
    reductions=(Reduction({"no_repeat_ngram": 0}, "identity"),),
    notes="The prompt counts, as in transformers.",
)


class Params(Parameters):
    no_repeat_ngram: int = parameter(
        3, ge=0, unit="tokens", help="Length n of the n-grams that may occur only once; 0 is off."
    )


@dataclass(frozen=True)
class NoRepeatNgram(Sampler):
    """No n-gram of the path occurs twice.

    >>> row = Row.dense([0.0, 0.0, 0.0])
    >>> NoRepeatNgram(2).apply(row, None, Context((1, 2, 1), 1)).scores
    array([  0.,   0., -inf])
    """

    length: int = 3

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.length == 0 or len(context.tokens) < self.length:
            return row
        tokens = np.asarray(context.tokens, dtype=np.intp)
        ngrams = np.lib.stride_tricks.sliding_window_view(tokens, self.length)
        beginning = tokens[tokens.size - self.length + 1 :]
        begun = (ngrams[:, :-1] == beginning).all(axis=1)
        return without(row, np.unique(ngrams[begun, -1]))


def build(params: Params) -> NoRepeatNgram:
    return NoRepeatNgram(params.no_repeat_ngram)


METHOD = Method(CARD, Params, build)

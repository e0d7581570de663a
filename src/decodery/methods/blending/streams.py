"""Several prompts of one source, continued in step by one text whose row joins all of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from decodery.core.errors import ParameterError
from decodery.core.row import Row
from decodery.core.sampler import Context, State
from decodery.core.source import Blend, Source

Aggregate = Literal["logits", "mixture", "vote"]
Weights = Sequence[float]


class Streams(Blend):
    """`contexts` of one source, each with a weight >= 0; those of weight 0 are left out.

    The streams are put into one order whatever order they are given in, so that rounding cannot
    tell the orders apart.
    """

    def __init__(
        self,
        source: Source,
        contexts: Sequence[Sequence[int]],
        weights: Weights | None = None,
        aggregate: Aggregate = "logits",
    ) -> None:
        given = [1.0] * len(contexts) if weights is None else list(weights)
        streams = sorted(
            (tuple(context), weight)
            for context, weight in zip(contexts, given, strict=True)
            if weight > 0
        )
        if not streams:
            raise ParameterError("no stream has a weight above 0")
        super().__init__(f"streams of {source.name}", [source] * len(streams))
        whole = sum(weight for _, weight in streams)
        self.contexts = tuple(context for context, _ in streams)
        self.weights = tuple(weight / whole for _, weight in streams)
        self.aggregate: Aggregate = aggregate

    def prompts(self, prompt: Sequence[int]) -> Sequence[Sequence[int]]:
        return self.contexts

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        if len(rows) == 1 and self.aggregate != "vote":
            return rows[0]
        if self.aggregate == "vote":
            return votes(rows, self.weights)
        join = product if self.aggregate == "logits" else mixture
        return join(rows, self.weights)


def product(rows: Sequence[Row], weights: Weights) -> Row:
    """P(v) ~ prod_j P_j(v)^w_j: scores are summed as they are, their constants cancel.

    >>> rows = [Row.of_probabilities([0.8, 0.1, 0.1]), Row.of_probabilities([0.0, 0.5, 0.5])]
    >>> product(rows, [0.5, 0.5]).probabilities()  # one stream's zero is a veto
    array([0. , 0.5, 0.5])
    """
    scores = np.zeros(rows[0].vocab_size)
    for row, weight in zip(rows, weights, strict=True):
        scores += weight * row.dense_scores().astype(np.float64)
    return Row.dense(scores)


def mixture(rows: Sequence[Row], weights: Weights) -> Row:
    """P(v) = sum_j w_j P_j(v)."""
    laws: npt.NDArray[np.float64] = np.zeros(rows[0].vocab_size)
    for row, weight in zip(rows, weights, strict=True):
        laws += weight * row.dense_probabilities()
    return Row.of_probabilities(laws)


def votes(rows: Sequence[Row], weights: Weights) -> Row:
    """P(v) = the weight of the streams whose most probable token is v.

    >>> rows = [Row.of_probabilities(law) for law in ([0.5, 0.3, 0.2], [0.4, 0.6, 0], [0, 1, 0])]
    >>> votes(rows, [1, 1, 1]).dense_probabilities().round(3)
    array([0.333, 0.667, 0.   ])
    """
    shares = np.zeros(rows[0].vocab_size)
    for row, weight in zip(rows, weights, strict=True):
        shares[row.argmax()] += weight
    return Row.of_probabilities(shares)

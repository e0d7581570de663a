"""Multi-personality generation: one reference, n models of one attribute each, blended by weights.

A model pi_i that was tuned from the reference for one attribute gives a density ratio for free,
rho_i = pi_i / pi_ref (with DPO, beta ln rho_i is its implicit reward). The target is

    sum (the paper's):  pi* = pi_ref * sum_i w_i rho_i  =  sum_i w_i pi_i
    product:            pi* ~ pi_ref * prod_i rho_i^(s w_i)           w >= 0, sum of w = 1

Every pi_i is normalised, so the sum is a mixture and the reference cancels. What it is a mixture of
is the scope: of next tokens, of chunks of L tokens counted from the prompt, or of whole answers.
Inside a chunk the weights are those of the models that wrote it so far, w_i prod rho_i: they are
the blend's state. Over a whole answer one model soon takes over, and the answer has one attribute.
The product is taken token by token and asks for all attributes at once; s = 1 is the weighted
geometric mean, s = n gives each of n equal attributes the strength it has alone.

Chen, Li, Yuan, Xu, Shen: Multi-Personality Generation of LLMs at Decoding-time (2026),
arXiv:2511.01891. The product: Shi et al., Decoding-Time Language Model Alignment with Multiple
Objectives (2024), arXiv:2406.18853.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from decodery.core.card import Card, Method, Reduction
from decodery.core.distribution import log_sum_exp
from decodery.core.errors import ParameterError, RowError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Row, Scores
from decodery.core.sampler import Context, State
from decodery.core.source import Blend, Recipe, Source

Scope = Literal["token", "chunk", "sequence"]
Aggregate = Literal["sum", "product"]

CHUNK = 8

CARD = Card(
    name="mpg",
    kind="blend",
    family="blending",
    summary="Blend models of one attribute each, tuned from one reference, by weights.",
    guarantee="law",
    law="sum: sum_i w_i pi_i of tokens, of chunks, or of answers; product: per token, ~ pi_ref"
    " prod_i (pi_i / pi_ref)^(strength w_i)",
    title="Multi-Personality Generation of LLMs at Decoding-time",
    authors="Chen, Li, Yuan, Xu, Shen",
    year=2026,
    arxiv="2511.01891",
    needs=("attribute models",),
    calls_per_token="1 of the reference and 1 of each attribute model",
    reductions=(Reduction({"aggregate": "product", "strength": 0.0}, "identity"),),
    examples=(
        {"attributes": ("pirate", "formal"), "attribute_weights": (2.0, 1.0)},
        {"attributes": ("formal", "rhyming")},
    ),
    deviations=(
        "A chunk begins at a multiple of its length after the prompt, not where the last accepted"
        " prefix ended, so that the target does not depend on what a decoder rejected.",
        "The product and its strength are for comparison; the paper's target is the sum.",
    ),
    notes="Attribute models share the reference's tokenizer; low-rank adapters on one base are the"
    " cheap case (`load(adapter=...)`, `decodery train adapter`). Decode it chunk by chunk with"
    " mpg_scr (fast, lossy), mpg_chunk, mpg_token or mpg_route (exact).",
)


class Params(Parameters):
    attributes: tuple[str, ...] = parameter(
        help="One model for each attribute: folders of adapters or models, .gguf files or hub ids.",
        max_length=64,
    )
    attribute_weights: tuple[float, ...] = parameter(
        (), help="Relative weights of the attributes, divided by their sum; default: all equal."
    )
    aggregate: Aggregate = parameter(
        "sum", help="How density ratios join: their weighted sum, or their weighted product."
    )
    scope: Scope | None = parameter(
        None, help="What the sum is a mixture of; default chunk. The product is per token."
    )
    chunk: int | None = parameter(
        None, ge=1, le=1024, unit="tokens", help=f"Length of a chunk; default {CHUNK}."
    )
    strength: float = parameter(
        1.0, ge=0.0, le=64.0, help="Factor on the exponents of the product; n for n full ones."
    )


class Posterior(NamedTuple):
    """Who wrote the chunk so far: ln of the weights [n], and how many tokens it has."""

    log_weights: npt.NDArray[np.float64]
    drawn: int


class Mpg(Blend):
    """A reference and models of one attribute each as one source; see the module's first lines.

    `weights` are relative. `scope` and `chunk` are for the sum, `strength` for the product; what
    would have no effect is refused. The first member is the reference, the others the attributes.
    """

    def __init__(
        self,
        reference: Source,
        attributes: Sequence[Source],
        weights: Sequence[float] = (),
        *,
        aggregate: Aggregate = "sum",
        scope: Scope | None = None,
        chunk: int | None = None,
        strength: float = 1.0,
    ) -> None:
        self.weights = _shares(len(attributes), weights)
        _check(aggregate, scope, chunk, strength)
        super().__init__(
            f"mpg({', '.join(source.name for source in attributes)})", [reference, *attributes]
        )
        self.aggregate = aggregate
        self.scope: Scope = scope or ("chunk" if aggregate == "sum" else "token")
        self.chunk = chunk or CHUNK
        self.strength = strength
        with np.errstate(divide="ignore"):
            self._start = np.log(self.weights)
        self._start.flags.writeable = False

    @property
    def observes_rows(self) -> bool:  # type: ignore[override]
        return self.scope != "token"

    def start(self, context: Context) -> Posterior:
        return Posterior(self._start, 0)

    def combine(self, rows: Sequence[Row], state: State, context: Context) -> Row:
        if self.aggregate == "sum":
            return _row(mixture(rows[1:], state.log_weights), rows[0])
        return _row(product(rows[0], rows[1:], self.strength * self.weights), rows[0])

    def advance(
        self, state: State, token: int, rows: Sequence[Row] | None, context: Context
    ) -> Posterior:
        if rows is None:
            return state
        if self.scope == "chunk" and state.drawn + 1 == self.chunk:
            return Posterior(self._start, 0)
        found = state.log_weights + [row.log_probability(token) for row in rows[1:]]
        total = log_sum_exp(found)
        if total == -np.inf:  # no model writes this token: a path that is only looked at
            return Posterior(state.log_weights, state.drawn + 1)
        found -= total
        found.flags.writeable = False
        return Posterior(found, state.drawn + 1)


def mixture(rows: Sequence[Row], log_weights: npt.NDArray[np.float64]) -> Scores:
    """ln sum_i w_i p_i over the whole vocabulary, in the log domain; -inf where all p_i are 0."""
    terms = [
        row.dense_scores() + row.scores.dtype.type(weight - row.log_normaliser)
        for row, weight in zip(rows, log_weights.tolist(), strict=True)
        if weight > -np.inf
    ]
    if len(terms) == 1:
        return terms[0]
    top = terms[0]
    for term in terms[1:]:
        top = np.maximum(top, term)
    top = np.where(np.isfinite(top), top, top.dtype.type(0))
    total = np.exp(terms[0] - top)
    for term in terms[1:]:
        total = total + np.exp(term - top)
    with np.errstate(divide="ignore"):
        return np.log(total) + top


def product(reference: Row, rows: Sequence[Row], exponents: npt.NDArray[np.float64]) -> Scores:
    """ln of p_ref * prod_i (p_i / p_ref)^a_i over the whole vocabulary, up to a constant.

    0^0 is 1. Where the reference's exponent is negative, what it excludes stays out.
    """
    rest = 1.0 - float(exponents.sum())
    if abs(rest) < 1e-12:  # the reference cancels
        rest = 0.0
    total = np.zeros(reference.vocab_size, dtype=reference.scores.dtype)
    for row, exponent in zip([reference, *rows], [rest, *exponents.tolist()], strict=True):
        if exponent != 0.0:
            scores = row.dense_scores()
            possible = (scores > -np.inf) & (total > -np.inf)
            with np.errstate(invalid="ignore"):
                total = total + scores.dtype.type(exponent) * scores
            # A negative exponent must not make an impossible token certain.
            total[~possible] = -np.inf
    return total


def _row(scores: Scores, like: Row) -> Row:
    if not scores.max() > -np.inf and not np.isnan(scores).any():
        raise RowError("mpg: there is no token that all attributes can write; use the sum")
    return Row(scores, like.vocab_size)


def _shares(count: int, weights: Sequence[float]) -> npt.NDArray[np.float64]:
    """Weights [count] that sum to one."""
    if count == 0:
        raise ParameterError("mpg: attributes is empty; name at least one model")
    if len(weights) not in (0, count):
        raise ParameterError(
            f"mpg: attribute_weights has {len(weights)} numbers for {count} attributes; give one"
            " for each"
        )
    given = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(count)
    if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
        raise ParameterError(
            f"mpg: attribute_weights is {tuple(weights)}; allowed are finite numbers of at least 0"
            " that are not all 0"
        )
    shares = given / given.sum()
    shares.flags.writeable = False
    return shares


def _check(aggregate: Aggregate, scope: Scope | None, chunk: int | None, strength: float) -> None:
    """Refuse what would have no effect, and a product that no token-by-token blend can be."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ParameterError(f"mpg: strength is {strength}; allowed is a number of at least 0")
    if chunk is not None and chunk < 1:
        raise ParameterError(f"mpg: chunk is {chunk}; allowed is a whole number of at least 1")
    if aggregate == "product":
        if scope not in (None, "token"):
            raise ParameterError(
                f"mpg: scope {scope!r} is for the sum: the product of {scope}s has no closed form"
                " token by token; leave it out"
            )
        if chunk is not None:
            raise ParameterError("mpg: chunk is for the sum; the product is per token")
    elif strength != 1.0:
        raise ParameterError(
            f"mpg: strength is {strength} and aggregate is 'sum', which has none; use product"
        )
    elif chunk is not None and scope not in (None, "chunk"):
        raise ParameterError(f"mpg: chunk is for scope 'chunk', and scope is {scope!r}")


@dataclass(frozen=True)
class MpgRecipe(Recipe):
    """The blend over a loaded reference; its attributes are loaded by name."""

    params: Params

    def over(self, model: Source, load: Callable[[str], Source]) -> Mpg:
        params = self.params
        return Mpg(
            model,
            [load(name) for name in params.attributes],
            params.attribute_weights,
            aggregate=params.aggregate,
            scope=params.scope,
            chunk=params.chunk,
            strength=params.strength,
        )


def build(params: Params) -> MpgRecipe:
    _shares(len(params.attributes), params.attribute_weights)
    _check(params.aggregate, params.scope, params.chunk, params.strength)
    return MpgRecipe(params)


METHOD = Method(CARD, Params, build)

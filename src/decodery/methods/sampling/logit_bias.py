"""Logit bias: add a chosen number to the scores of chosen tokens.

z_v + b_v. A bias favours or disfavours; a token that is already impossible stays so. To forbid
with certainty there is `banned_tokens`.

OpenAI API reference, `logit_bias`, with its range of -100 to 100; the single-token case of
transformers' `sequence_bias`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from pydantic import field_validator

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Ids, Row
from decodery.core.sampler import Context, Sampler, State
from decodery.methods.sampling.exclusion import named_ids, require_known

# Beyond this a bias decides alone, and float32 scores of that size lose their differences.
LIMIT = 100.0

CARD = Card(
    name="logit_bias",
    kind="sampler",
    family="sampling",
    summary="Add a chosen bias to the scores of chosen tokens.",
    guarantee="law",
    law="softmax of z_v + b_v",
    title="API reference: logit_bias",
    authors="OpenAI",
    year=2020,
    source="OpenAI API, transformers",
    place=20,
    reductions=(Reduction({"logit_bias": {}}, "identity"),),
    notes="An id that the vocabulary does not have is an error.",
)


class Params(Parameters):
    logit_bias: str | dict[int, float] = parameter(
        {},
        unit="nats",
        help="Biases in -100..100 as a mapping from token id, or a text such as '17=2.5,42=-100'.",
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> dict[int, float]:
        return biases(value)


def biases(value: Any) -> dict[int, float]:
    """Biases by token id from a mapping (ids may be texts, as in JSON), a text or several texts.

    >>> biases("17=2.5, 42=-100")
    {17: 2.5, 42: -100.0}
    """
    if isinstance(value, str):
        value = value.split(",") if value.strip() else ()
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
    elif isinstance(value, Iterable):
        pairs = [_pair(text) for text in cast("Iterable[Any]", value)]
    else:
        raise _refusal(value)
    parsed: dict[int, float] = {}
    for token, bias in pairs:
        key, number = _entry(token, bias)
        if key in parsed:
            raise ParameterError(f"logit_bias names token {key} twice")
        parsed[key] = number
    return parsed


def _pair(text: Any) -> tuple[str, str]:
    if not isinstance(text, str) or text.count("=") != 1:
        raise _refusal(text)
    token, bias = text.split("=")
    return token, bias


def _entry(token: Any, bias: Any) -> tuple[int, float]:
    shown = f"{token}={bias}"
    if isinstance(token, bool | float) or isinstance(bias, bool):
        raise _refusal(shown)
    try:
        key, number = int(token), float(bias)
    except (TypeError, ValueError):
        raise _refusal(shown) from None
    if key < 0 or not -LIMIT <= number <= LIMIT:
        raise _refusal(shown)
    return key, number


def _refusal(given: Any) -> ParameterError:
    return ParameterError(
        f"logit_bias: {given!r} is no ID=BIAS with a token id from 0 and -100 <= BIAS <= 100; to "
        "forbid a token use banned_tokens"
    )


@dataclass(frozen=True)
class LogitBias(Sampler):
    """z_v + b_v, for `pairs` (token, bias) with ascending, distinct tokens.

    >>> row = Row.dense([0.0, 0.0, 0.0])
    >>> LogitBias(((1, 2.5),)).apply(row, None, Context((0,), 1)).scores
    array([0. , 2.5, 0. ])
    """

    pairs: tuple[tuple[int, float], ...] = ()

    @cached_property
    def tokens(self) -> Ids:
        """The biased tokens [m], ascending."""
        return np.array([token for token, _ in self.pairs], dtype=np.intp)

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if not self.pairs:
            return row
        require_known(self.tokens, row, "logit_bias")
        return row.adjusted(self.tokens, [bias for _, bias in self.pairs])


def build(params: Params) -> LogitBias:
    by_token = biases(params.logit_bias)
    return LogitBias(tuple((token, by_token[token]) for token in named_ids(by_token, "logit_bias")))


METHOD = Method(CARD, Params, build)

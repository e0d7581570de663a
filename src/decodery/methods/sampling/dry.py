"""DRY, don't repeat yourself: lower a token the more, the longer the repetition it would continue.

Let h be the path. A token w that followed an earlier copy of the last L tokens would extend it to
L + 1. With L the longest such copy, at least `allowed`, z_w falls by m * b^(L - allowed): short
echoes are free, a loop is soon impossible. Copies may overlap the end they copy, as in "aaaa". They
do not reach back over a breaker, and a breaker itself is never lowered, so what repeats by design
(line ends, quotes, names in a dialogue) is left alone. Breakers are tokens that contain one of
some texts, found when a policy binds the sampler to its source.

By p-e-w for text-generation-webui (pull request 5677); the same rule in koboldcpp and llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from decodery.core.card import Card, Method, Reduction
from decodery.core.errors import ParameterError
from decodery.core.params import Parameters, parameter
from decodery.core.row import Ids, Row
from decodery.core.sampler import Context, Sampler, State
from decodery.core.source import Source
from decodery.methods.sampling.exclusion import named_ids, require_known
from decodery.methods.sampling.history import history

CARD = Card(
    name="dry",
    kind="sampler",
    family="sampling",
    summary="Lower tokens that would continue a repetition, exponentially in its length.",
    guarantee="law",
    law="softmax of z_w - m b^(L - allowed), L >= allowed the longest copy of the path's end that w"
    " followed",
    title="DRY: a modern repetition penalty that reliably prevents looping",
    authors="p-e-w",
    year=2024,
    source="text-generation-webui pull request 5677, koboldcpp, llama.cpp",
    place=16,
    reductions=(Reduction({"dry_multiplier": 0.0}, "identity"),),
    deviations=(
        "a breaker is one token that contains a text; a text that only several tokens make up is"
        " refused, where llama.cpp looks for the sequence",
    ),
    notes=(
        "Prompt and output count. llama.cpp looks at the last 64 tokens unless told otherwise,"
        " here all count. No penalty exceeds 1e30, far beyond what leaves a token any weight. Where"
        " tokens are numbers and no text, breakers are named by id."
    ),
)

BREAKERS = ("\n", ":", '"', "*")  # the engines' defaults
HEAVIEST = 1e30  # nats; scores stay finite in float32, and a token this low has weight 0


class Params(Parameters):
    dry_multiplier: float = parameter(
        0.8, ge=0.0, le=100.0, unit="nats", help="Penalty m of the shortest copy; 0 is off."
    )
    dry_base: float = parameter(
        1.75, ge=1.0, le=100.0, help="Factor b of the penalty for each token more."
    )
    dry_allowed_length: int = parameter(
        2, ge=1, unit="tokens", help="The shortest copy whose continuation is lowered."
    )
    dry_window: int = parameter(
        0, ge=0, unit="tokens", help="Only the last so many tokens are searched; 0 means all."
    )
    dry_breakers: tuple[str, ...] = parameter(
        BREAKERS, help="Tokens that contain one of these texts end a copy and are never lowered."
    )
    dry_breaker_ids: tuple[int, ...] = parameter((), help="More such tokens, by their ids.")


@dataclass(frozen=True)
class Dry(Sampler):
    """z_w - m b^(L - allowed) for every token w that would extend a copy of L tokens.

    >>> row = Row.dense([0.0, 0.0, 0.0, 0.0])
    >>> Dry(1.0, 2.0, 2).apply(row, None, Context((1, 2, 3, 0, 1, 2), 1)).scores
    array([ 0.,  0.,  0., -1.])
    """

    multiplier: float = 0.8
    base: float = 1.75
    allowed: int = 2
    window: int = 0
    texts: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    found: frozenset[int] = frozenset()  # the tokens that contain one of `texts`

    def bind(self, source: Source) -> Sampler:
        if source.language is None or not self.texts:
            return self
        containing = breakers(tuple(source.language.pieces()), self.texts)
        for text, tokens in zip(self.texts, containing, strict=True):
            if not tokens and text not in BREAKERS:
                raise ParameterError(
                    f"dry_breakers names {text!r}, which no single token of {source.name} contains;"
                    " give a shorter text, or the ids of tokens as dry_breaker_ids"
                )
        return replace(self, found=frozenset[int]().union(*containing))

    def apply(self, row: Row, state: State, context: Context) -> Row:
        if self.multiplier == 0:
            return row
        require_known(np.array(self.ids, dtype=np.intp), row, "dry_breaker_ids")
        path = history(context, prompt=True, window=self.window)
        ends = self.found.union(self.ids)
        tokens, lengths = continuations(path, ends, self.allowed, self._longest())
        if tokens.size == 0:
            return row
        penalties = self.multiplier * self.base ** (lengths - float(self.allowed))
        return row.adjusted(tokens, -np.minimum(penalties, HEAVIEST))

    def _longest(self) -> int:
        """The length from which a copy is penalised no more than at this one."""
        if self.base == 1:
            return self.allowed
        steps = (math.log(HEAVIEST) - math.log(self.multiplier)) / math.log(self.base)
        return self.allowed + max(0, math.ceil(steps))


@lru_cache(maxsize=8)
def breakers(
    pieces: tuple[bytes | None, ...], texts: tuple[str, ...]
) -> tuple[frozenset[int], ...]:
    """For each text, the tokens that contain it."""
    return tuple(
        frozenset(
            token
            for token, piece in enumerate(pieces)
            if piece is not None and text.encode() in piece
        )
        for text in texts
    )


def continuations(
    path: Sequence[int], ends: Collection[int], shortest: int, longest: int
) -> tuple[Ids, Ids]:
    """Tokens [m] that would continue a copy of the path's end, and how long it is, up to `longest`.

    `ends` are the breakers.

    >>> continuations([1, 2, 3, 0, 1, 2], (), 1, 9)
    (array([3]), array([2]))
    """
    tokens = np.asarray(path, dtype=np.intp)
    size = tokens.size
    reach = 0
    while reach < min(size, longest) and path[size - 1 - reach] not in ends:
        reach += 1
    # The places after a copy: path[place - length : place] equals the path's last tokens.
    places = np.arange(1, size)
    found: dict[int, int] = {}
    for length in range(1, reach + 1):
        places = places[places >= length]
        places = places[tokens[places - length] == tokens[size - length]]
        if places.size == 0:
            break
        if length >= shortest:
            found.update(dict.fromkeys(tokens[places].tolist(), length))
    lowered = sorted(token for token in found if token not in ends)
    return np.array(lowered, dtype=np.intp), np.array([found[w] for w in lowered], dtype=np.intp)


def build(params: Params) -> Dry:
    return Dry(
        params.dry_multiplier,
        params.dry_base,
        params.dry_allowed_length,
        params.dry_window,
        params.dry_breakers,
        named_ids(params.dry_breaker_ids, "dry_breaker_ids"),
    )


METHOD = Method(CARD, Params, build)

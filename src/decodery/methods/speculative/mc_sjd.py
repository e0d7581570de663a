"""Coupled speculative Jacobi decoding: guesses change only as far as their laws do.

As `sjd`, but a guess behind the first refusal is not redrawn: its old and new law are coupled, so
that it has the new law and stays the same token as often as possible (`mc`), or noise that belongs
to the position draws it at every step (`gs`). Later guesses then see the same text, and are
accepted.

So, Kook, Jang, Park: MC-SJD: Maximal Coupling Speculative Jacobi Decoding for Autoregressive Visual
Generation Acceleration (2025), arXiv:2510.24211.
"""

from __future__ import annotations

from typing import Literal

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.methods.speculative.guesses import DISTANCE_HELP, HELP, GuessName, made
from decodery.methods.speculative.jacobi import Jacobi

CARD = Card(
    name="mc_sjd",
    kind="decoder",
    family="speculative",
    summary="Speculative Jacobi decoding whose guesses are coupled from step to step.",
    guarantee="exact",
    law="the policy's own law, token by token",
    title="MC-SJD: Maximal Coupling Speculative Jacobi Decoding for Autoregressive Visual"
    " Generation Acceleration",
    authors="So, Kook, Jang, Park",
    year=2025,
    arxiv="2510.24211",
    calls_per_token="1 / tokens accepted a step (window + 1 tokens wide)",
    reductions=(
        Reduction({"coupling_strength": 0.0}, "sjd", {"jacobi_window": 32}),
        Reduction({"jacobi_window": 0}, "sample"),
    ),
    deviations=(
        "a guess that stays has the new law, as in one of the authors' three codes; the other two"
        " keep the old law, which is not exact",
    ),
)


class Params(Parameters):
    coupling: Literal["mc", "gs"] = parameter(
        "mc", help="mc: a maximal coupling of old and new law; gs: Gumbel noise of the position."
    )
    coupling_strength: float = parameter(
        1.0, ge=0.0, le=1.0, unit="probability", help="How often a guess is coupled, not redrawn."
    )
    jacobi_window: int = parameter(
        32, ge=0, le=256, unit="tokens", help="Guesses a step, at most; 0 is plain sampling."
    )
    jacobi_guess: GuessName = parameter("random", help=HELP)
    jacobi_distance: int | None = parameter(None, ge=1, le=65536, unit="tokens", help=DISTANCE_HELP)
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


def build(params: Params) -> Jacobi:
    guess = made(params.jacobi_guess, params.jacobi_distance, CARD.name)
    strength = params.coupling_strength
    return Jacobi(params.jacobi_window, params.coupling, guess, strength, params.n)


METHOD = Method(CARD, Params, build)

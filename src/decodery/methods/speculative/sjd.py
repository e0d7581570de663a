"""Speculative Jacobi decoding: a window of guesses, verified against the laws they were drawn from.

No draft model: the guesses after the text were drawn from the model's own laws of the step before
(`jacobi.py`). The text has exactly the policy's law. Made for image tokens, whose laws hardly
depend on the last few tokens; on text it gains little.

Teng, Shi, Liu, Ning, Dai, Wang, Li, Liu: Accelerating Auto-regressive Text-to-Image Generation with
Training-free Speculative Jacobi Decoding (2025), arXiv:2410.01699.
"""

from __future__ import annotations

from decodery.core.card import Card, Method, Reduction
from decodery.core.params import Parameters, parameter
from decodery.methods.speculative.guesses import DISTANCE_HELP, HELP, GuessName, made
from decodery.methods.speculative.jacobi import Jacobi

CARD = Card(
    name="sjd",
    kind="decoder",
    family="speculative",
    summary="Verify a window of the model's own guesses; redraw those behind the first refusal.",
    guarantee="exact",
    law="the policy's own law, token by token",
    title="Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative"
    " Jacobi Decoding",
    authors="Teng, Shi, Liu, Ning, Dai, Wang, Li, Liu",
    year=2025,
    arxiv="2410.01699",
    calls_per_token="1 / tokens accepted a step (window + 1 tokens wide)",
    reductions=(Reduction({"jacobi_window": 0}, "sample"),),
    deviations=(
        "first guesses may have the uniform law (jacobi_guess=uniform), or be looked up in the"
        " text (jacobi_guess=lookup): also exact",
    ),
)


class Params(Parameters):
    jacobi_window: int = parameter(
        16, ge=0, le=256, unit="tokens", help="Guesses a step, at most; 0 is plain sampling."
    )
    jacobi_guess: GuessName = parameter("random", help=HELP)
    jacobi_distance: int | None = parameter(None, ge=1, le=65536, unit="tokens", help=DISTANCE_HELP)
    n: int = parameter(1, ge=1, le=1024, unit="sequences", help="How many sequences to draw.")


def build(params: Params) -> Jacobi:
    guess = made(params.jacobi_guess, params.jacobi_distance, CARD.name)
    return Jacobi(params.jacobi_window, "sjd", guess, n=params.n)


METHOD = Method(CARD, Params, build)

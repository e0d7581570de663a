"""Multi-personality generation: two voices at once, and what chunk rejection costs and changes.

Three models speak in a neutral (the reference), a pirate's and a formal voice (`mpg_texts.py`).
Quick: character tables made by counting. Full: three adapters of rank 8 that this run trains on the
embedded SmolLM2-135M-Instruct in some minutes. Every setting answers the same items with the same
seeds at temperature 1. A score is the share of answers with a marker of a voice, a word that only
this voice uses; `both` is the share with markers of both. `calls` are forwards a token, of all
models together, that one answer waits for. The target of all decoders is the same: chunks of 8
tokens, weights 1/2; L is the length of drafts. `sample`, mpg_route and mpg_token are exact.

Chen, Li, Yuan, Xu, Shen (2026), arXiv:2511.01891: 4 to 7 attribute models of 7B and 8B parameters,
judged by other models; no decoding code is published. The margins were fixed before the runs: 0.1
for "within noise" (b), a difference above 0 for all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.mpg_figure import draw
from decodery.reproductions.mpg_measure import measure
from decodery.reproductions.mpg_settings import (
    ALONE,
    ANSWERS,
    BLENDED,
    CHUNK,
    PRODUCT_2,
    PROMPTED,
    QUANTILE,
    ROUTE,
    TOKEN,
    Setting,
    lengths,
    scr,
)
from decodery.reproductions.mpg_texts import ATTRIBUTES

_LENGTHS = (1, 4, 8)  # measured in both modes


def _least(means: Means, setting: Setting) -> Array:
    """The smaller of the two voices' scores."""
    return np.minimum(*(means[voice, setting] for voice in ATTRIBUTES))


def _above_alone(means: Means) -> Array:
    return _least(means, BLENDED) - np.maximum(*(_least(means, setting) for setting in ALONE))


def _both_above_alone(means: Means) -> Array:
    return means["both", BLENDED] - np.maximum(*(means["both", setting] for setting in ALONE))


def _above_prompted(means: Means) -> Array:
    return _least(means, BLENDED) - _least(means, PROMPTED)


def _difference(means: Means, quantity: str, one: Setting, other: Setting) -> Array:
    return means[quantity, one] - means[quantity, other]


def _curve(means: Means) -> list[tuple[int, Array]]:
    """Calls a token of every draft length that was measured."""
    known = [length for length in lengths("quick") if ("calls", scr(length)) in means]
    return [(length, means["calls", scr(length)]) for length in known]


def _best(means: Means) -> Array:
    return np.minimum.reduce([calls for _, calls in _curve(means)])


def _gain(means: Means) -> Array:
    """Calls a token at L = 1 less those at the best length."""
    return _curve(means)[0][1] - _best(means)


def _collapse(means: Means) -> Array:
    """Calls a token at the largest length less those at the best one."""
    return _curve(means)[-1][1] - _best(means)


def _saving(means: Means, over: Setting) -> Array:
    return means["calls", over] - _best(means)


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "A blend carries all attributes at once: its smallest attribute score is above that of any"
        " single model.",
        "min(pirate, formal) and the share of answers in both voices: the blend above each model"
        " alone",
        (
            Check("least voice, blend - best alone", _above_alone, above=0),
            Check("both voices, blend - best alone", _both_above_alone, above=0),
        ),
    )
    yield Claim(
        "a2",
        "It is above asking one model for both in the prompt.",
        "min(pirate, formal): the blend above the embedded model with a system prompt",
        (Check("least voice, blend - prompted", _above_prompted, above=0),),
        modes=("full",),
    )
    yield Claim(
        "b",
        "Chunk rejection keeps the quality: its attribute scores are those of the exact target.",
        "mpg_scr at L = 8, q = 1 against mpg_route: each voice's score within 0.1",
        tuple(
            Check(
                f"{voice}, scr - route",
                partial(_difference, quantity=voice, one=scr(CHUNK), other=ROUTE),
                above=-0.1,
                below=0.1,
            )
            for voice in ATTRIBUTES
        ),
    )
    yield Claim(
        "c1",
        "Acceptance of whole chunks falls with their length, as the bound rises.",
        f"accepted falls and ln M rises from L = {_LENGTHS[0]} to {_LENGTHS[1]} to {_LENGTHS[2]}",
        tuple(
            Check(
                f"{name}: L={one} - L={other}",
                partial(_difference, quantity=quantity, one=scr(one), other=scr(other)),
                above=0,
            )
            for name, quantity, pairs in (
                ("accepted", "accepted", ((1, 4), (4, 8))),
                ("ln M", "ln M", ((4, 1), (8, 4))),
            )
            for one, other in pairs
        ),
    )
    yield Claim(
        "c2",
        "Model calls a token fall with the length of chunks until acceptance collapses.",
        "calls at L = 1 above those at the best length; calls at the largest L above them, too",
        (
            Check("calls at L=1 - at the best L", _gain, above=0),
            Check("calls at the largest L - at the best L", _collapse, above=0),
        ),
    )
    yield Claim(
        "d",
        "Chunk rejection at its best length saves calls.",
        "calls a token at the best L below blending token by token, and below exact token tests",
        (
            Check("calls, token by token - best L", partial(_saving, over=BLENDED), above=0),
            Check("calls, mpg_token - best L", partial(_saving, over=TOKEN), above=0),
        ),
    )
    yield Claim(
        "e",
        "A smaller quantile accepts more.",
        f"accepted at L = 8: q = {QUANTILE:g} above q = 1",
        (
            Check(
                "accepted, q=0.8 - q=1",
                partial(
                    _difference, quantity="accepted", one=scr(CHUNK, QUANTILE), other=scr(CHUNK)
                ),
                above=0,
            ),
        ),
    )
    yield Claim(
        "f",
        "A mixture of whole answers has one attribute an answer, one of chunks several (our own).",
        "answers in both voices: chunks above whole answers",
        (
            Check(
                "both voices, chunks - answers",
                partial(_difference, quantity="both", one=ROUTE, other=ANSWERS),
                above=0,
            ),
        ),
    )
    yield Claim(
        "g",
        "The product at full strength asks for all attributes at once (our own).",
        "answers in both voices: the product of strength 2 above the sum",
        (
            Check(
                "both voices, product 2 - sum",
                partial(_difference, quantity="both", one=PRODUCT_2, other=BLENDED),
                above=0,
            ),
        ),
    )


REPRODUCTION = Reproduction(
    method="mpg",
    title="Two voices at once",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=(*ATTRIBUTES, "both", "log-prob", "calls", "accepted", "kept", "ln M"),
    size=(15.0, 4.6),
)

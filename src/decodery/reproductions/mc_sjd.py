"""Coupled speculative Jacobi decoding against plain: tokens a step over the window.

The toy and the text of `sjd`'s reproduction, with guesses redrawn (`sjd`), maximally coupled (`mc`)
or drawn with noise of their position (`gs`). Quality is not measured: the law is the policy's own,
which the tests prove for all three.

So et al. (2025), arXiv:2510.24211. Bounds were fixed before the full run, after a pilot on two
grids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from decodery.methods.speculative.jacobi import Coupling
from decodery.reproductions.frame import (
    Array,
    Check,
    Claim,
    Means,
    Measurements,
    Mode,
    Progress,
    Reproduction,
)
from decodery.reproductions.sjd_figure import draw_couplings
from decodery.reproductions.sjd_measure import PROMPTS, Setting, Size, Where, measure

WINDOWS = (8, 16, 32, 64)
COUPLED: tuple[Coupling, ...] = ("mc", "gs")
ALL: tuple[Coupling, ...] = ("sjd", *COUPLED)
STRENGTHS = (0.25, 0.5, 0.75)
TEXTS: tuple[Coupling, ...] = ("sjd", "mc")


def size(mode: Mode) -> Size:
    """What a mode measures."""
    grids: tuple[Where, ...] = ("peaked", "flat")
    if mode == "quick":
        grids = grids[:1]
    windows = [
        Setting(where, coupling, window)
        for where in grids
        for coupling in ALL
        for window in (WINDOWS if mode == "full" else (8, 16, 32))
    ]
    strengths = [Setting("peaked", "mc", 32, strength=strength) for strength in STRENGTHS]
    texts = [Setting("text", coupling, 8) for coupling in TEXTS]
    if mode == "quick":
        return Size((*windows, *texts), 2, 16, PROMPTS[2:])
    return Size((*windows, *strengths, *texts), 6)


def _measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    return measure(size(mode), seed, progress)


def _value(means: Means, setting: Setting, quantity: str = "tokens per step") -> Array:
    return means[quantity, setting]


def _difference(
    means: Means, setting: Setting, other: Setting, quantity: str = "tokens per step"
) -> Array:
    return means[quantity, setting] - means[quantity, other]


def _ratio(means: Means, setting: Setting, other: Setting) -> Array:
    return _value(means, setting) / _value(means, other)


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "Coupled guesses keep gaining with the window.",
        "tokens per step at 32 guesses - at 16 above 0.5, mc and gs, grids of 4.6 nats",
        tuple(
            Check(
                f"{coupling}: 32 guesses - 16",
                partial(
                    _difference,
                    setting=Setting("peaked", coupling, 32),
                    other=Setting("peaked", coupling, 16),
                ),
                above=0.5,
            )
            for coupling in COUPLED
        ),
    )
    yield Claim(
        "b",
        "At 32 guesses they add at least half as many tokens again as plain redraws.",
        "tokens per step over that of sjd above 1.5 at 32 guesses, mc and gs, grids of 4.6 nats",
        tuple(
            Check(
                f"{coupling} / sjd",
                partial(
                    _ratio,
                    setting=Setting("peaked", coupling, 32),
                    other=Setting("peaked", "sjd", 32),
                ),
                above=1.5,
            )
            for coupling in COUPLED
        ),
    )
    yield Claim(
        "c",
        "Redrawn guesses change nearly always (94 %); coupled ones far less.",
        "share of guesses changed: above 0.9 for sjd, below 0.6 for mc and gs, 32 guesses",
        (
            Check(
                "sjd",
                partial(_value, setting=Setting("peaked", "sjd", 32), quantity="guesses changed"),
                above=0.9,
            ),
            *(
                Check(
                    coupling,
                    partial(
                        _value, setting=Setting("peaked", coupling, 32), quantity="guesses changed"
                    ),
                    below=0.6,
                )
                for coupling in COUPLED
            ),
        ),
    )
    yield Claim(
        "d",
        "The flatter the laws, the more they gain.",
        "tokens per step on grids of 5.4 nats - of 4.6 nats above 1, 32 guesses, mc and gs",
        tuple(
            Check(
                coupling,
                partial(
                    _difference,
                    setting=Setting("flat", coupling, 32),
                    other=Setting("peaked", coupling, 32),
                ),
                above=1.0,
            )
            for coupling in COUPLED
        ),
        modes=("full",),
    )
    strengths = (*STRENGTHS, 1.0)
    yield Claim(
        "e",
        "The more often guesses are coupled, the fewer steps.",
        "tokens per step rises with the strength of the coupling: 0.25, 0.5, 0.75, 1, 32 guesses",
        tuple(
            Check(
                f"strength {high:g} - {low:g}",
                partial(
                    _difference,
                    setting=Setting("peaked", "mc", 32, strength=high),
                    other=Setting("peaked", "mc", 32, strength=low),
                ),
                above=0.0,
            )
            for low, high in itertools.pairwise(strengths)
        ),
        modes=("full",),
    )
    yield Claim(
        "f",
        "On text coupling helps too (not the paper's).",
        "tokens per step on text, mc - sjd above 0, 8 guesses",
        (
            Check(
                "mc - sjd",
                partial(
                    _difference,
                    setting=Setting("text", "mc", 8),
                    other=Setting("text", "sjd", 8),
                    quantity="tokens per step, text",
                ),
                above=0.0,
            ),
        ),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="mc_sjd",
    title="Coupled speculative Jacobi decoding on grids of codes and on text",
    claims=tuple(_claims()),
    measure=_measure,
    draw=draw_couplings,
    columns=("tokens per step", "steps of one token", "guesses changed", "tokens per step, text"),
    size=(13.0, 4.6),
)

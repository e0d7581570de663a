"""Speculative Jacobi decoding on a toy of image tokens and on text: tokens a step.

Image tokens have flat laws that change little with the last few tokens. The toy has both: a grid of
256 codes, each drawn from a law of its left and upper neighbour (`sjd_grid.py`), at 4.6 nats
("peaked") and 5.4 nats ("flat"); in a third grid 30 % of the codes are copies of the one above.
Text comes from the embedded SmolLM2-135M-Instruct at temperature 0.7. Quality is not measured:
the law is the policy's own, which the tests prove.

Teng et al. (2025), arXiv:2410.01699. Bounds were fixed before the full run, after a pilot on two
grids.
"""

from __future__ import annotations

from functools import partial

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
from decodery.reproductions.sjd_figure import draw_windows
from decodery.reproductions.sjd_measure import PROMPTS, Setting, Size, Where, measure

WINDOWS = (4, 8, 16, 32)


def size(mode: Mode) -> Size:
    """What a mode measures."""
    grids: tuple[Where, ...] = ("peaked", "flat")
    windows = [Setting(where, "sjd", window) for where in grids for window in WINDOWS]
    guesses = [
        Setting("peaked", "sjd", 16, "uniform"),
        Setting("copied", "sjd", 16),
        Setting("copied", "sjd", 16, "above"),
    ]
    texts = [Setting("text", "sjd", 8), Setting("text", "sjd", 8, "lookup")]
    if mode == "quick":
        return Size((*windows, *guesses, *texts), 2, 16, PROMPTS[2:])
    return Size((*windows, *guesses, *texts), 8)


def _measure(mode: Mode, seed: int, progress: Progress) -> Measurements:
    return measure(size(mode), seed, progress)


def _value(means: Means, setting: Setting, quantity: str = "tokens per step") -> Array:
    return means[quantity, setting]


def _ratio(means: Means, setting: Setting, other: Setting) -> Array:
    return _value(means, setting) / _value(means, other)


def _gain(means: Means, setting: Setting, other: Setting, quantity: str) -> Array:
    return _value(means, setting, quantity) - _value(means, other, quantity)


PEAKED = Setting("peaked", "sjd", 16)

CLAIMS = (
    Claim(
        "a",
        "About two tokens a step on image tokens.",
        "tokens per step between 1.5 and 2.5, grids of 4.6 nats, 16 guesses",
        (Check("tokens per step", partial(_value, setting=PEAKED), above=1.5, below=2.5),),
    ),
    Claim(
        "b",
        "Larger windows do not help: it saturates.",
        "tokens per step at 32 guesses over that at 8 below 1.25, grids of 4.6 nats",
        (
            Check(
                "32 guesses / 8 guesses",
                partial(
                    _ratio, setting=Setting("peaked", "sjd", 32), other=Setting("peaked", "sjd", 8)
                ),
                below=1.25,
            ),
        ),
    ),
    Claim(
        "c",
        "About half of all steps add one token only.",
        "share of such steps between 0.35 and 0.65, grids of 4.6 nats, 16 guesses",
        (
            Check(
                "steps of one token",
                partial(_value, setting=PEAKED, quantity="steps of one token"),
                above=0.35,
                below=0.65,
            ),
        ),
        modes=("full",),
    ),
    Claim(
        "d",
        "Guesses that repeat a neighbour help where an image has flat regions.",
        "tokens per step, guess above - guess random, above 0 where 30 % are copies",
        (
            Check(
                "above - random",
                partial(
                    _gain,
                    setting=Setting("copied", "sjd", 16, "above"),
                    other=Setting("copied", "sjd", 16),
                    quantity="tokens per step",
                ),
                above=0.0,
            ),
        ),
        modes=("full",),
    ),
    Claim(
        "e",
        "On text it gains little.",
        "tokens per step with random guesses below 1.5, 8 guesses",
        (
            Check(
                "tokens per step",
                partial(
                    _value, setting=Setting("text", "sjd", 8), quantity="tokens per step, text"
                ),
                below=1.5,
            ),
        ),
    ),
    Claim(
        "f",
        "Guesses looked up in the text help there (not the paper's).",
        "tokens per step on text, guess lookup - guess random, above 0",
        (
            Check(
                "lookup - random",
                partial(
                    _gain,
                    setting=Setting("text", "sjd", 8, "lookup"),
                    other=Setting("text", "sjd", 8),
                    quantity="tokens per step, text",
                ),
                above=0.0,
            ),
        ),
        modes=("full",),
    ),
)

REPRODUCTION = Reproduction(
    method="sjd",
    title="Speculative Jacobi decoding on grids of codes and on text",
    claims=CLAIMS,
    measure=_measure,
    draw=draw_windows,
    columns=("tokens per step", "steps of one token", "guesses changed", "tokens per step, text"),
    size=(13.0, 4.6),
)

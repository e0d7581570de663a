"""Repetition-aware sampling (RAS) against endless loops, on the embedded SmolLM2-135M-Instruct.

The paper is about speech codes: without RAS a low top-p v makes its model repeat silence for ever,
with RAS even v = 0, greedy but for the redraws, is usable. A small text model has the same fault:
under greedy decoding it ends in a phrase that it repeats without end. Here it continues openings
freely, for each v with and without RAS. A text is in a loop when its end repeats a phrase at least
three times, over at least 24 tokens. distinct-3 is the share of distinct triples among a text's
triples of neighbouring tokens; log-prob the mean log-probability that the model itself gives to the
tokens of a text.

Settings share their noise, opening by opening. v = 0 without RAS draws nothing.

Chen et al. (2024), arXiv:2406.05370, figure of word error rate over top-p. The thresholds were
fixed before the runs: more than half of the loops for (a2), half of the rise for (b), any gain for
(c) and (d), 0.1 for (e). After pilots came (a1), any fall at all, and a window of 50 tokens, (f1)
and (f2): loops of text have periods of five to fifty tokens, and many a phrase repeats nothing
within the paper's window of 10. The quick mode judges only what its few texts can decide.
"""

from __future__ import annotations

from collections.abc import Iterator

from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction
from decodery.reproductions.repetition_aware_figure import draw
from decodery.reproductions.repetition_aware_measure import (
    GREEDY,
    PLAIN,
    WIDE,
    A,
    B,
    Setting,
    measure,
)

RAS = Setting(0.0, B)


def _difference(quantity: str, one: Setting, other: Setting, factor: float = 1.0) -> Check:
    """`factor` times a cell less another, above zero."""

    def statistic(means: Means) -> Array:
        return factor * means[quantity, one] - means[quantity, other]

    shown = "" if factor == 1 else f"{factor:g} x "
    return Check(f"{quantity}: {shown}{one} - {other}", statistic, above=0)


def _rise(means: Means) -> Array:
    """Half the rise of loops from v = 1 to v = 0 without RAS, less the rise with it."""
    without, with_ras = (
        means["loops", Setting(0.0, rule)] - means["loops", Setting(1.0, rule)]
        for rule in (None, B)
    )
    return without / 2 - with_ras


def _readings(means: Means) -> Array:
    return means["loops", Setting(0.0, A)] - means["loops", RAS]


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a1",
        "Without RAS decoding at v = 0 ends in endless loops; with RAS fewer texts do.",
        "the share of looping texts at v = 0 falls",
        (_difference("loops", GREEDY, RAS),),
        modes=("full",),
    )
    yield Claim(
        "a2",
        "RAS takes most of these loops away.",
        "the share of looping texts at v = 0 falls to less than half",
        (_difference("loops", GREEDY, RAS, 0.5),),
        modes=("full",),
    )
    yield Claim(
        "b",
        "RAS flattens the dependence on v.",
        "from v = 1 to v = 0 loops rise less than half as much with RAS as without",
        (Check("loops: half the rise without - rise with", _rise, above=0),),
        modes=("full",),
    )
    yield Claim(
        "c",
        "With RAS text at v = 0 is more varied.",
        "distinct-3 at v = 0 is higher with RAS",
        (_difference("distinct-3", RAS, GREEDY),),
    )
    yield Claim(
        "d",
        "With RAS decoding at v = 0 stays surer of its text than plain sampling.",
        "log-probability a token: RAS at v = 0 above plain sampling",
        (_difference("log-prob", RAS, PLAIN),),
    )
    yield Claim(
        "e",
        "Both readings of the ratio, with and without the code itself, are equal within noise.",
        "loops at v = 0: A - B within 0.1 of 0",
        (Check("loops: A - B", _readings, above=-0.1, below=0.1),),
        modes=("full",),
    )
    yield Claim(
        "f1",
        "On text a window longer than a phrase is better than the paper's 10 codes.",
        "loops at v = 0: fewer with K = 50 than with K = 10",
        (_difference("loops", RAS, Setting(0.0, WIDE)),),
        modes=("full",),
    )
    yield Claim(
        "f2",
        "With such a window RAS takes most loops away.",
        "loops at v = 0: less than half with K = 50 of those without RAS",
        (_difference("loops", GREEDY, Setting(0.0, WIDE), 0.5),),
    )


REPRODUCTION = Reproduction(
    method="repetition_aware",
    title="Repetition-aware sampling against loops",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("loops", "distinct-3", "log-prob", "tokens"),
    size=(13.0, 4.4),
)

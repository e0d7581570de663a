"""EDT against fixed temperatures: quality at equal diversity, on two tasks.

(1) The embedded SmolLM2-135M-Instruct answers questions and summarises passages in a sentence, in
its chat template. Quality is ROUGE-L (F1) against one reference, diversity 1 - self-BLEU-4 of the
draws of one prompt, both over lower-case words. (2) A character model, trained here on lines of a
fixed grammar with free slots: quality is the share of lines that parse, diversity the number of
different values in a slot over the number of lines drawn. Temperature and T0 run over equal grids,
so neither side has more settings to choose from.

Zhang et al. (2024), arXiv:2403.14541. The paper fine-tunes LLaMA-2-13B for each task and grid
searches T0 and theta, which is not done here; the baseline that runs the model twice (Chang et al.
2023) is left out. The line model is a feed-forward network over the last 20 characters in the place
of a transformer. Thresholds were fixed before the runs: 0.9 of the lines parse for (c) and (d1);
0.02 of ROUGE-L and 0.03 of diversity count as no difference in (b). EDA takes the best quality and
diversity that either of the two reaches as the aim, with weight 1. Changed after a pilot run: the
line model, which was not trained to the end, and with it the grid of its temperatures, of which
most lay above 2, where hardly a line parsed. The quick mode judges only the claims that its few
texts can decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from decodery.reproductions.edt_curves import best_distance, best_diversity, lead, values
from decodery.reproductions.edt_figure import draw
from decodery.reproductions.edt_measure import measure
from decodery.reproductions.edt_settings import (
    EDT,
    FAINT,
    FIXED,
    MILD,
    PARSE,
    SEQUENCE,
    Family,
)
from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction

ANSWERS = ("ROUGE-L", "diversity")
LINES = ("parse", "slots")


def _lead(means: Means, family: Family, rival: Family) -> Array:
    return lead(means, family, rival, *ANSWERS)


def _slot_lead(means: Means, family: Family, rival: Family) -> Array:
    own, other = (best_diversity(means, one, *LINES, PARSE) for one in (family, rival))
    return own - other


def _nearer(means: Means, family: Family, rival: Family) -> Array:
    """How much nearer to the aim a family's best setting is than a rival's, in points of EDA."""
    both = (family, rival)
    own, other = (best_distance(means, one, both, *ANSWERS) for one in both)
    return other - own


def _change(means: Means, quantity: str) -> Array:
    """What theta = 0.1 changes at equal T0, the mean over the grid."""
    return (values(means, FAINT, quantity) - values(means, FIXED, quantity)).mean(axis=0)


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a1",
        "At equal diversity EDT answers better than a fixed temperature.",
        "mean ROUGE-L of EDT (theta 1) less that of fixed temperatures, over the diversity that"
        " both reach, above 0",
        (Check("ROUGE-L, EDT - fixed", partial(_lead, family=EDT, rival=FIXED), above=0),),
        modes=("full",),
    )
    yield Claim(
        "a2",
        "It does so at a milder response too.",
        "the same with theta 0.3 above 0",
        (Check("ROUGE-L, EDT - fixed", partial(_lead, family=MILD, rival=FIXED), above=0),),
        modes=("full",),
    )
    yield Claim(
        "a3",
        "The best setting of EDT is nearer to the ideal of quality and diversity (EDA).",
        "best EDA of fixed temperatures less that of EDT (theta 1) above 0",
        (Check("EDA, fixed - EDT [points]", partial(_nearer, family=EDT, rival=FIXED), above=0),),
        modes=("full",),
    )
    yield Claim(
        "b",
        "With theta = 0.1 EDT is hardly different from a fixed temperature.",
        "at equal T0, ROUGE-L within 0.02 and diversity within 0.03 (mean over the grid)",
        (
            Check("ROUGE-L, EDT - fixed", partial(_change, quantity="ROUGE-L"), -0.02, 0.02),
            Check("diversity, EDT - fixed", partial(_change, quantity="diversity"), -0.03, 0.03),
        ),
    )
    yield Claim(
        "c",
        "Where text has certain spans and free slots, EDT frees the slots and keeps the spans.",
        "most different slot values among settings at which nine of ten lines parse: EDT (theta 1)"
        " less fixed temperatures above 0",
        (Check("slot values, EDT - fixed", partial(_slot_lead, family=EDT, rival=FIXED), above=0),),
    )
    yield Claim(
        "d1",
        "A temperature for every token is better than one for the sequence: lines with slots.",
        "the same, EDT by token less EDT by sequence, above 0",
        (
            Check(
                "slot values, token - sequence",
                partial(_slot_lead, family=EDT, rival=SEQUENCE),
                above=0,
            ),
        ),
    )
    yield Claim(
        "d2",
        "A temperature for every token is better than one for the sequence: answers.",
        "mean ROUGE-L at equal diversity, EDT by token less EDT by sequence (theta 1), above 0",
        (Check("ROUGE-L, token - sequence", partial(_lead, family=EDT, rival=SEQUENCE), above=0),),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="edt",
    title="EDT against fixed temperatures",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=("ROUGE-L", "diversity", "T/T0", "parse", "slots"),
    size=(15.0, 4.6),
)

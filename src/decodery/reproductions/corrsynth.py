"""CorrSynth against independent few-shot writing and guidance, on SmolLM2-135M-Instruct.

A small data set of headlines in four classes is written from prompts with three examples, four
streams a class side by side, all cut by top-p 0.9: independently at several temperatures, with
classifier-free guidance away from the next class's prompt, and with CorrSynth's three contrasts at
gamma 1, delta 0.5. Diversity is measured in all headlines of a class that were written from one
choice of examples: self-BLEU and distinct-2 of words, and the entropy of names, that is of runs of
capitalised words. Self-BLEU is of order 5, as in the paper, and of order 2: in short texts order 5
is mostly smoothing, which depends on length. Quality is the log-probability a token that the model
itself gives, without contrast or temperature; "at equal quality" compares with the line through
independent writing at its temperatures. The student is naive Bayes on words, tested on 48 headlines
written for this.

Besides, longer texts are written under the one formula P^1.5 / Q^0.5, with guidance, where Q is the
model after another prompt and the same text, and with CorrSynth, where Q is the geometric mean of
siblings after their own texts; the contrast is the mean of |ln P - ln Q| under P.

Kowshik, Divekar, Malik (2024), arXiv:2411.08553, whose data sets, teachers and students are far
larger. The thresholds were fixed before the full run: half for (a), four fifths for (b), twice for
(c), any difference for the others. (f2) was added after a first full run, in which some contrasted
headlines repeated a word to their end: a contrast with siblings does not see that, and distinct-2
counts it like a pair that two headlines share.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from decodery.reproductions.corrsynth_figure import draw
from decodery.reproductions.corrsynth_measure import measure
from decodery.reproductions.corrsynth_settings import (
    CROSS,
    FADING,
    FEW_SHOT,
    GUIDED,
    HYBRID,
    INTRA,
    LASTING,
    PLAIN,
    Setting,
)
from decodery.reproductions.frame import Array, Check, Claim, Means, Reproduction

BLEUS = ("self-BLEU-5", "self-BLEU-2")


def _faded(means: Means, setting: Setting, share: float) -> Array:
    """The late contrast less a share of the first."""
    return means["late", setting] - share * means["window 0", setting]


def _lasting_lead(means: Means) -> Array:
    return means["late", LASTING] - 2 * means["late", FADING]


def _difference(quantity: str, one: Setting, other: Setting, means: Means) -> Array:
    return means[quantity, one] - means[quantity, other]


def at_equal_quality(quantity: str, means: Means, quality: Array) -> Array:
    """Independent writing's value where it has this log-probability: the line through its points.

    Outside of them the nearest two are extended.
    """
    points = [
        (means["log-prob", item], means[quantity, item])
        for item in FEW_SHOT
        if ("log-prob", item) in means
    ]
    value = np.empty(np.shape(quality))
    for place, ((x, y), (nx, ny)) in enumerate(pairwise(points)):
        here = (quality < x) if place else np.ones_like(quality, dtype=bool)
        slope = np.divide(ny - y, nx - x, out=np.zeros_like(y), where=nx != x)
        value = np.where(here, y + slope * (quality - x), value)
    return value


def _lead(quantity: str, setting: Setting, means: Means) -> Array:
    quality = means["log-prob", setting]
    return means[quantity, setting] - at_equal_quality(quantity, means, quality)


def _less(quantity: str, one: Setting, other: Setting) -> Check:
    name = f"{quantity}: {one} - {other}"
    return Check(name, partial(_difference, quantity, one, other), below=0)


def _more(quantity: str, one: Setting, other: Setting) -> Check:
    name = f"{quantity}: {one} - {other}"
    return Check(name, partial(_difference, quantity, one, other), above=0)


def _less_than_heat(quantity: str, setting: Setting) -> Check:
    name = f"{quantity}: {setting} - few-shot at equal log-prob"
    return Check(name, partial(_lead, quantity, setting), below=0)


def _more_than_heat(quantity: str, setting: Setting) -> Check:
    name = f"{quantity}: {setting} - few-shot at equal log-prob"
    return Check(name, partial(_lead, quantity, setting), above=0)


def _more_both_ways(quantity: str) -> tuple[Check, ...]:
    both = (HYBRID, INTRA)
    return (
        *(_more(quantity, setting, PLAIN) for setting in both),
        *(_more_than_heat(quantity, setting) for setting in both),
    )


def _claims() -> Iterator[Claim]:
    yield Claim(
        "a",
        "Classifier-free guidance fades along the text.",
        "its contrast from the 17th token on is less than half of that of the first four",
        (
            Check(
                "late - first / 2, cfg [nats]",
                partial(_faded, setting=FADING, share=0.5),
                below=0,
            ),
        ),
    )
    yield Claim(
        "b",
        "CorrSynth's contrast does not fade.",
        "its contrast from the 17th token on is at least four fifths of that of the first four",
        (
            Check(
                "late - 0.8 first, CorrSynth [nats]",
                partial(_faded, setting=LASTING, share=0.8),
                above=0,
            ),
        ),
    )
    yield Claim(
        "c",
        "Late in a text CorrSynth still has a contrast where guidance has little.",
        "from the 17th token on its contrast is more than twice that of guidance",
        (Check("late: CorrSynth - 2 cfg [nats]", _lasting_lead, above=0),),
    )
    yield Claim(
        "d",
        "Contrast within a class makes its texts more diverse than independent writing.",
        "self-BLEU of hybrid and of intra below few-shot at the same top-p",
        tuple(_less(quantity, setting, PLAIN) for quantity in BLEUS for setting in (HYBRID, INTRA)),
    )
    yield Claim(
        "e",
        "It does so at equal quality: a higher temperature has no better trade-off.",
        "self-BLEU of hybrid and of intra below few-shot at the temperature of equal"
        " log-probability",
        tuple(
            _less_than_heat(quantity, setting) for quantity in BLEUS for setting in (HYBRID, INTRA)
        ),
    )
    yield Claim(
        "f1",
        "Fewer pairs of words come again.",
        "distinct-2 of hybrid and of intra above few-shot, at the same top-p and at equal"
        " log-probability",
        _more_both_ways("distinct-2"),
    )
    yield Claim(
        "f2",
        "Fewer pairs of words come again in other texts.",
        "distinct-2 with each pair once a text (across): hybrid and intra above few-shot, at the"
        " same top-p and at equal log-probability",
        _more_both_ways("across"),
    )
    yield Claim(
        "g",
        "The contrast raises the entropy of names.",
        "entropy of hybrid and of intra above few-shot, at the same top-p and at equal"
        " log-probability",
        _more_both_ways("entities"),
    )
    yield Claim(
        "h",
        "Hybrid is more diverse than classifier-free guidance.",
        "self-BLEU lower, entropy of names higher",
        (
            *(_less(quantity, HYBRID, GUIDED) for quantity in BLEUS),
            _more("entities", HYBRID, GUIDED),
        ),
    )
    yield Claim(
        "i",
        "Contrast between classes gives a better data set for a student.",
        "accuracy of naive Bayes on headlines of others: cross and hybrid above few-shot",
        (_more("accuracy", CROSS, PLAIN), _more("accuracy", HYBRID, PLAIN)),
        modes=("full",),
    )


REPRODUCTION = Reproduction(
    method="corrsynth",
    title="CorrSynth: streams that avoid each other",
    claims=tuple(_claims()),
    measure=measure,
    draw=draw,
    columns=(*BLEUS, "distinct-2", "across", "repeats", "entities", "log-prob", "accuracy"),
    size=(15.0, 4.6),
)
